"""R11: the real clients, a thousand calls, and tests/clients/fault_proxy.py, which breaks one exchange in twenty.

    python -m tests.chaos.broken_connections [--calls 1000]

Calls that the client retries by itself must all finish; every other fails with the client's own error, none later than
its patience; nothing is done twice that was not asked for twice, by the server's own request ids; and afterwards the
server has no more files, memory and permits in use than before. Controls: a client that retries nothing must see
errors, and a server that does every twentieth run twice must be found out.

Prints a table; the last line is JSON; exits 1 if anything does not hold.
"""

import argparse
import dataclasses
import json
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import psutil
import pytest

from tests.chaos.harness import PICTURE, until
from tests.clients.faulty import PATIENCE_MS, faulty

# Language, call, part of all calls, more options of the script, and the errors that the client may end with.
RETRIED = frozenset()
STREAM = frozenset({"ReadError", "RemoteProtocolError", "ConnectError", "WriteError"})
COURSES = (
    ("py", "run", 0.25, {}, RETRIED),
    ("js", "run", 0.25, {}, RETRIED),
    ("py", "subscribe", 0.1, {}, RETRIED),
    ("js", "subscribe", 0.1, {}, RETRIED),
    ("py", "stream", 0.15, {}, STREAM),
    ("js", "run", 0.15, {"package": "serverless-client-0.15"}, frozenset({"TypeError"})),
)
MAX_CALLS = 4  # so few that permits which are not given back would be missed
GROWTH_MB = 40
SPARE_FILES = 2
SETTLE_S = 10.0
BENCHMARK_S = 600.0  # that a program of calls may run


def main():
    """Runs the courses and the controls."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--calls", type=int, default=1000)
    calls = parser.parse_args().calls
    try:
        report = {"real": broken_on_the_way(calls), "control: runs done twice": done_twice(60)}
    except pytest.skip.Exception as reason:
        print(f"left out: {reason}")
        print(json.dumps({"benchmark": "faults", "left_out": str(reason)}))
        return
    real, control = report.values()
    held = not any(
        (
            real["retried_and_failed"],
            real["foreign_errors"],
            real["done_twice"],
            real["slowest_ms"] >= PATIENCE_MS,
            real["more_files"] > SPARE_FILES,
            real["grown_mb"] > GROWTH_MB,
            real["own_errors"] == 0,  # the control among the courses: who retries nothing sees errors
            control["done_twice"] == 0,
        )
    )
    for name, figures in report.items():
        print(name)
        for figure, value in figures.items():
            print(f"    {figure:<22}{value}")
    print(json.dumps({"benchmark": "faults", "held": held, **report}))
    sys.exit(0 if held else 1)


def broken_on_the_way(calls):
    """All courses through one proxy to one server; what the clients and the server say of them."""
    seen = {"calls": 0, "ok": 0, "own_errors": 0, "retried_and_failed": 0, "foreign_errors": 0, "slowest_ms": 0}
    few = ("--max-calls", str(MAX_CALLS))
    with (
        tempfile.TemporaryDirectory(prefix="fourstep-faults-") as folder,
        faulty(Path(folder), PICTURE, *few) as found,
    ):
        found.clients = dataclasses.replace(found.clients, timeout=BENCHMARK_S)
        found.run("py", call="run", times=40)  # what a first call brings into memory is no leak
        process = psutil.Process(found.server.pid)
        files, size = process.num_fds(), process.memory_info().rss
        for language, call, part, options, errors in COURSES:
            began = time.monotonic()
            ended = found.run(language, call=call, times=int(calls * part), **options)
            count(seen, ended, errors)
            print(f"{language} {call} {options.get('package', '')}: {time.monotonic() - began:.0f} s", file=sys.stderr)
        until(lambda: found.health()["queue"] == {"waiting": 0, "running": 0}, "the server comes to rest", SETTLE_S)
        return {
            **seen,
            "faults": found.faults,
            "done_twice": found.done_twice(),
            "more_files": process.num_fds() - files,
            "grown_mb": round((process.memory_info().rss - size) / 1e6, 1),
        }


def count(seen, ended, errors):
    """Adds one course's ends to what was seen; `errors` are the client's own."""
    outcomes = Counter(each["outcome"] for each in ended)
    failed = {outcome: times for outcome, times in outcomes.items() if outcome != "ok"}
    seen["calls"] += len(ended)
    seen["ok"] += outcomes["ok"]
    seen["own_errors"] += sum(times for outcome, times in failed.items() if outcome in errors)
    foreign = sum(times for outcome, times in failed.items() if outcome not in errors)
    seen["foreign_errors" if errors else "retried_and_failed"] += foreign
    seen["slowest_ms"] = max(seen["slowest_ms"], round(max(each["ms"] for each in ended)))


def done_twice(calls):
    """The control: a server that does every twentieth run twice."""
    program = [sys.executable, "-m", "tests.chaos.modified_server", '{"twice": true}']
    with (
        tempfile.TemporaryDirectory(prefix="fourstep-faults-") as folder,
        faulty(Path(folder), PICTURE, program=program) as found,
    ):
        found.run("py", call="run", times=calls)
        return {"calls": calls, "done_twice": found.done_twice()}


if __name__ == "__main__":
    main()
