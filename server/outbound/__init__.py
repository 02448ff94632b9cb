"""Requests to URLs that callers choose. Read fetch, then urls, addresses, guarded_http."""
