"""Engines without work: unloaded after a while, and loaded again by whatever wants a picture."""

import asyncio
import base64
import dataclasses
import json
import time
from pathlib import Path

import psutil
import pytest
from websockets.sync.client import connect

from server.workers.idle import IdleUnload
from server.workers.pool import State
from tests.support.server_process import APP, CALL, is_running, post, serving, until
from tests.workers.test_pool import pid_of, pool_of, restarts, started, work
from tests.workers.test_pool import until as soon

AFTER_S = 0.1
BEACH = Path(__file__).parents[2] / "server" / "static" / "beach.jpg"


def idle_pool(*devices, **options):
    return pool_of(*devices, idle_unload_s=AFTER_S, **options)


def states(pool):
    return [engine["state"] for engine in pool.engines]


@pytest.mark.anyio
async def test_an_engine_without_work_ends_and_the_next_request_starts_another():
    async with idle_pool() as pool:
        before = pid_of(pool)
        await soon(lambda: pool.state is State.UNLOADED)
        await soon(lambda: not psutil.pid_exists(before))
        capacity, detail = pool.capacity, pool.detail
        answer = await pool.run(work("a"))

        assert (answer.id, pid_of(pool) not in {None, before}) == ("a", True)

    assert capacity > 0  # so that jobs of the queue are claimed, which wake it
    assert "the next call loads it again" in detail


@pytest.mark.anyio
async def test_an_unload_is_no_end_that_counts():
    async with idle_pool() as pool:
        for name in ("a", "b", "c"):
            await soon(lambda: pool.state is State.UNLOADED)
            await pool.run(work(name))
        supervisor = pool._supervisors[0]

        assert (restarts(pool), supervisor.failing) == ([0], False)


@pytest.mark.anyio
async def test_an_engine_that_was_woken_once_stays_unloaded_the_next_time():
    async with idle_pool() as pool:
        for name in ("a", "b"):
            await pool.run(work(name))
            await soon(lambda: pool.state is State.UNLOADED and pid_of(pool) is None)
        await asyncio.sleep(2 * AFTER_S)

        assert (pool.state, pid_of(pool)) == (State.UNLOADED, None)


@pytest.mark.anyio
async def test_a_request_that_comes_while_the_engine_exits_waits_for_the_next():
    async with idle_pool() as pool:
        before = pid_of(pool)
        await soon(lambda: pool.state is State.UNLOADED)
        still = pid_of(pool)
        answer = await pool.run(work("a"))

        assert (still, answer.id, restarts(pool)) == (before, "a", [0])


@pytest.mark.anyio
async def test_an_engine_at_work_is_not_unloaded():
    async with idle_pool() as pool:
        [running] = await started(pool, work("slow", prompt="slow", num_inference_steps=100))
        await running
        at_the_end = pool.state

    assert at_the_end is State.READY


@pytest.mark.anyio
async def test_without_the_setting_an_engine_stays():
    async with pool_of() as pool:
        await asyncio.sleep(2 * AFTER_S)

        assert pool.state is State.READY


@pytest.mark.anyio
async def test_one_request_wakes_one_of_two_engines():
    async with idle_pool("a", "b") as pool:
        await soon(lambda: states(pool) == [State.UNLOADED] * 2)
        [running] = await started(pool, work("slow", prompt="slow", num_inference_steps=20))
        awake = states(pool)
        await running

    assert awake == [State.READY, State.UNLOADED]


@pytest.mark.anyio
async def test_what_one_engine_has_no_room_for_wakes_the_other():
    async with idle_pool("a", "b") as pool:
        await soon(lambda: states(pool) == [State.UNLOADED] * 2)
        answers = await asyncio.gather(*(pool.run(work(number, prompt="slow")) for number in range(40)))

        assert (len(answers), State.UNLOADED in states(pool)) == (40, False)


@pytest.mark.anyio
async def test_an_unloaded_device_is_what_a_request_gets_when_the_other_is_broken():
    async with idle_pool("cpu", "absent") as pool:
        await soon(lambda: states(pool) == [State.UNLOADED, State.SETUP_FAILED])
        answer = await pool.run(work("a"))

    assert answer.id == "a"


@pytest.mark.anyio
async def test_closing_while_unloaded_ends_at_once():
    async with idle_pool() as pool:
        await soon(lambda: pool.state is State.UNLOADED and pid_of(pool) is None)
        began = time.monotonic()
        await pool.close(10)

    assert time.monotonic() - began < 1


@dataclasses.dataclass(eq=False)
class Device:
    """A supervisor, as far as waking goes."""

    state: State
    capacity: int = 4
    failing: bool = False

    def wake(self):
        self.state = State.STARTING


@dataclasses.dataclass
class Waiting:
    """A dispatcher with only waiting requests: whether each is large."""

    waiting: list

    def count(self, supervisor):
        return 1

    @classmethod
    def of(cls, plain, large):
        return cls([type("Request", (), {"large": each < large})() for each in range(plain + large)])


ASLEEP = State.UNLOADED


@pytest.mark.parametrize(
    ("devices", "waiting", "awake"),
    [
        ([Device(ASLEEP), Device(ASLEEP)], (0, 0), 0),
        ([Device(ASLEEP), Device(ASLEEP), Device(ASLEEP)], (5, 0), 2),
        ([Device(State.STARTING), Device(ASLEEP)], (4, 0), 0),
        ([Device(State.STARTING, failing=True), Device(ASLEEP)], (1, 0), 1),
        ([Device(State.DEFUNCT), Device(ASLEEP)], (0, 1), 1),
        ([Device(State.READY), Device(ASLEEP)], (0, 9), 0),
        ([Device(State.READY), Device(ASLEEP)], (1, 0), 1),
    ],
)
def test_as_many_engines_are_woken_as_waiting_requests_need(devices, waiting, awake):
    before = sum(device.state is ASLEEP for device in devices)

    IdleUnload(devices, Waiting.of(*waiting), 60.0).look()

    assert before - sum(device.state is ASLEEP for device in devices) == awake


# --- a whole server ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """A server of two engines without a model; idle ones are unloaded after half a second."""
    flags = ("--model", "instant+jpeg", "--device", "cpu,cpu", "--idle-unload", "0.01")
    with serving(*flags, data_dir=tmp_path_factory.mktemp("idle")) as running:
        yield running


def unloaded(server):
    """Wait until no engine process is left, and return what `/health` says then."""
    until(lambda: not engine_processes(server))
    until(lambda: not any(engine["pid"] for engine in server.get("/health")["engines"]))  # the server has noticed
    return server.get("/health")


def engine_processes(server):
    return [child.pid for child in psutil.Process(server.pid).children() if is_running(child.pid)]


def by_run(server):
    return post(server, f"/run/{APP}")


def by_queue(server):
    path = f"/queue/{APP}/requests/{post(server, f'/queue/{APP}')['request_id']}"
    until(lambda: server.get(f"{path}/status")["status"] == "COMPLETED")
    return server.get(path)


def by_realtime(server):
    picture = "data:image/jpeg;base64," + base64.b64encode(BEACH.read_bytes()).decode()
    with connect(f"ws://{server.host}/run/{APP}/realtime", max_size=None) as socket:
        socket.send(json.dumps(CALL | {"image_url": picture}))
        return json.loads(socket.recv(timeout=60))


@pytest.mark.parametrize("way", [by_run, by_queue, by_realtime])
def test_every_way_to_a_picture_loads_an_unloaded_model(server, way):
    health, ready = unloaded(server), server.get("/ready")["state"]

    answer = way(server)

    assert (health["state"], ready) == ("UNLOADED", "UNLOADED")
    assert [engine["pid"] for engine in health["engines"]] == [None, None]
    assert len(answer["images"]) == 1
    assert [engine["restarts"] for engine in server.get("/health")["engines"]] == [0, 0]


@pytest.mark.long
def test_the_built_in_model_gives_its_memory_back_and_makes_the_same_picture_again(tmp_path):
    flags = ("--model", "demo", "--max-batch", "1", "--idle-unload", "0.02")
    with serving(*flags, data_dir=tmp_path) as running:
        first = post(running, f"/run/{APP}")["images"][0]["url"]
        until(lambda: not engine_processes(running))

        assert post(running, f"/run/{APP}")["images"][0]["url"] == first


def test_a_server_is_stopped_while_its_model_is_unloaded(tmp_path):
    with serving("--model", "instant", "--idle-unload", "0.01", data_dir=tmp_path) as running:
        unloaded(running)
        began = time.monotonic()

        assert running.stop() == 0
        assert time.monotonic() - began < 5
