"""Uploaded and generated files on disk. Read files, then disk, multipart, upload_tokens."""
