"""One engine process: it is reaped, also when its starter is cancelled."""

import asyncio
import os
import subprocess
import sys

import psutil
import pytest

from pipelines.messages import EngineConfig
from server.workers.process import EngineProcess, Launch
from tests.workers.test_supervisor import failing

SLEEPING = (sys.executable, "-c", "import time; time.sleep(600)")
READING = (sys.executable, "-c", "import os, sys\nwhile os.read(int(sys.argv[-1]), 4096): pass")


async def start(command=SLEEPING, process=EngineProcess):
    """Start a process that sends nothing."""
    config = EngineConfig(model="instant", data_dir="")
    return await process.start(Launch(command=command, environment=os.environ, patience_s=60.0), config, print)


def children():
    """Return the ids of the processes that this one has started and not reaped."""
    return {child.pid for child in psutil.Process().children()}


@pytest.mark.anyio
async def test_a_process_is_reaped_also_by_a_caller_that_is_cancelled_meanwhile():
    engine = await start()
    reaping = asyncio.create_task(engine.reap())
    await asyncio.sleep(0)
    reaping.cancel()

    with pytest.raises(asyncio.CancelledError):
        await reaping

    with pytest.raises(ProcessLookupError):
        os.kill(engine.pid, 0)


@pytest.mark.anyio
async def test_a_process_that_can_not_be_killed_is_reaped_at_the_end_of_its_stream():
    engine = await start(READING, failing("kill", PermissionError))

    with pytest.raises(PermissionError):
        await engine.reap()

    with pytest.raises(ProcessLookupError):
        os.kill(engine.pid, 0)


@pytest.mark.anyio
async def test_killing_leaves_the_exit_status_to_the_loop(monkeypatch):
    """Who asks for it first gets it, and a loop that comes too late says 255."""
    monkeypatch.setattr(subprocess.Popen, "poll", lambda self: pytest.fail("asked for the status"))
    engine = await start()

    assert await engine.reap() == -9


@pytest.mark.anyio
async def test_a_process_that_has_ended_is_not_killed():
    engine = await start((sys.executable, "-c", "raise SystemExit(76)"))
    await asyncio.wait({engine._exited})

    assert await engine.reap() == 76


@pytest.mark.anyio
async def test_a_process_whose_start_is_cancelled_is_reaped(monkeypatch):
    connecting = asyncio.Event()

    async def connect(*_, **__):
        connecting.set()
        await asyncio.Event().wait()

    before = children()
    monkeypatch.setattr(asyncio.get_running_loop(), "create_unix_connection", connect)
    starting = asyncio.create_task(start())
    await connecting.wait()
    starting.cancel()

    with pytest.raises(asyncio.CancelledError):
        await starting

    assert children() <= before
