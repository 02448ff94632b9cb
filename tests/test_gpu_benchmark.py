"""The benchmark for GPUs in a dry run: it measures all sections; one that fails or is late affects no other."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
# Tensors of a dry run are tiny: on a busy machine several threads would mostly wait for each other.
ONE_THREAD = os.environ | {"OMP_NUM_THREADS": "1"}
MEASURED = ("floors", "end_to_end", "waits", "warm_up", "norms", "memory")

Report = dict[str, Any]


def run(out: Path, *options: str) -> Report:
    """Return the report of a dry run, the last line of its output."""
    command = [sys.executable, "-m", "benchmarks.gpu", "--dry", "--out", str(out), *options]
    done = subprocess.run(command, cwd=ROOT, env=ONE_THREAD, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("gpu") / "gpu.json"


@pytest.fixture(scope="module")
def report(out: Path) -> Report:
    """Return the report of one run for all tests, with sections that fail on purpose."""
    return run(out, "--only", *MEASURED, "fails", "hangs")


def test_a_dry_run_measures_and_writes_what_it_prints(out: Path, report: Report) -> None:
    assert {name: report[name]["ended"] for name in MEASURED} == dict.fromkeys(MEASURED, "done")
    assert report["end_to_end"]["times_faster"] > 0
    assert report["end_to_end"]["70 % load"].keys() == {"p50_ms", "p95_ms", "p99_ms"}
    assert report["warm_up"]["graphs"] == 13  # UNet by 8, 6, 4, 3, 2 and 1, three by 2 and 1, one text
    assert set(report["waits"].values()) >= {"none"}
    assert json.loads(out.read_text()) == report


def test_a_section_that_fails_or_takes_too_long_keeps_what_it_found_and_stops_no_other(report: Report) -> None:
    assert (report["fails"]["ended"], report["fails"]["before"]) == ("ValueError: no", 1)
    assert (report["hangs"]["ended"], report["hangs"]["before"]) == ("OutOfTime: stopped after 0 s", 2)
    assert "after" not in report["hangs"]
    assert report["memory"]["ended"] == "done"  # it comes last of what is measured


def test_a_warm_up_is_measured_in_the_order_of_a_start(report: Report) -> None:
    steps = [name for name in report["warm_up"] if name in {"measure_s", "capture_s", "memory_budget"}]

    assert steps == ["measure_s", "capture_s", "memory_budget"]


def test_the_most_that_a_device_held_outlives_a_measurement(report: Report) -> None:
    assert report["memory"]["peak_allocated_gb"] == 3  # what the pretended device told first; then it told 1
    assert report["memory"]["peak_reserved_gb"] == 6


def test_another_call_does_what_is_missing_as_far_as_time_goes(tmp_path: Path, report: Report) -> None:
    out = tmp_path / "gpu.json"
    out.write_text(json.dumps(report | {"norms": {"ended": "ValueError: no"}}))

    again = run(out, "--minutes", "0")

    assert again["norms"] == again["stages"] == {"ended": "skipped: out of time"}
    assert {name: again[name] for name in MEASURED if name != "norms"} == {
        name: report[name] for name in MEASURED if name != "norms"
    }
