"""The pool, with real engine processes: killed, stopped, given poison requests, broken."""

import asyncio
import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from pipelines.messages import EngineConfig, Generated, GenerationParams, Log, Preview, Priority, Started, Work
from server.fal.errors import InvalidInput, RequestError
from server.workers.launch import ENVIRONMENT
from server.workers.pending import RerunLimits
from server.workers.pool import COMMAND, Pool, State
from server.workers.process import ProcessTimes
from server.workers.supervisor import RestartPolicy
from tests.support.server_process import clean_env, is_running

WAIT_S = 30.0
FAULTY = (sys.executable, "-P", str(Path(__file__).parents[1] / "support" / "faulty_engine.py"))

# Steps of a request that does not end before it is cancelled.
FOREVER = 100_000


def work(request_id, *, priority=Priority.RUN, tenant="", previews=False, **params):
    params = GenerationParams(**{"prompt": "", "seed": 1} | params)
    return Work(
        id=str(request_id), params=params, image=b"picture", priority=priority, tenant=tenant, previews=previews
    )


@contextlib.asynccontextmanager
async def pool_of(*devices, model="instant", command=FAULTY, ready=True, **options):
    """Start a pool and wait until it is ready, unless `ready` is false; end its engines afterwards."""
    pool = Pool(EngineConfig(model=model, data_dir=""), devices or ("cpu",), command=command, **options)
    await pool.start()
    try:
        async with asyncio.timeout(WAIT_S):
            if ready:
                await until(lambda: pool.state is State.READY)
            yield pool
    finally:
        await pool.close(0)


async def started(pool, *works):
    """Return the tasks of these requests, once each is on a device."""
    events = [asyncio.Event() for _ in works]
    tasks = [
        asyncio.create_task(pool.run(one, lambda said, event=event: isinstance(said, Started) and event.set()))
        for one, event in zip(works, events, strict=True)
    ]
    await asyncio.gather(*(event.wait() for event in events))
    return tasks


async def until(condition):
    """Return when the condition holds. Processes give no event to wait for."""
    while not condition():  # noqa: ASYNC110
        await asyncio.sleep(0.005)


def pid_of(pool, number=0):
    return pool.engines[number]["pid"]


def restarts(pool):
    return [engine["restarts"] for engine in pool.engines]


@pytest.mark.anyio
async def test_engines_start_behind_a_pool_that_answers_at_once():
    async with pool_of("a", "b", ready=False) as pool:
        at_first = pool.state, [engine["state"] for engine in pool.engines]
        await until(lambda: pool.state is State.READY)

    assert at_first == (State.STARTING, [State.STARTING, State.STARTING])


@pytest.mark.anyio
async def test_health_knows_each_engine():
    async with pool_of(command=COMMAND) as pool:
        engines = pool.engines
        os.kill(engines[0]["pid"], 0)
        notice = pool.notice

    pid = engines[0]["pid"]
    told = {"restarts": 0, "graphs_failed": False, "model": "instant", "dtype": "none", "torch": ""}
    assert engines == [{"device": "cpu", "pid": pid, "state": "READY", **told}]
    assert "test picture" in notice


@pytest.mark.anyio
async def test_a_request_is_answered_and_heard_of_on_the_way():
    heard = []
    async with pool_of() as pool:
        answer = await pool.run(work("a", num_images=2, previews=True), heard.append)

    assert (answer.id, len(answer.pictures)) == ("a", 2)
    assert [type(event) for event in heard[:2]] == [Started, Log]
    assert {type(event) for event in heard[2:]} == {Preview}


@pytest.mark.anyio
async def test_requests_that_come_before_the_engine_is_ready_wait_for_it():
    async with pool_of(ready=False) as pool:
        answers = await asyncio.gather(*(pool.run(work(number)) for number in range(40)))

    assert [answer.id for answer in answers] == [str(number) for number in range(40)]


@pytest.mark.anyio
async def test_who_asks_for_the_loaded_model_too_early_waits_for_it():
    async with pool_of(ready=False) as pool:
        assert (await pool.loaded_model()).startswith("instant")


@pytest.mark.anyio
async def test_a_model_that_can_not_be_loaded_is_none():
    async with pool_of("absent", ready=False) as pool:
        assert await pool.loaded_model() == ""


@pytest.mark.anyio
async def test_a_model_that_loads_for_too_long_is_a_startup_timeout():
    async with pool_of("loading", ready=False, start_timeout_s=0.1) as pool:
        with pytest.raises(RequestError) as refused:
            await pool.loaded_model()

    assert refused.value.error_type == "startup_timeout"


@pytest.mark.anyio
async def test_requests_do_not_wait_longer_than_the_start_timeout():
    async with pool_of("loading", ready=False, start_timeout_s=0.1) as pool:
        with pytest.raises(RequestError) as refused:
            await pool.run(work("a"))

    assert (refused.value.status, refused.value.error_type) == (504, "startup_timeout")


@pytest.mark.anyio
async def test_without_a_model_requests_are_refused_with_the_hint():
    async with pool_of("absent", ready=False) as pool:
        await until(lambda: pool.state is State.SETUP_FAILED)
        with pytest.raises(RequestError) as refused:
            await pool.run(work("a"))

    assert (refused.value.status, refused.value.error_type) == (503, "runner_scheduling_failure")
    assert refused.value.body["detail"] == "There is no model. Bring one. Then start the server again."


@pytest.mark.anyio
async def test_requests_that_wait_for_a_model_that_can_not_be_loaded_are_refused():
    async with pool_of("absent", ready=False) as pool:
        with pytest.raises(RequestError) as refused:
            await pool.run(work("a"))

    assert refused.value.error_type == "runner_scheduling_failure"


@pytest.mark.anyio
async def test_a_device_that_keeps_failing_is_taken_out_and_the_others_carry_on():
    async with pool_of("dying", "good", restarts=RestartPolicy(failures=3)) as pool:
        while pool.engines[0]["state"] != State.DEFUNCT:
            answer = await pool.run(work("a"))

        assert isinstance(answer, Generated)
        assert [engine["state"] for engine in pool.engines] == [State.DEFUNCT, State.READY]
        assert pool.state is State.READY


@pytest.mark.anyio
async def test_when_every_device_is_out_requests_are_refused():
    async with pool_of("dying", ready=False, restarts=RestartPolicy(failures=2)) as pool:
        with pytest.raises(RequestError) as refused:
            await pool.run(work("a"))
        state = pool.state

    assert state is State.DEFUNCT
    assert refused.value.error_type == "runner_scheduling_failure"
    # Which status is sometimes lost to a race in asyncio's own child watcher; the server runs on uvloop's.
    assert "has ended 2 times in a row, the last time because it exited with status" in refused.value.body["detail"]


@pytest.mark.anyio
async def test_a_device_that_was_out_comes_back():
    async with pool_of(restarts=RestartPolicy(failures=1, defunct_pause_s=0.0)) as pool:
        os.kill(pid_of(pool), signal.SIGKILL)
        await until(lambda: pool.state is State.DEFUNCT)
        await until(lambda: pool.state is State.READY)
        answer = await pool.run(work("a"))

    assert isinstance(answer, Generated)


@pytest.mark.anyio
async def test_requests_in_flight_on_an_engine_that_is_killed_are_run_again():
    async with pool_of(model="instant:100") as pool:
        tasks = await started(pool, *(work(number) for number in range(8)))
        late = [asyncio.create_task(pool.run(work(number))) for number in range(8, 40)]
        os.kill(pid_of(pool), signal.SIGKILL)
        answers = await asyncio.gather(*tasks, *late)

        assert [answer.id for answer in answers] == [str(number) for number in range(40)]
        assert restarts(pool) == [1]


@pytest.mark.anyio
async def test_an_engine_that_is_still_being_reaped_is_sent_nothing():
    async with pool_of("one", "two", times=ProcessTimes(last_messages_s=2 * WAIT_S)) as pool:
        await until(lambda: all(engine["state"] == State.READY for engine in pool.engines))
        dead = pid_of(pool)
        await pool.run(work("a", prompt="child"))
        os.kill(dead, signal.SIGKILL)
        try:
            await until(lambda: pool.engines[0]["state"] != State.READY)
            answers = await asyncio.gather(*(pool.run(work(number)) for number in range(8)))
        finally:
            os.killpg(dead, signal.SIGKILL)  # the child, which would keep the socket open

        assert all(isinstance(answer, Generated) for answer in answers)


@pytest.mark.anyio
async def test_a_request_hears_that_it_is_run_again():
    heard = []
    async with pool_of(model="instant:200") as pool:
        task = asyncio.create_task(pool.run(work("a"), heard.append))
        await until(lambda: heard)
        os.kill(pid_of(pool), signal.SIGKILL)
        await task

    assert [event.level for event in heard if isinstance(event, Log)].count("WARN") == 1
    assert sum(isinstance(event, Started) for event in heard) == 2


@pytest.mark.anyio
async def test_who_hears_that_a_request_is_run_again_finds_all_of_them_waiting():
    waiting = []

    def hear(event):
        if isinstance(event, Log) and event.level == "WARN":
            waiting.append(sorted(pending.work.id for pending in pool._dispatcher.waiting))

    async with pool_of() as pool:
        tasks = [asyncio.create_task(pool.run(work(name, num_inference_steps=FOREVER), hear)) for name in "ab"]
        await until(lambda: pool._dispatcher.assigned)
        os.kill(pid_of(pool), signal.SIGKILL)
        await until(lambda: len(waiting) == 2)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    assert waiting == [["a", "b"]] * 2


@pytest.mark.parametrize("busy", [False, True])
@pytest.mark.anyio
async def test_a_stopped_engine_is_noticed_and_replaced(busy):
    async with pool_of(model="instant:50", patience_s=2.0) as pool:
        first = pid_of(pool)
        tasks = await started(pool, work("a")) if busy else []
        os.kill(first, signal.SIGSTOP)
        await until(lambda: restarts(pool) == [1])
        await asyncio.gather(*tasks)
        await until(lambda: pool.state is State.READY)

        assert pid_of(pool) != first


@pytest.mark.anyio
async def test_a_hung_engine_is_noticed_and_its_request_is_not_tried_for_ever():
    async with pool_of(patience_s=1.5, reruns=RerunLimits(solo_failures=1)) as pool:
        with pytest.raises(RequestError) as failed:
            await pool.run(work("a", prompt="hang"))

        assert (failed.value.status, failed.value.error_type) == (500, "runner_server_error")


@pytest.mark.slow
@pytest.mark.anyio
async def test_a_poison_request_stops_after_three_solo_failures_and_its_neighbours_are_answered():
    async with pool_of(model="instant:20") as pool:
        works = [work(number, prompt="crash" if number == 3 else "") for number in range(8)]
        answers = await asyncio.gather(*map(pool.run, works), return_exceptions=True)

        poison = answers.pop(3)
        assert (poison.status, poison.error_type) == (500, "runner_server_error")
        assert all(isinstance(answer, Generated) for answer in answers)
        # One end in company, which is no solo failure; then three alone.
        assert 3 <= restarts(pool)[0] <= 4


@pytest.mark.anyio
async def test_an_end_in_company_is_no_solo_failure():
    starts = []
    async with pool_of(model="instant:200") as pool:
        first = asyncio.create_task(pool.run(work("first"), starts.append))
        second = asyncio.create_task(pool.run(work("second")))
        for end in range(1, 4):  # the first time with the second one, then twice alone
            await until(lambda end=end: sum(isinstance(event, Started) for event in starts) == end)
            os.kill(pid_of(pool), signal.SIGKILL)
        answers = await asyncio.gather(first, second)

    assert [answer.id for answer in answers] == ["first", "second"]


@pytest.mark.anyio
async def test_engines_that_send_nonsense_are_replaced():
    async with pool_of("garbled", ready=False, restarts=RestartPolicy(failures=2)) as pool:
        await until(lambda: pool.state is State.DEFUNCT)

        assert "because it sent an invalid message" in pool.detail


@pytest.mark.anyio
async def test_requests_for_engines_that_can_not_be_started_are_refused_with_the_reason():
    async with pool_of(ready=False, command=("/nowhere/python",), restarts=RestartPolicy(failures=2)) as pool:
        with pytest.raises(RequestError) as refused:
            await pool.run(work("a"))

    assert refused.value.error_type == "runner_scheduling_failure"
    assert "it could not be started (No such file or directory: /nowhere/python)" in refused.value.body["detail"]


@pytest.mark.anyio
async def test_a_bad_picture_is_the_callers_fault():
    async with pool_of(model="instant+jpeg", command=COMMAND) as pool:
        with pytest.raises(InvalidInput) as refused:
            await pool.run(work("a"))

    (item,) = refused.value.body["detail"]
    assert (item["loc"], item["type"]) == (["body", "image_url"], "unsupported_image_format")
    assert item["ctx"] == {"supported_formats": ["jpeg", "png", "webp", "avif", "gif", "bmp", "tiff"]}


@pytest.mark.parametrize("prompt", ["raise", "nan", "huge"])
@pytest.mark.anyio
async def test_an_engine_that_fails_on_a_request_is_no_end_of_it(prompt):
    async with pool_of() as pool:
        with pytest.raises(RequestError) as failed:
            await pool.run(work("a", prompt=prompt))
        answer = await pool.run(work("b"))

        assert failed.value.error_type == "runner_server_error"
        assert isinstance(answer, Generated)
        assert restarts(pool) == [0]


@pytest.mark.anyio
async def test_cancelling_the_caller_stops_the_request_on_the_device():
    async with pool_of() as pool:
        (task,) = await started(pool, work("a", prompt="slow", num_inference_steps=FOREVER))
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        namesake = await pool.run(work("a"))  # starts only when the engine has dropped the first one

    assert namesake.id == "a"


@pytest.mark.anyio
async def test_a_request_cancelled_while_it_waits_never_starts():
    async with pool_of(ready=False) as pool:
        heard = []
        task = asyncio.create_task(pool.run(work("a"), heard.append))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await pool.run(work("b"))

    assert heard == []


@pytest.mark.anyio
async def test_the_least_loaded_engine_is_next():
    heard = []
    async with pool_of("one", "two", model="instant:50") as pool:
        await until(lambda: all(engine["state"] == State.READY for engine in pool.engines))
        await asyncio.gather(*(pool.run(work(number), heard.append) for number in range(10)))

    devices = [event.message for event in heard if isinstance(event, Log)]
    assert sorted(devices) == ["one"] * 5 + ["two"] * 5


@pytest.mark.anyio
async def test_an_urgent_request_is_not_kept_waiting_by_a_full_engine():
    async with pool_of() as pool:
        background = [
            asyncio.create_task(
                pool.run(work(number, prompt="slow", priority=Priority.LOW, num_inference_steps=FOREVER))
            )
            for number in range(40)
        ]
        await until(lambda: pool.state is State.BUSY)
        frame = await pool.run(work("frame", priority=Priority.REALTIME))
        for task in background:
            task.cancel()

    assert isinstance(frame, Generated)


@pytest.mark.anyio
async def test_a_call_is_not_kept_waiting_by_the_frames_with_which_another_tenant_fills_the_engine():
    async with pool_of() as pool:
        flood = [
            asyncio.create_task(
                pool.run(
                    work(number, prompt="slow", priority=Priority.REALTIME, tenant="flood", num_inference_steps=FOREVER)
                )
            )
            for number in range(40)
        ]
        await until(lambda: pool.state is State.BUSY)
        answer = await pool.run(work("call", tenant="another"))
        for task in flood:
            task.cancel()

    assert isinstance(answer, Generated)


@pytest.mark.anyio
async def test_a_listener_that_fails_fails_its_own_request():
    def listener(event):
        raise LookupError(event.id)

    async with pool_of() as pool:
        with pytest.raises(LookupError, match="a"):
            await pool.run(work("a"), listener)
        answer = await pool.run(work("b"))

        assert isinstance(answer, Generated)
        assert restarts(pool) == [0]


@pytest.mark.anyio
async def test_closing_lets_running_requests_finish_and_ends_the_engines():
    pool = Pool(EngineConfig(model="instant:100", data_dir=""), ["a", "b"], command=FAULTY)
    await pool.start()
    await until(lambda: pool.state is State.READY)
    pids = [engine["pid"] for engine in pool.engines]
    tasks = [asyncio.create_task(pool.run(work(number))) for number in range(20)]
    await asyncio.sleep(0)
    await pool.close(WAIT_S)

    answers = await asyncio.gather(*tasks)
    assert all(isinstance(answer, Generated) for answer in answers)
    assert not any(map(is_running, pids))


@pytest.mark.anyio
async def test_closing_does_not_wait_for_ever():
    pool = Pool(EngineConfig(model="instant", data_dir=""), ["a"], command=FAULTY)
    await pool.start()
    await until(lambda: pool.state is State.READY)
    (task,) = await started(pool, work("a", prompt="hang"))
    await pool.close(0.05)

    with pytest.raises(RequestError) as ended:
        await task
    with pytest.raises(RequestError) as refused:
        await pool.run(work("b"))
    assert ended.value.error_type == "runner_disconnected"
    assert refused.value.error_type == "runner_scheduling_failure"


@pytest.mark.anyio
async def test_keys_do_not_reach_engine_processes(monkeypatch):
    monkeypatch.setenv("FOURSTEP_KEYS", "id:canary")
    async with pool_of() as pool:
        environment = psutil.Process(pid_of(pool)).environ()

    assert "canary" not in str(environment)
    assert environment["HF_HUB_DISABLE_TELEMETRY"] == "1"


HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")


@pytest.mark.skipif(
    not HUGE_PAGES.exists() or "[never]" in HUGE_PAGES.read_text(), reason="this system has no large pages to give"
)
def test_torch_s_memory_in_an_engine_process_is_of_large_pages():
    program = "import pathlib, torch; x = torch.ones(2**25); print(pathlib.Path('/proc/self/smaps_rollup').read_text())"

    done = subprocess.run(
        [sys.executable, "-c", program], env={**os.environ, **ENVIRONMENT}, capture_output=True, text=True, check=True
    )

    kilobytes = int(re.search(r"AnonHugePages:\s+(\d+) kB", done.stdout)[1])
    assert kilobytes > 100_000  # of 131 072


SERVER = f"""
import asyncio
from pipelines.messages import EngineConfig
from server.workers.pool import Pool, State

async def main():
    pool = Pool(EngineConfig(model="instant", data_dir=""), ["a", "b"], command={FAULTY!r})
    await pool.start()
    while any(engine["state"] != State.READY for engine in pool.engines):
        await asyncio.sleep(0.01)
    print(*(engine["pid"] for engine in pool.engines), flush=True)
    await asyncio.Event().wait()

asyncio.run(main())
"""


STOPPED = pytest.param(
    True,
    marks=pytest.mark.skipif(
        sys.platform != "linux", reason="other systems do not end a stopped process with its parent"
    ),
)


@pytest.mark.parametrize("stopped", [False, STOPPED])
def test_no_engine_outlives_a_killed_server(stopped):
    with subprocess.Popen([sys.executable, "-P", "-c", SERVER], stdout=subprocess.PIPE, env=clean_env()) as server:
        pids = [int(word) for word in server.stdout.readline().split()]
        if stopped:
            os.kill(pids[0], signal.SIGSTOP)
        server.kill()

    deadline = time.monotonic() + WAIT_S
    while any(map(is_running, pids)) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert len(pids) == 2
    assert not any(map(is_running, pids))


@pytest.mark.anyio
async def test_calls_are_counted_apart_from_jobs_whether_they_run_or_wait():
    async with pool_of("cpu", model="instant:200") as pool:
        priorities = [Priority.REALTIME, Priority.RUN, Priority.NORMAL, Priority.LOW] * 9  # more than an engine takes
        runs = [asyncio.create_task(pool.run(work(f"{n}", priority=each))) for n, each in enumerate(priorities)]
        await until(lambda: len(pool._ids) == len(runs))
        during = pool.calls
        for run in runs:
            run.cancel()
        await until(lambda: pool.calls == 0)

    assert during == 18


@pytest.mark.anyio
async def test_a_pool_without_devices_is_well_and_does_nothing():
    pool = Pool(EngineConfig(model="instant", data_dir=""), ())
    await pool.start()

    assert (pool.state, pool.engines, pool.capacity) == (State.READY, [], 0)
    assert await pool.loaded_model() == ""
    with pytest.raises(RequestError, match="This box has no engine") as refused:
        await pool.run(work("one"))
    assert refused.value.status == 503
    await pool.close(0)
