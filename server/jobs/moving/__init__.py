"""All jobs, from one form of the database to the other. Read moved, then sqlite, postgres."""
