"""Tables of a PostgreSQL that several servers share: those of every form, with some columns more, and others.

They are as the first of the `migrations` makes them; what a later one has changed is there.

objects    payloads in the object store that no row names
fleet      one row of what all servers do together
nodes      one row per running server
documents  small files which each server reads: keys, secrets
files      stored files, for quotas (made anew by the second step)
"""

from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import JSONB

from server.jobs import schema
from server.jobs.job import Status

shared = sa.MetaData()
for _table in schema.metadata.tables.values():
    _table.to_metadata(shared)


def _more(table: str, *columns: sa.Column[Any]) -> None:
    for column in columns:
        shared.tables[table].append_column(column)


_more("jobs", sa.Column("bytes", sa.BigInteger, nullable=False))  # of its input until it has ended, then of its output
# A payload that is too large for a row, or not to be stored, lies in the object store under this name.
_more("payloads", sa.Column("input_object", sa.Text), sa.Column("output_object", sa.Text))
_more("outbox", sa.Column("leased_until", sa.Double, nullable=False), sa.Column("leased_by", sa.Text))

_jobs = shared.tables["jobs"].c
_waiting = _jobs.status == sa.literal(Status.IN_QUEUE.value, literal_execute=True)
sa.Index("jobs_start_by", _jobs.start_by, postgresql_where=_waiting & _jobs.start_by.is_not(None))

# Names in the object store of payloads that no row names: not yet, or no longer. Deleted when they are due.
sa.Table(
    "objects",
    shared,
    sa.Column("name", sa.Text, primary_key=True),
    sa.Column("due_at", sa.Double, nullable=False, index=True),
)

# One row. `beat`: the newest heartbeat of any server; `beating_since`: the first one after the last gap. `usage`: bytes
# of payloads by owner, as they were at `usage_at`.
sa.Table(
    "fleet",
    shared,
    sa.Column("id", sa.SmallInteger, primary_key=True, autoincrement=False),
    sa.Column("beat", sa.Double, nullable=False),
    sa.Column("beating_since", sa.Double, nullable=False),
    sa.Column("usage_at", sa.Double, nullable=False),
    sa.Column("usage", sa.Text, nullable=False),
)

# One row per running server. `id`: new at each start; `counts`: what limited keys have in flight.
sa.Table(
    "nodes",
    shared,
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("name", sa.Text, nullable=False),
    sa.Column("address", sa.Text, nullable=False),
    sa.Column("release", sa.Text, nullable=False),
    sa.Column("devices", JSONB, nullable=False),
    sa.Column("model", sa.Text, nullable=False),
    sa.Column("room", sa.Integer, nullable=False),
    sa.Column("in_flight", sa.Integer, nullable=False),
    sa.Column("sockets", sa.Integer, nullable=False),
    sa.Column("draining", sa.Boolean, nullable=False),
    sa.Column("heartbeat", sa.Double, nullable=False),
    sa.Column("counts", JSONB, nullable=False),
)

# What one server keeps as small files in its data folder: keys, secrets.
sa.Table(
    "documents",
    shared,
    sa.Column("name", sa.Text, primary_key=True),
    sa.Column("version", sa.BigInteger, nullable=False),
    sa.Column("body", sa.LargeBinary, nullable=False),
)

# Uploads and results in the object store. Never used in this form: see the second step.
sa.Table(
    "files",
    shared,
    sa.Column("name", sa.Text, primary_key=True),
    sa.Column("owner", sa.Text, nullable=False),
    sa.Column("bytes", sa.BigInteger, nullable=False),
    sa.Column("expires_at", sa.Double, nullable=False, index=True),
)
