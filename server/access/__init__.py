"""Who calls and how much they may take. Read api_keys, then auth, then limits."""
