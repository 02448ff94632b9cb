"""The durable job queue. Read job, queue, runner and attempt, then index, store, schema, retention, and a form."""
