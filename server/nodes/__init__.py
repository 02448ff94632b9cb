"""Several servers on one database: what each knows of the others, and of jobs that are not its own."""
