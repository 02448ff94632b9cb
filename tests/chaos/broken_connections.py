"""R11: a thousand calls of the real clients through a proxy that breaks one exchange in twenty.

    python -m tests.chaos.broken_connections [--calls 1000]

The proxy is tests/clients/fault_proxy.py. Calls that the client retries by itself must all succeed; others may fail
with the client's own error, before its timeout. By the server's request ids, nothing is done twice that was not
requested twice. Afterwards the server has no more files, memory and permits in use than before. Controls: a client
without retries must see errors, and a server that does every twentieth run twice must be detected.

Prints a table; the last line is JSON; exits 1 if a bound does not hold.
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

# Language, call, share of all calls, further options of the script, and the errors that the client may report.
RETRIED = frozenset()
STREAM = frozenset({"ReadError", "RemoteProtocolError", "ConnectError", "WriteError"})
CALLS = (
    ("py", "run", 0.25, {}, RETRIED),
    ("js", "run", 0.25, {}, RETRIED),
    ("py", "subscribe", 0.1, {}, RETRIED),
    ("js", "subscribe", 0.1, {}, RETRIED),
    ("py", "stream", 0.15, {}, STREAM),
    ("js", "run", 0.15, {"package": "serverless-client-0.15"}, frozenset({"TypeError"})),
)
MAX_CALLS = 4  # so few that a permit which is not released would be noticed
GROWTH_MB = 40
SPARE_FILES = 2
SETTLE_S = 10.0
BENCHMARK_S = 600.0  # limit for one script of calls


def main():
    """Run the calls and the controls, and judge the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--calls", type=int, default=1000)
    calls = parser.parse_args().calls
    try:
        report = {"real": through_faulty_proxy(calls), "control: runs done twice": done_twice(60)}
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
            real["own_errors"] == 0,  # control: a client without retries sees errors
            control["done_twice"] == 0,
        )
    )
    for name, figures in report.items():
        print(name)
        for figure, value in figures.items():
            print(f"    {figure:<22}{value}")
    print(json.dumps({"benchmark": "faults", "held": held, **report}))
    sys.exit(0 if held else 1)


def through_faulty_proxy(calls):
    """Make all calls through one proxy to one server; return the clients' and the server's figures."""
    seen = {"calls": 0, "ok": 0, "own_errors": 0, "retried_and_failed": 0, "foreign_errors": 0, "slowest_ms": 0}
    few = ("--max-calls", str(MAX_CALLS))
    with (
        tempfile.TemporaryDirectory(prefix="fourstep-faults-") as folder,
        faulty(Path(folder), PICTURE, *few) as found,
    ):
        found.clients = dataclasses.replace(found.clients, timeout=BENCHMARK_S)
        found.run("py", call="run", times=40)  # what the first calls load into memory is no leak
        process = psutil.Process(found.server.pid)
        files, size = process.num_fds(), process.memory_info().rss
        for language, call, part, options, errors in CALLS:
            began = time.monotonic()
            ended = found.run(language, call=call, times=int(calls * part), **options)
            count(seen, ended, errors)
            print(f"{language} {call} {options.get('package', '')}: {time.monotonic() - began:.0f} s", file=sys.stderr)
        until(lambda: found.health()["queue"] == {"waiting": 0, "running": 0}, "the queue is empty", SETTLE_S)
        return {
            **seen,
            "faults": found.faults,
            "done_twice": found.done_twice(),
            "more_files": process.num_fds() - files,
            "grown_mb": round((process.memory_info().rss - size) / 1e6, 1),
        }


def count(seen, ended, errors):
    """Add the outcomes of one script to `seen`; `errors` are the client's own."""
    outcomes = Counter(each["outcome"] for each in ended)
    failed = {outcome: times for outcome, times in outcomes.items() if outcome != "ok"}
    seen["calls"] += len(ended)
    seen["ok"] += outcomes["ok"]
    seen["own_errors"] += sum(times for outcome, times in failed.items() if outcome in errors)
    foreign = sum(times for outcome, times in failed.items() if outcome not in errors)
    seen["foreign_errors" if errors else "retried_and_failed"] += foreign
    seen["slowest_ms"] = max(seen["slowest_ms"], round(max(each["ms"] for each in ended)))


def done_twice(calls):
    """Run the control, a server that does every twentieth run twice; return its figures."""
    program = [sys.executable, "-m", "tests.chaos.modified_server", '{"twice": true}']
    with (
        tempfile.TemporaryDirectory(prefix="fourstep-faults-") as folder,
        faulty(Path(folder), PICTURE, program=program) as found,
    ):
        found.run("py", call="run", times=calls)
        return {"calls": calls, "done_twice": found.done_twice()}


if __name__ == "__main__":
    main()
