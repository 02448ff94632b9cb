"""Uploaded and generated files on disk. Read files, disk, ledger, then layout, names, multipart, upload_tokens."""
