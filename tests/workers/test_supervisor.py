"""Ends of an engine, as its supervisor handles them."""

import asyncio
import contextlib
import dataclasses
import errno
import os
import signal

import pytest

from pipelines.messages import Cancelled, EngineConfig
from server.workers.process import EngineProcess, Launch, ProcessTimes
from server.workers.supervisor import Owner, RestartPolicy, State, Supervisor
from tests.workers.test_pool import FAULTY, WAIT_S, pool_of, restarts, until, work


class Planted(Exception):
    """What no step foresees."""


class Listener(Owner):
    """An owner of one supervisor. `fails`: the name of its method that raises, once."""

    def __init__(self, fails=""):
        self.fails = fails
        self.ends = 0

    def on_message(self, supervisor, message):
        self._fail("on_message")

    def on_state_change(self):
        self._fail("on_state_change")

    def on_engine_end(self, supervisor):
        self._fail("on_engine_end")
        self.ends += 1

    def _fail(self, method):
        if self.fails == method:
            self.fails = ""
            raise Planted


def failing(method, error=Planted):
    """Return a class of engines of which this method raises."""

    def fail(*_, **__):
        raise error()

    kind = classmethod(fail) if method == "start" else fail
    return type("Failing", (EngineProcess,), {method: kind})


class NoPause(RestartPolicy):
    """A policy that fails at its own sum."""

    def pause_s(self, ends):
        raise Planted


@contextlib.asynccontextmanager
async def supervised(owner=None, device="cpu", **options):
    """Run a supervisor of faulty engines whose device is DEFUNCT at the second end."""
    options = {"restarts": RestartPolicy(failures=2)} | options
    launch = Launch(command=FAULTY, environment=os.environ, patience_s=options.pop("patience_s", 60.0))
    config = EngineConfig(model="instant", data_dir="", device=device)
    supervisor = Supervisor(config, launch, owner or Listener(), **options)
    task = asyncio.create_task(supervisor.keep_running())
    try:
        async with asyncio.timeout(WAIT_S):
            yield supervisor
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def reap_badly(self):
    """Reap, and raise."""
    await EngineProcess.reap(self)
    raise Planted


STEPS = {
    "start": {"process": failing("start")},
    "send": {"process": failing("send")},
    "wait": {"process": failing("over")},
    "reap": {"process": type("Failing", (EngineProcess,), {"reap": reap_badly}), "device": "dying"},
    "kill": {"process": failing("kill", PermissionError), "device": "dying"},
    "read": {"process": failing("_take")},
    "state change": {"owner": Listener("on_state_change"), "restarts": RestartPolicy(failures=1)},
    "end": {"owner": Listener("on_engine_end"), "device": "dying"},
    "pause": {"restarts": NoPause(), "device": "dying"},
}


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.anyio
async def test_an_exception_that_no_step_foresaw_takes_the_device_out_and_is_said(step):
    async with supervised(**STEPS[step]) as supervisor:
        await until(lambda: supervisor.state is State.DEFUNCT)

    assert "(Planted, see the log)" in supervisor.detail or "PermissionError" in supervisor.detail
    assert "it is tried again every" in supervisor.detail


@pytest.mark.anyio
async def test_an_owner_that_has_failed_at_an_end_is_told_again_and_the_device_comes_back():
    owner = Listener("on_engine_end")
    async with supervised(owner, "dying", restarts=RestartPolicy(failures=9, defunct_pause_s=0.0)) as supervisor:
        await until(lambda: owner.ends > 1)

    assert supervisor.restarts > 0


@pytest.mark.parametrize("code", [errno.EAGAIN, errno.ENOMEM])
@pytest.mark.anyio
async def test_a_process_that_can_not_be_forked_is_tried_again_and_the_reason_said(code):
    failed = failing("start", lambda: OSError(code, os.strerror(code)))
    async with supervised(process=failed) as supervisor:
        await until(lambda: supervisor.state is State.DEFUNCT)

    assert os.strerror(code) in supervisor.detail


@pytest.mark.anyio
async def test_an_engine_whose_message_the_server_can_not_handle_is_replaced():
    owner = Listener("on_message")
    async with supervised(owner, process=type("Talking", (EngineProcess,), {"_take": tell_first})) as supervisor:
        await until(lambda: owner.ends == 1)
        await until(lambda: supervisor.state is State.READY)


def tell_first(self, message):
    """Pass on one message about a request before the first other."""
    self._hear(Cancelled("a"))
    EngineProcess._take(self, message)


@pytest.mark.anyio
async def test_why_a_silent_engine_was_ended_is_said():
    async with supervised(device="loading", patience_s=0.1) as supervisor:
        supervisor._launch = dataclasses.replace(supervisor._launch, times=ProcessTimes(loading_patience_s=0.1))
        await until(lambda: supervisor.state is State.DEFUNCT)

    assert "because it was silent for" in supervisor.detail


@pytest.mark.anyio
async def test_an_engine_without_room_is_tried_again_and_the_operator_told():
    async with pool_of("full", ready=False) as pool:
        # asyncio's own child watcher sometimes loses a status to a race; the next engine ends in the same way.
        await until(lambda: restarts(pool)[0] >= 1 and "not enough memory" in pool.detail)


@pytest.mark.anyio
async def test_weights_that_come_later_are_found_and_the_pool_goes_on_by_itself(tmp_path, caplog):
    caplog.set_level("INFO")
    weights = tmp_path / "weights"
    async with pool_of(f"missing {weights}", ready=False) as pool:
        await until(lambda: pool.state is State.SETUP_FAILED)
        detail, pid = pool.detail, pool.engines[0]["pid"]
        weights.touch()
        await until(lambda: pool.state is State.STARTING)
        starting = pool.detail
        await until(lambda: pool.state is State.READY)
        engine = pool.engines[0]

    looks = "The server looks for it every 5 s and goes on by itself."
    assert detail == f"The weights are missing. Bring them. {looks}"
    assert starting == "The weights are there; starting the engine."
    assert (engine["restarts"], engine["pid"] != pid) == (0, True)
    assert caplog.text.count("can't be loaded") == 1


@pytest.mark.anyio
async def test_an_engine_that_dies_waiting_for_weights_is_replaced(tmp_path):
    async with pool_of(f"missing {tmp_path}/weights", ready=False) as pool:
        await until(lambda: pool.state is State.SETUP_FAILED)
        os.kill(pool.engines[0]["pid"], signal.SIGKILL)
        await until(lambda: pool.state is State.STARTING)
        await until(lambda: pool.state is State.SETUP_FAILED)

        assert restarts(pool) == [1]


@pytest.mark.anyio
async def test_a_device_that_can_not_capture_graphs_does_without_them_and_that_is_said(caplog):
    async with pool_of("uncapturable", "cpu") as pool:
        await until(lambda: all(engine["state"] == "READY" for engine in pool.engines))
        engines, notice = pool.engines, pool.notice

    assert [engine["graphs_failed"] for engine in engines] == [True, False]
    assert notice.count("CUDA graphs can't be captured here") == 1
    assert "test picture" in notice
    assert "its CUDA graphs could not be captured" in caplog.text
    assert "--graphs off" in caplog.text


@pytest.mark.anyio
async def test_graphs_that_fail_while_serving_cost_one_restart():
    async with supervised() as supervisor:
        await until(lambda: supervisor.state is State.READY)
        supervisor.send(work("a", prompt="recapture"))
        await until(lambda: supervisor.restarts == 1 and supervisor.state is State.READY)

    assert supervisor.graphs_failed


def test_pauses_double_up_to_the_longest_until_the_device_is_out():
    policy = RestartPolicy(failures=6, first_pause_s=1.0, longest_pause_s=3.0, defunct_pause_s=60.0)

    assert [policy.pause_s(ends) for ends in range(1, 8)] == [0.0, 1.0, 2.0, 3.0, 3.0, 60.0, 60.0]
