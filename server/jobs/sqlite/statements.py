"""The numbered steps that build SQLite's tables, and the statements on them."""

from collections.abc import Callable

import sqlalchemy as sa
from sqlalchemy.dialects import sqlite

from server.jobs.job import Status
from server.jobs.schema import done, events, jobs, metadata, outbox, payloads, running, waiting


def _first_tables(connection: sa.Connection) -> None:
    metadata.create_all(connection)


# Step n brings a database of version n to version n + 1. A step that has shipped is never changed: add the next one.
STEPS: tuple[Callable[[sa.Connection], None], ...] = (_first_tables,)

_b = sa.bindparam

INSERT_JOB = sqlite.insert(jobs).on_conflict_do_nothing(index_elements=[jobs.c.id]).returning(jobs.c.seq)
INSERT_PAYLOAD = sa.insert(payloads)
INSERT_EVENTS = sa.insert(events)
INSERT_WEBHOOK = sa.insert(outbox)

_next = (
    sa.select(jobs.c.seq)
    .where(waiting, jobs.c.not_before <= _b("now"), jobs.c.owner.not_in(_b("passed_over", expanding=True)))
    .order_by(jobs.c.priority, jobs.c.seq)
    .limit(_b("count"))
)
_old = _next.add_columns(jobs.c.submitted_at).subquery()
_claim = (
    sa.update(jobs)
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
CLAIM = _claim.where(jobs.c.seq.in_(_next))
CLAIM_OLD = _claim.where(jobs.c.seq.in_(sa.select(_old.c.seq).where(_old.c.submitted_at <= _b("before"))))
INPUTS = sa.select(payloads.c.job, payloads.c.input).where(payloads.c.job.in_(_b("seqs", expanding=True)))

_mine = (running, jobs.c.worker == _b("by"))
HEARTBEAT = (
    sa.update(jobs)
    .where(*_mine, jobs.c.seq.in_(_b("seqs", expanding=True)))
    .values(lease_until=_b("until"))
    .returning(jobs.c.id, jobs.c.fence)
)

_BACK_TO_QUEUE = {"status": Status.IN_QUEUE.value, "worker": None, "lease_until": None}
RELEASE = (
    sa.update(jobs)
    .where(jobs.c.seq == _b("job"), jobs.c.fence == _b("held"), running)
    .values(**_BACK_TO_QUEUE, attempts=jobs.c.attempts - _b("refund"), not_before=_b("after"))
)
RELEASE_UNKNOWN = (
    sa.update(jobs)
    .where(*_mine, jobs.c.seq.not_in(_b("seqs", expanding=True)), jobs.c.lease_until <= _b("before"))
    .values(**_BACK_TO_QUEUE, attempts=jobs.c.attempts - 1)
    .returning(jobs.c.id)
)
RELEASE_LAPSED = (
    sa.update(jobs).where(running, jobs.c.lease_until < _b("now")).values(**_BACK_TO_QUEUE).returning(jobs.c.id)
)
RELEASE_ALL = sa.update(jobs).where(running).values(**_BACK_TO_QUEUE)

_moved_by: sa.BindParameter[float] = sa.bindparam("seconds", type_=sa.Double())
_start_by_moved = {"start_by": jobs.c.start_by + _moved_by}
MOVE_WAITING = sa.update(jobs).where(waiting).values(**_start_by_moved, not_before=jobs.c.not_before + _moved_by)
MOVE_RUNNING = sa.update(jobs).where(running).values(**_start_by_moved, lease_until=jobs.c.lease_until + _moved_by)
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
        worker=_b("by"),
    )
    .returning(jobs.c.webhook, jobs.c.store_io, _lines.label("lines"))
)
FINISHED = sa.select(jobs.c.seq).where(
    jobs.c.seq == _b("job"), jobs.c.fence == _b("held"), jobs.c.worker == _b("by"), done
)
OUTPUT = sa.update(payloads).where(payloads.c.job == _b("seq")).values(input=None, output=_b("body"))

OVERDUE = sa.select(jobs.c.seq, jobs.c.id, jobs.c.fence).where(waiting, jobs.c.start_by <= _b("now"))
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
WAITING = _SNAPSHOT.where(waiting).order_by(jobs.c.priority, jobs.c.seq)
LOGS = sa.select(events.c.at, events.c.level, events.c.message).where(events.c.job == _b("seq")).order_by(events.c.line)
WAITING_LOGS = (
    sa.select(events.c.job, events.c.at, events.c.level, events.c.message)
    .join(jobs, jobs.c.seq == events.c.job)
    .where(waiting)
    .order_by(events.c.job, events.c.line)
)
RESULT = (
    sa.select(jobs.c.result_status, jobs.c.result_headers, jobs.c.error, jobs.c.error_type, payloads.c.output)
    .join(payloads, payloads.c.job == jobs.c.seq)
    .where(jobs.c.id == _b("request"), done, ~jobs.c.expired)
)

_has_webhook = sa.exists().where(outbox.c.job == jobs.c.seq)
_OLD_RESULTS = (
    sa.select(jobs.c.seq, jobs.c.id)
    .where(done, ~jobs.c.expired, jobs.c.finished_at <= _b("before"), ~_has_webhook)
    .order_by(jobs.c.finished_at, jobs.c.seq)
)
OLD_RESULTS = _OLD_RESULTS.limit(_b("count"))
OLD_RESULTS_OF = _OLD_RESULTS.where(jobs.c.owner == _b("owned_by")).limit(_b("count"))

# SQLite reads a payload's length without its pages.
_input_bytes = sa.select(jobs.c.owner, sa.func.length(payloads.c.input).label("size")).join(
    payloads, payloads.c.job == jobs.c.seq
)
_inputs = sa.union_all(_input_bytes.where(waiting), _input_bytes.where(running)).subquery()
INPUT_BYTES = sa.select(_inputs.c.owner, sa.func.sum(_inputs.c.size)).group_by(_inputs.c.owner)
RESULT_BYTES = (
    sa.select(jobs.c.owner, sa.func.sum(sa.func.length(payloads.c.output)))
    .join(payloads, payloads.c.job == jobs.c.seq)
    .where(done, ~jobs.c.expired)
    .group_by(jobs.c.owner)
)
ENDED_RESULT = sa.select(jobs.c.seq, jobs.c.id).where(jobs.c.id == _b("request"), done, ~jobs.c.expired)
PRIVATE_RESULT = ENDED_RESULT.where(~jobs.c.store_io, ~_has_webhook)
LEAVE_TOMBSTONES = (
    sa.update(jobs).where(jobs.c.seq.in_(_b("seqs", expanding=True))).values(expired=True, call="", webhook=None)
)
DELETE_PAYLOADS = sa.delete(payloads).where(payloads.c.job.in_(_b("seqs", expanding=True)))
DELETE_EVENTS = sa.delete(events).where(events.c.job.in_(_b("seqs", expanding=True)))
OLD_TOMBSTONES = (
    sa.select(jobs.c.seq, jobs.c.id).where(done, jobs.c.expired, jobs.c.finished_at <= _b("before")).limit(_b("count"))
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
