"""What a person sees while a server starts and stops."""

import asyncio
import os
import pty
import re
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from server.cli import progress
from server.workers.pool import State
from tests.support.server_process import clean_env, serving, start_server, submitted, until

FOURSTEP = Path(sys.executable).with_name("fourstep")


def watched(*steps, line_s=10.0):
    """Run `watch` on a pool which goes through these (state, detail), some looks each."""

    async def run():
        pool = SimpleNamespace(state=State.STARTING, detail="")
        task = asyncio.create_task(progress.watch(pool, "human", look_s=0, line_s=line_s))
        for pool.state, pool.detail in steps:
            for _ in range(3):
                await asyncio.sleep(0)
        task.cancel()

    asyncio.run(run())


def test_each_change_of_state_is_said_once_and_a_full_engine_is_none(caplog):
    caplog.set_level("INFO")
    loading, ready, busy = (State.STARTING, "importing"), (State.READY, ""), (State.BUSY, "")

    watched(loading, ready, busy, ready, (State.SETUP_FAILED, "no weights"), loading)

    assert [re.sub(r"\d+", "N", line) for line in caplog.messages] == [
        "READY after N s of STARTING",
        "SETUP_FAILED after N s of READY",
        "STARTING after N s of SETUP_FAILED",
    ]


def test_where_no_line_can_move_there_is_one_now_and_then(caplog):
    caplog.set_level("INFO")

    watched((State.STARTING, "Starting the engine."), line_s=0.0)
    count = len(caplog.messages)
    watched((State.STARTING, "Starting the engine."))

    assert caplog.messages == ["Starting the engine, 0 s"] * count
    assert count > 0


@pytest.mark.parametrize(("flags", "moves"), [((), True), (("--log-format", "human"), False)])
def test_at_a_terminal_one_line_moves_until_the_model_is_there(tmp_path, flags, moves):
    ours, theirs = pty.openpty()
    command = [FOURSTEP, "serve", "--model", "instant", "--port", "0", "--data-dir", str(tmp_path), *flags]
    with subprocess.Popen(command, stderr=theirs, env=clean_env()) as process:
        os.close(theirs)
        seen = b""
        while b"READY after" not in seen:
            seen += os.read(ours, 4096)
        process.send_signal(signal.SIGINT)
        while b"stopped" not in seen:
            seen += os.read(ours, 4096)
        status = process.wait(30)
    os.close(ours)

    assert (b"\r\x1b[KStarting the engine, " in seen, b"\x1b" in seen) == (moves, moves)
    assert status == 0


def test_a_second_ctrl_c_stops_at_once_and_the_job_is_done_later(tmp_path):
    server = start_server("--model", "instant:2500", "--max-batch", "1", data_dir=tmp_path)
    server.wait_ready()
    path = submitted(server, num_images=8)
    log = tmp_path / "log"

    server.process.send_signal(signal.SIGINT)
    until(lambda: "stopping: 1 running, up to 15 s; Ctrl-C again stops now" in log.read_text())
    server.process.send_signal(signal.SIGINT)

    assert server.process.wait(5) == 130
    assert "stopped at once" in log.read_text()
    assert not (tmp_path / "server.json").exists()
    with serving("--model", "instant:1", data_dir=tmp_path) as again:
        until(lambda: again.get(f"{path}/status")["status"] == "COMPLETED")
