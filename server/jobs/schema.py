"""Tables of the job database, their statements, and the numbered steps that build them, for SQLite and PostgreSQL.

    jobs      one row per request, kept as a tombstone after its payloads are gone
    payloads  its input until it has finished, then its output; apart, so that reading a status never reads a picture
    events    its log
    outbox    the webhook that its end set off, until that is delivered or given up

A job, its events and its webhook change in one transaction. `jobs.fence` counts the claims of a job: a worker
publishes under the fence of its own claim, which is out of date if another has claimed the job since.
"""

from collections.abc import Callable

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

_waiting = jobs.c.status == sa.literal(Status.IN_QUEUE.value, literal_execute=True)
_running = jobs.c.status == sa.literal(Status.IN_PROGRESS.value, literal_execute=True)
_done = jobs.c.status == sa.literal(Status.COMPLETED.value, literal_execute=True)

sa.Index("jobs_waiting", jobs.c.priority, jobs.c.seq, sqlite_where=_waiting, postgresql_where=_waiting)
sa.Index("jobs_running", jobs.c.lease_until, sqlite_where=_running, postgresql_where=_running)
sa.Index("jobs_done", jobs.c.expired, jobs.c.finished_at, sqlite_where=_done, postgresql_where=_done)

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


def _first_tables(connection: sa.Connection) -> None:
    metadata.create_all(connection)


# Step n brings a database of version n to version n + 1. A step that has shipped is never changed: add the next one.
STEPS: tuple[Callable[[sa.Connection], None], ...] = (_first_tables,)

# --- statements --------------------------------------------------------------------------------------------------

_b = sa.bindparam

INSERT_JOB = sa.insert(jobs).returning(jobs.c.seq)
INSERT_PAYLOAD = sa.insert(payloads)
INSERT_EVENTS = sa.insert(events)
INSERT_WEBHOOK = sa.insert(outbox)

CLAIM = (
    sa.update(jobs)
    .where(
        jobs.c.seq.in_(
            sa.select(jobs.c.seq)
            .where(_waiting, jobs.c.not_before <= _b("now"), jobs.c.owner.not_in(_b("passed_over", expanding=True)))
            .order_by(jobs.c.priority, jobs.c.seq)
            .limit(_b("count"))
            .with_for_update(skip_locked=True)
        )
    )
    .values(
        status=Status.IN_PROGRESS.value,
        attempts=jobs.c.attempts + 1,
        fence=jobs.c.fence + 1,
        worker=_b("by"),
        lease_until=_b("until"),
    )
    .returning(
        jobs.c.seq,
        jobs.c.id,
        jobs.c.app,
        jobs.c.owner,
        jobs.c.priority,
        jobs.c.call,
        jobs.c.attempts,
        jobs.c.fence,
        jobs.c.no_retry,
        jobs.c.start_by,
    )
)
INPUTS = sa.select(payloads.c.job, payloads.c.input).where(payloads.c.job.in_(_b("seqs", expanding=True)))

HEARTBEAT = sa.update(jobs).where(_running, jobs.c.worker == _b("by")).values(lease_until=_b("until"))
HELD = sa.select(jobs.c.id, jobs.c.fence).where(_running, jobs.c.worker == _b("by"))

_BACK_TO_QUEUE = {"status": Status.IN_QUEUE.value, "worker": None, "lease_until": None}
RELEASE = (
    sa.update(jobs)
    .where(jobs.c.seq == _b("job"), jobs.c.fence == _b("held"), _running)
    .values(**_BACK_TO_QUEUE, attempts=jobs.c.attempts - _b("refund"), not_before=_b("after"))
)
RELEASE_LAPSED = (
    sa.update(jobs).where(_running, jobs.c.lease_until < _b("now")).values(**_BACK_TO_QUEUE).returning(jobs.c.id)
)
RELEASE_ALL = sa.update(jobs).where(_running).values(**_BACK_TO_QUEUE)

_moved_by: sa.BindParameter[float] = sa.bindparam("seconds", type_=sa.Double())
_start_by_moved = {"start_by": jobs.c.start_by + _moved_by}
MOVE_WAITING = sa.update(jobs).where(_waiting).values(**_start_by_moved, not_before=jobs.c.not_before + _moved_by)
MOVE_RUNNING = sa.update(jobs).where(_running).values(**_start_by_moved, lease_until=jobs.c.lease_until + _moved_by)
MOVE_WEBHOOKS = sa.update(outbox).values(due_at=outbox.c.due_at + _moved_by)

_lines = sa.select(sa.func.count()).where(events.c.job == _b("job")).scalar_subquery()
# The one way to a job's end: only from the state, and under the fence, that the caller saw.
FINISH = (
    sa.update(jobs)
    .where(jobs.c.seq == _b("job"), jobs.c.fence == _b("held"), jobs.c.status == _b("seen"))
    .values(
        status=Status.COMPLETED.value,
        lease_until=None,
        finished_at=_b("now"),
        inference_time=_b("took"),
        result_status=_b("code"),
        result_headers=_b("headers"),
        error=_b("message"),
        error_type=_b("kind"),
    )
    .returning(jobs.c.webhook, jobs.c.store_io, _lines.label("lines"))
)
OUTPUT = sa.update(payloads).where(payloads.c.job == _b("seq")).values(input=None, output=_b("body"))

STATE = sa.select(jobs.c.seq, jobs.c.status, jobs.c.fence).where(jobs.c.id == _b("request"))
_SNAPSHOT = sa.select(
    jobs.c.seq,
    jobs.c.id,
    jobs.c.app,
    jobs.c.owner,
    jobs.c.priority,
    jobs.c.store_io,
    jobs.c.webhook,
    jobs.c.submitted_at,
    jobs.c.start_by,
    jobs.c.status,
    jobs.c.inference_time,
    jobs.c.result_status,
    jobs.c.error,
    jobs.c.error_type,
    jobs.c.expired,
)
ONE = _SNAPSHOT.where(jobs.c.id == _b("request"))
WAITING = _SNAPSHOT.where(_waiting).order_by(jobs.c.priority, jobs.c.seq)
LOGS = sa.select(events.c.at, events.c.level, events.c.message).where(events.c.job == _b("seq")).order_by(events.c.line)
WAITING_LOGS = (
    sa.select(events.c.job, events.c.at, events.c.level, events.c.message)
    .join(jobs, jobs.c.seq == events.c.job)
    .where(_waiting)
    .order_by(events.c.job, events.c.line)
)
RESULT = (
    sa.select(jobs.c.result_status, jobs.c.result_headers, jobs.c.error, jobs.c.error_type, payloads.c.output)
    .join(payloads, payloads.c.job == jobs.c.seq)
    .where(jobs.c.id == _b("request"), _done, ~jobs.c.expired)
)

_has_webhook = sa.exists().where(outbox.c.job == jobs.c.seq)
_OLD_RESULTS = (
    sa.select(jobs.c.seq, jobs.c.id)
    .where(_done, ~jobs.c.expired, jobs.c.finished_at <= _b("before"), ~_has_webhook)
    .order_by(jobs.c.finished_at, jobs.c.seq)
)
OLD_RESULTS = _OLD_RESULTS.limit(_b("count"))
OLD_RESULTS_OF = _OLD_RESULTS.where(jobs.c.owner == _b("owned_by")).limit(_b("count"))

# SQLite reads a payload's length without its pages.
_input_bytes = sa.select(jobs.c.owner, sa.func.length(payloads.c.input).label("size")).join(
    payloads, payloads.c.job == jobs.c.seq
)
_inputs = sa.union_all(_input_bytes.where(_waiting), _input_bytes.where(_running)).subquery()
INPUT_BYTES = sa.select(_inputs.c.owner, sa.func.sum(_inputs.c.size)).group_by(_inputs.c.owner)
RESULT_BYTES = (
    sa.select(jobs.c.owner, sa.func.sum(sa.func.length(payloads.c.output)))
    .join(payloads, payloads.c.job == jobs.c.seq)
    .where(_done, ~jobs.c.expired)
    .group_by(jobs.c.owner)
)
ENDED_RESULT = sa.select(jobs.c.seq, jobs.c.id).where(jobs.c.id == _b("request"), _done, ~jobs.c.expired)
PRIVATE_RESULT = ENDED_RESULT.where(~jobs.c.store_io, ~_has_webhook)
LEAVE_TOMBSTONES = (
    sa.update(jobs).where(jobs.c.seq.in_(_b("seqs", expanding=True))).values(expired=True, call="", webhook=None)
)
DELETE_PAYLOADS = sa.delete(payloads).where(payloads.c.job.in_(_b("seqs", expanding=True)))
DELETE_EVENTS = sa.delete(events).where(events.c.job.in_(_b("seqs", expanding=True)))
OLD_TOMBSTONES = (
    sa.select(jobs.c.seq, jobs.c.id).where(_done, jobs.c.expired, jobs.c.finished_at <= _b("before")).limit(_b("count"))
)
DELETE_JOBS = sa.delete(jobs).where(jobs.c.seq.in_(_b("seqs", expanding=True)))

_deliverable = (
    outbox.c.id.not_in(_b("in_flight", expanding=True)),
    outbox.c.origin.not_in(_b("origins", expanding=True)),
    jobs.c.owner.not_in(_b("owners", expanding=True)),
)
DUE_WEBHOOKS = (
    sa.select(
        outbox.c.id,
        outbox.c.url,
        outbox.c.origin,
        outbox.c.attempts,
        outbox.c.due_at,
        jobs.c.id.label("request"),
        jobs.c.owner,
    )
    .join(jobs, jobs.c.seq == outbox.c.job)
    .where(outbox.c.due_at <= _b("now"), *_deliverable)
    .order_by(outbox.c.due_at, outbox.c.id)
    .limit(_b("count"))
)
NEXT_WEBHOOK = sa.select(sa.func.min(outbox.c.due_at)).join(jobs, jobs.c.seq == outbox.c.job).where(*_deliverable)
DELAY_WEBHOOK = sa.update(outbox).where(outbox.c.id == _b("row")).values(attempts=_b("made"), due_at=_b("then"))
DELETE_WEBHOOK = sa.delete(outbox).where(outbox.c.id == _b("row"))
