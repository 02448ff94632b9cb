"""The jobs of one server, in a SQLite file. Read store, statements and mirror, then database and group_commit."""
