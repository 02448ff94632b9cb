"""The queue of one server on a SQLite database, put together as the server does."""

from server.jobs.index import JobIndex
from server.jobs.queue import Queue
from server.jobs.sqlite.mirror import Mirror
from server.jobs.sqlite.outbox import SQLiteOutbox


def queue_on(store, run, *, parts=Queue, **arguments):
    """Return a queue that mirrors `store`."""
    index = JobIndex()
    return parts(store, index, Mirror(store, index), run, **arguments)


def outbox_of(store):
    """Return the outbox beside the jobs."""
    return SQLiteOutbox(store.database, store.clock)
