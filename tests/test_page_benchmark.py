"""The benchmark of the page, in a short form: it measures, and misses its gates for what is broken on purpose."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support.browsers.chromium import program

ROOT = Path(__file__).parents[1]

SMALL = ("--model", "instant+jpeg:150")

pytestmark = [pytest.mark.slow, pytest.mark.skipif(program() is None, reason="needs Chromium")]


def run(*options: str) -> tuple[int, dict[str, Any]]:
    """Return the status and the last line of a run."""
    command = [sys.executable, "-m", "benchmarks.page", "--warm-up", "1", *options]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.stdout, done.stderr[-4000:]
    return done.returncode, json.loads(done.stdout.splitlines()[-1])


@pytest.mark.long
def test_live_and_the_start_are_measured() -> None:
    status, figures = run("--seconds", "2", "--starts", "1")

    assert status == bool(figures["missed"])
    assert figures["frames_s"] > 1
    assert 20 < figures["round_trip_ms"] < 2000
    assert 0 < figures["task_p95_ms"] <= figures["task_longest_ms"]
    assert 0 < figures["usable_s"] < 20


@pytest.mark.long
def test_what_is_slow_misses_its_gates() -> None:
    status, figures = run("--seconds", "2", "--starts", "1", "--fault", "slow", "--fault", "busy", "--fault", "late")

    assert status == 1
    assert figures["missed"] == ["frames_s", "round_trip_ms", "task_p95_ms", "usable_s"]


@pytest.mark.long
def test_what_grows_or_waits_or_fails_misses_its_gates() -> None:
    faults = ("--fault", "leak", "--fault", "stale", "--fault", "lost")
    status, figures = run("--seconds", "0", "--starts", "0", "--minutes", "0.4", *SMALL, *faults)

    assert status == 1
    assert {"heap_growth", "late_share", "errors"} <= {*figures["missed"]}
    assert any("The connection is lost" in words for words in figures["said"])
