"""The PostgreSQL form of the job store: one statement for each operation, and a database that several servers share."""
