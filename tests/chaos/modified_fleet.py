"""Servers that share a database, each with one promise broken: for the controls of R1c.

no_stop      a job that is another server's by now goes on to its end
no_fence     the same, and its result is written whoever holds the job by now, and over another
by_node      a heartbeat renews all that the database thinks this server holds, not what it runs
cached       what this server last heard of a job answers for its result, too
hasty        a submit is answered, and a stored file, before it is stored
not_leased   webhooks that another server sends are due, too
"""

import asyncio
import functools
import time

from server.jobs.attempt import Attempt
from server.jobs.job import Snapshot
from server.jobs.postgres import statements
from server.jobs.postgres.outbox import PostgresOutbox
from server.jobs.postgres.statements import IS_RUNNING, NOW
from server.jobs.postgres.store import PostgresStore
from server.nodes import cluster
from server.nodes.index import SharedIndex
from server.storage.bucket.objects import Objects


def _changed(name, old, new):
    statement = getattr(statements, name)
    assert old in statement.text
    setattr(statements, name, statement._replace(text=statement.text.replace(old, new)))


def no_stop():
    Attempt.cancel = lambda self: None


def no_fence():
    no_stop()
    for name in ("FINISH", "FINISH_OUTSIDE"):
        _changed(name, f"seq = $1 AND fence = $2 AND {IS_RUNNING}", "seq = $1 AND fence >= $2")


def by_node():
    _changed("HEARTBEAT", f"seq = ANY ($3::bigint[]) AND worker = $1 AND {IS_RUNNING}", f"worker = $1 AND {IS_RUNNING}")
    _changed("HEARTBEAT", "worker = $1 AND seq <> ALL ($3::bigint[])", "false AND seq <> ALL ($3::bigint[])")


def cached():
    get = SharedIndex.get
    SharedIndex.get = lambda self, request_id, **_: get(self, request_id)


def not_leased():
    _changed("DUE", f"(leased_until <= {NOW} OR leased_by = $1)", "true")
    _changed("NEXT_DUE", "CASE WHEN leased_by <> $1 THEN leased_until END", "NULL")


def hasty():
    submit, put = PostgresStore.submit, Objects.put
    begun = set()

    def answered_first(self, new):
        keep(submit(self, new))
        answer = asyncio.get_running_loop().create_future()
        answer.set_result(Snapshot.accepted(new, 0, time.time()))
        return answer

    async def put_later(self, path, data, **options):
        keep(asyncio.ensure_future(put(self, path, data, **options)))

    def keep(work):
        begun.add(work)
        work.add_done_callback(lambda done: (begun.discard(done), done.exception()))

    PostgresStore.submit, Objects.put = answered_first, put_later


def modify(broken_promise, webhook_lease_s):
    """Break the promise of this name, if any, in the server that this process becomes, and set what is not None."""
    if broken_promise:
        promises = (no_stop, no_fence, by_node, cached, hasty, not_leased)
        {promise.__name__: promise for promise in promises}[broken_promise]()
    if webhook_lease_s is not None:
        cluster.PostgresOutbox = functools.partial(PostgresOutbox, lease_s=webhook_lease_s)
