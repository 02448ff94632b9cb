"""Tables of the job database, for SQLite and PostgreSQL.

    jobs      one row per request, kept as a tombstone after its payloads are gone
    payloads  its input until it has finished, then its output; apart, so that reading a status never reads a picture
    events    its log
    outbox    the webhook that its end set off, until that is delivered or given up

A job, its events and its webhook change in one transaction. `jobs.fence` counts the claims of a job: a worker
publishes under the fence of its own claim, which is out of date if another has claimed the job since.
"""

import sqlalchemy as sa

from server.jobs.job import Status

metadata = sa.MetaData()
_Serial = sa.BigInteger().with_variant(sa.Integer, "sqlite")  # only INTEGER PRIMARY KEY counts up by itself there

jobs = sa.Table(
    "jobs",
    metadata,
    sa.Column("seq", _Serial, primary_key=True),
    sa.Column("id", sa.Text, nullable=False, unique=True),
    sa.Column("app", sa.Text, nullable=False),
    sa.Column("owner", sa.Text, nullable=False),
    sa.Column("priority", sa.SmallInteger, nullable=False),
    sa.Column("status", sa.Text, nullable=False),
    sa.Column("call", sa.Text, nullable=False),
    sa.Column("webhook", sa.Text),
    sa.Column("no_retry", sa.Boolean, nullable=False),
    sa.Column("store_io", sa.Boolean, nullable=False),
    sa.Column("submitted_at", sa.Double, nullable=False),
    sa.Column("start_by", sa.Double),
    sa.Column("not_before", sa.Double, nullable=False, default=0.0),
    sa.Column("attempts", sa.Integer, nullable=False, default=0),
    sa.Column("fence", sa.Integer, nullable=False, default=0),
    sa.Column("worker", sa.Text),
    sa.Column("lease_until", sa.Double),
    sa.Column("finished_at", sa.Double),
    sa.Column("inference_time", sa.Double, nullable=False, default=0.0),
    sa.Column("result_status", sa.SmallInteger),
    sa.Column("result_headers", sa.Text),
    sa.Column("error", sa.Text),
    sa.Column("error_type", sa.Text),
    sa.Column("expired", sa.Boolean, nullable=False, default=False),
    sqlite_autoincrement=True,  # a seq is never given twice, not even after the newest jobs are deleted
)

waiting = jobs.c.status == sa.literal(Status.IN_QUEUE.value, literal_execute=True)
running = jobs.c.status == sa.literal(Status.IN_PROGRESS.value, literal_execute=True)
done = jobs.c.status == sa.literal(Status.COMPLETED.value, literal_execute=True)

sa.Index("jobs_waiting", jobs.c.priority, jobs.c.seq, sqlite_where=waiting, postgresql_where=waiting)
sa.Index("jobs_running", jobs.c.lease_until, sqlite_where=running, postgresql_where=running)
sa.Index("jobs_done", jobs.c.expired, jobs.c.finished_at, sqlite_where=done, postgresql_where=done)

payloads = sa.Table(
    "payloads",
    metadata,
    sa.Column("job", _Serial, primary_key=True, autoincrement=False),
    sa.Column("input", sa.LargeBinary),
    sa.Column("output", sa.LargeBinary),
)

events = sa.Table(
    "events",
    metadata,
    sa.Column("job", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("line", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("at", sa.Double, nullable=False),
    sa.Column("level", sa.Text, nullable=False),
    sa.Column("message", sa.Text, nullable=False),
    sqlite_with_rowid=False,
)

outbox = sa.Table(
    "outbox",
    metadata,
    sa.Column("id", _Serial, primary_key=True),
    sa.Column("job", sa.BigInteger, nullable=False, index=True),
    sa.Column("url", sa.Text, nullable=False),
    sa.Column("origin", sa.Text, nullable=False),
    sa.Column("attempts", sa.Integer, nullable=False, default=0),
    sa.Column("due_at", sa.Double, nullable=False, index=True),
    sqlite_autoincrement=True,
)
