"""Too little memory: budgets that fit what there is, and a process that ends where there is none left."""

import contextlib
import http.client
import json
import resource
import subprocess
import sys

import psutil
import pytest

from server import memory
from server.cli.launcher import RUN_FILE, Server
from server.environment import load
from server.settings import Settings, SettingsError
from tests.cli.test_serve import FOURSTEP
from tests.support.server_process import APP, clean_env, post, until

MIB = 1024 * 1024


def machine(root, cgroup, **limits):
    """Make the files of a machine: `cgroup` as in /proc/self/cgroup, and limits by path below /sys/fs/cgroup."""
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/self/cgroup").write_text(cgroup)
    for path, text in limits.items():
        file = root / "sys/fs/cgroup" / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return root


@pytest.mark.parametrize(
    ("cgroup", "limits", "limit"),
    [
        ("0::/a/b\n", {"a/b/memory.max": "max\n", "a/memory.max": "1000\n"}, 1000),
        ("0::/a/b\n", {"a/b/memory.max": "500\n", "a/memory.max": "1000\n"}, 500),
        ("0::/\n", {"memory.max": "1000\n"}, 1000),
        ("0::/host/path\n", {"memory.max": "1000\n"}, 1000),
        ("0::/a\n", {}, None),
        ("3:cpu:/a\n2:memory:/a\n", {"memory/a/memory.limit_in_bytes": "700\n"}, 700),
        ("2:memory:/docker/x\n", {"memory/memory.limit_in_bytes": "700\n"}, 700),
    ],
)
def test_the_memory_of_this_process_is_its_control_groups(tmp_path, cgroup, limits, limit):
    assert memory.limit_bytes(machine(tmp_path, cgroup, **limits)) == limit


def test_the_process_ends_although_nobody_reads_its_last_words():
    program = "import os; from server import memory; os.close(2); memory.end_if_exhausted(MemoryError())"

    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == memory.EXIT_NO_MEMORY


def test_without_control_groups_it_is_the_processs_own_limit():
    program = "from pathlib import Path; from server import memory; print(memory.limit_bytes(Path('/nowhere')))"

    def limit():
        resource.setrlimit(resource.RLIMIT_AS, (2048 * MIB, 2048 * MIB))

    done = subprocess.run([sys.executable, "-c", program], stdout=subprocess.PIPE, preexec_fn=limit, check=True)

    assert int(done.stdout) == 2048 * MIB


@pytest.mark.parametrize(
    ("limit", "budget"),
    [(None, Settings.body_budget_bytes), (64 * 1024 * MIB, Settings.body_budget_bytes), (1024 * MIB, 128 * MIB)],
)
def test_the_budget_for_bodies_is_at_most_an_eighth_of_the_memory(limit, budget):
    assert load({}, {}, lambda: limit).body_budget_bytes == budget


def test_there_is_always_room_for_one_body():
    assert load({}, {}, lambda: 64 * MIB).body_budget_bytes == Settings.max_body_bytes


def test_what_the_operator_has_set_stays():
    assert load({}, {"FOURSTEP_BODY_BUDGET_BYTES": str(300 * MIB)}, lambda: 1024 * MIB).body_budget_bytes == 300 * MIB
    with pytest.raises(SettingsError):
        load({"body_budget_bytes": 1}, {}, lambda: 1024 * MIB)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ((), "request bodies may take 536739840 bytes"),
        (("--body-budget-bytes", str(600 * MIB)), "WARNING server.cli.serve: --body-budget-bytes 629145600"),
    ],
)
def test_a_server_says_what_its_budget_is_where_memory_is_short(tmp_path, flags, said):
    limited = ["sh", "-c", f'ulimit -v {4095 * 1024} && exec "$@"', "sh"]
    server = started(tmp_path, *limited, FOURSTEP, "serve", *flags)
    status = server.stop()

    assert status == 0
    assert said in (tmp_path / "log").read_text()


def started(folder, *command):
    """Start a server by this command and return it."""
    command = [*command, "--model", "instant", "--data-dir", str(folder), "--port", "0"]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, stderr=log, env=clean_env())
    until(lambda: (folder / RUN_FILE).exists() or process.poll() is not None)
    bound = json.loads((folder / RUN_FILE).read_text())
    return Server(process, folder, bound["url"], bound["tls_url"])


@pytest.mark.parametrize(
    "place",
    [
        *("run", "job", "thread"),
        *(pytest.param(each, marks=pytest.mark.long) for each in ("write", "callback", "task", "housekeeping")),
    ],
)
def test_a_process_without_memory_says_so_and_ends_with_its_engines(tmp_path, place):
    server = started(tmp_path, sys.executable, "-m", "tests.support.exhausted_server", place, "serve")
    engines = [child.pid for child in psutil.Process(server.pid).children()]
    path = f"/queue/{APP}" if place in {"job", "write"} else f"/run/{APP}"
    try:
        with contextlib.suppress(OSError, http.client.HTTPException):  # it may have ended before it answered
            post(server, path)
        status = server.process.wait(30)
    finally:
        server.process.kill()
        server.process.wait()

    assert status == memory.EXIT_NO_MEMORY
    assert "there is no memory left; the process ends" in (tmp_path / "log").read_text()
    until(lambda: not any(psutil.pid_exists(pid) for pid in engines))
