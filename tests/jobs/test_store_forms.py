"""The forms of the store mean the same: random sequences of operations on each, every answer compared."""

import asyncio
import time
from types import SimpleNamespace

import pytest
from hypothesis import HealthCheck, Phase, assume, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, multiple, rule, run_state_machine_as_test

from pipelines.messages import Priority
from server.jobs.job import LogLine, NewJob, Result
from server.jobs.store import Busy
from tests.jobs.forms import PostgresForm, SQLiteForm

OWNERS = ("a", "b", "c")
owners = st.lists(st.sampled_from(OWNERS), unique=True, max_size=2)
results = st.sampled_from([Result.success({"seed": 1}), Result(500, b"{}", {"x": "y"}, "failed", "internal_error")])
LOGS = (LogLine(1.0, "INFO", "first"), LogLine(2.0, "WARN", "second"))
WORKERS = 2

# No sum of the steps comes near to what is waited for: a lease, the grace of claims, start timeouts, delays, ages.
STEPS_S = (16.0, 100.0)
START_TIMEOUT_S, DELAY_S, AGE_S = 24.0, 8.0, 40.0


def same(answers):
    """Return what all forms have answered, each in its own numbers of rows."""
    first, second = map(comparable, answers)
    assert first == second
    return answers


def comparable(answer):
    """Return an answer without what forms may choose: row numbers; and times, which pass between two calls."""
    match answer:
        case list() | tuple():
            return [comparable(each) for each in answer]
        case dict():
            return {key: comparable(value) for key, value in answer.items()}
        case float():
            return round(answer / 4)
        case _ if hasattr(answer, "__struct_fields__"):
            fields = {name: getattr(answer, name) for name in answer.__struct_fields__}
            for name in ("seq", "submitted_at", "start_by", "at"):
                fields.pop(name, None)
            if type(answer).__name__ in {"Job", "Webhook"}:
                fields.pop("store_io", None)
                fields["id"] = getattr(answer, "request_id", answer.id)
            return comparable(fields)
        case _:
            return answer


class Forms(RuleBasedStateMachine):
    """The same on SQLite and on PostgreSQL. Bundles hold pairs: what each form has answered."""

    ids = Bundle("ids")
    claims = Bundle("claims")
    webhooks = Bundle("webhooks")

    shared = SimpleNamespace()  # the two forms and the loop on which they run, opened once

    def __init__(self):
        super().__init__()
        self._run = self.shared.runner.run
        self._known = []
        self._run(self._begin())

    async def _begin(self):
        sqlite, postgres = self.shared.sqlite, self.shared.postgres
        await sqlite.empty()
        await postgres.empty()
        self._forms = (sqlite, postgres)
        self._stores = [[form.worker() for form in self._forms] for _ in range(WORKERS)]

    def _all(self, operation, *per_form):
        """Call `operation(form number, *what it answered)` on each form, and compare."""

        async def call():
            self.shared.sqlite.follow()
            return [await operation(number, *(each[number] for each in per_form)) for number in range(2)]

        return tuple(same(self._run(call())))

    @rule(
        target=ids,
        owner=st.sampled_from(OWNERS),
        priority=st.sampled_from([Priority.NORMAL, Priority.LOW]),
        warning=st.sampled_from(["", "warned"]),
        timed=st.booleans(),
        hooked=st.booleans(),
        stored=st.booleans(),
        result=st.sampled_from([None, None, None, None, Result.success({"seed": 2})]),
    )
    def submit(self, owner, priority, warning, timed, hooked, stored, result):  # noqa: PLR0917 - by name
        wish = NewJob(
            app="a/b",
            input=b"{}",
            owner=owner,
            call={"a": 1},
            priority=priority,
            warning=warning,
            start_timeout=START_TIMEOUT_S if timed else None,
            webhook="http://u:p@Host:8/hook" if hooked else None,
            store_io=stored,
            result=result,
        )
        self._known.append(wish)
        self._all(lambda form: self._stores[0][form].submit(wish))
        return wish.id

    @rule(data=st.data())
    def submit_again(self, data):
        assume(self._known)
        wish = data.draw(st.sampled_from(self._known))
        self._all(lambda form: self._stores[0][form].submit(wish))

    @rule(
        target=claims,
        worker=st.integers(0, WORKERS - 1),
        count=st.integers(1, 3),
        after=st.just([]) | owners,
        without=st.just([]) | owners,
    )
    def claim(self, worker, count, after, without):
        jobs = self._all(
            lambda form: self._stores[worker][form].claim(count, after_others=after, without=without),
        )
        return multiple(*((worker, pair) for pair in zip(*jobs, strict=True)))

    @rule(
        target=claims,
        worker=st.integers(0, WORKERS - 1),
        count=st.integers(1, 3),
        waited_s=st.sampled_from([8.0, 40.0]),
        without=st.just([]) | owners,
    )
    def claim_old(self, worker, count, waited_s, without):
        jobs = self._all(
            lambda form: self._stores[worker][form].claim_old(count, waited_s=waited_s, without=without),
        )
        return multiple(*((worker, pair) for pair in zip(*jobs, strict=True)))

    @rule(claim=claims, result=results, logs=st.sampled_from([(), LOGS[:1], LOGS]))
    def finish(self, claim, result, logs):
        worker, jobs = claim
        self._all(lambda form, job: self._stores[worker][form].finish(job, result, logs, 0.5), jobs)

    @rule(claim=claims, refund=st.booleans(), delay_s=st.sampled_from([0.0, DELAY_S]))
    def release(self, claim, refund, delay_s):
        worker, jobs = claim
        self._all(lambda form, job: self._stores[worker][form].release(job, refund=refund, delay_s=delay_s), jobs)
        self._all(lambda form: self._stores[1 - worker][form].claim(1))

    @rule(worker=st.integers(0, WORKERS - 1), running=st.lists(claims, max_size=3))
    def heartbeat(self, worker, running):
        mine = [jobs for by, jobs in running if by == worker]

        async def beat(form):
            held = await self._stores[worker][form].heartbeat([jobs[form] for jobs in mine])
            return dict(held.fences), sorted(held.requeued)

        self._all(beat)

    @rule(worker=st.integers(0, WORKERS - 1))
    def take_over(self, worker):
        """A worker that runs nothing: what it has claimed, or others have, is put back and claimed again in time."""
        self.forward(STEPS_S[worker])
        self.heartbeat(worker, [])
        self._all(lambda form: self._stores[worker][form].claim(3))

    @rule(request_id=ids, logs=st.sampled_from([(), LOGS]))
    def cancel(self, request_id, logs):
        self._all(lambda form: self._stores[0][form].cancel(request_id, logs))

    @rule(result=results)
    def end_overdue(self, result):
        async def end(form):
            return sorted(await self._stores[0][form].end_overdue(result))

        self._all(end)

    @rule(seconds=st.sampled_from(STEPS_S))
    def forward(self, seconds):
        self._all(lambda form: self._forms[form].forward(seconds))

    @rule(older_s=st.sampled_from([0.0, AGE_S]), count=st.integers(1, 3), owner=st.none() | st.sampled_from(OWNERS))
    def expire(self, older_s, count, owner):
        self._all(lambda form: self._stores[0][form].expire(older_s, count, owner))

    @rule(request_id=ids, private=st.booleans())
    def wipe(self, request_id, private):
        def wipe(form):
            store = self._stores[0][form]
            return store.wipe_private(request_id) if private else store.wipe(request_id)

        self._all(wipe)

    @rule(older_s=st.sampled_from([0.0, AGE_S]))
    def delete_tombstones(self, older_s):
        self._all(lambda form: self._stores[0][form].delete_tombstones(older_s, 100))

    @rule(target=webhooks, count=st.integers(1, 3), busy=st.booleans())
    def due(self, count, busy):
        which = Busy(owners=["a"]) if busy else Busy()
        found = self._all(lambda form: self._forms[form].outbox.due(count, which))
        self._all(lambda form: self._forms[form].outbox.next_due_in(which))
        return multiple(*zip(*found, strict=True))

    @rule(pair=consumes(webhooks), delivered=st.booleans())
    def attempted(self, pair, delivered):
        def record(form, webhook):
            outbox = self._forms[form].outbox
            return outbox.done(webhook) if delivered else outbox.failed(webhook, START_TIMEOUT_S)

        self._all(record, pair)

    @rule()
    def bytes_by_owner(self):
        async def sizes(form):
            store = self._stores[0][form]
            return [{k: v for k, v in (await of()).items() if v} for of in (store.input_bytes, store.result_bytes)]

        self._all(sizes)

    def teardown(self):
        """Whatever the sequence was: take over and let go of all that there is, and read each job."""
        self.bytes_by_owner()
        self._all(lambda form: self._stores[0][form].claim(9))
        for worker in range(WORKERS):
            self.take_over(worker)
        self._all(lambda form: self._forms[form].outbox.due(9))
        self._all(lambda form: self._stores[0][form].expire(0.0, 9))
        self.bytes_by_owner()
        for wish in self._known:
            self._all(lambda form, wish=wish: self._stores[0][form].load(wish.id))
            self._all(lambda form, wish=wish: self._stores[1][form].result(wish.id))


class LiveSQLite(SQLiteForm):
    """Its time passes as PostgreSQL's does."""

    def follow(self):
        moved, self._seen = time.monotonic() - self._seen, time.monotonic()
        self.now += moved

    async def empty(self):
        self._seen = time.monotonic()
        await self.close()
        self.path.unlink()
        self._open()


class ReusedPostgres(PostgresForm):
    """Emptied, which is faster than a new database."""

    async def empty(self):
        await self.execute("TRUNCATE jobs, payloads, events, outbox, objects")


@pytest.fixture
def forms(tmp_path, postgres):
    with asyncio.Runner() as runner:
        Forms.shared.runner = runner
        Forms.shared.sqlite = LiveSQLite(tmp_path)
        Forms.shared.postgres = runner.run(ReusedPostgres(postgres).open())
        yield Forms
        for form in (Forms.shared.sqlite, Forms.shared.postgres):
            runner.run(form.close())


@pytest.mark.slow
def test_both_forms_answer_the_same(forms):
    chosen = settings(
        max_examples=20,
        stateful_step_count=50,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        database=None,
        phases=[Phase.generate],  # an example takes a second, and shrinking one an hour
    )
    run_state_machine_as_test(forms, settings=chosen)
