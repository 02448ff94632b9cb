"""Servers that share a database, each with one promise broken: for the controls of R1c.

no_fence     a result is written whoever holds the job by now, and over another
by_node      a heartbeat renews all that the database thinks this server holds, not what it runs
cached       what this server last heard of a job answers for its result, too
"""

from server.jobs.attempt import Attempt
from server.jobs.postgres import statements
from server.jobs.postgres.statements import RUNNING
from server.nodes.index import SharedIndex


def _changed(name, old, new):
    statement = getattr(statements, name)
    assert old in statement.text
    setattr(statements, name, statement._replace(text=statement.text.replace(old, new)))


def no_fence():
    Attempt.cancel = lambda self: None
    for name in ("FINISH", "FINISH_OUTSIDE"):
        _changed(name, f"seq = $1 AND fence = $2 AND {RUNNING}", "seq = $1 AND fence >= $2")


def by_node():
    _changed("HEARTBEAT", f"seq = ANY ($3::bigint[]) AND worker = $1 AND {RUNNING}", f"worker = $1 AND {RUNNING}")
    _changed("HEARTBEAT", "worker = $1 AND seq <> ALL ($3::bigint[])", "false AND seq <> ALL ($3::bigint[])")


def cached():
    get = SharedIndex.get
    SharedIndex.get = lambda self, request_id, **_: get(self, request_id)


def break_promise(name):
    """Break the promise of this name in the server that this process becomes."""
    {"no_fence": no_fence, "by_node": by_node, "cached": cached}[name]()
