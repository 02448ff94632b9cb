"""Stored files in an object store, for any machine. Read bucket, expiry, then objects, location."""
