"""The benchmark for GPUs, dry: one call tells everything, and what fails or takes too long loses nothing else."""

import contextlib
import json
import time

import pytest
import torch

from benchmarks import gpu
from benchmarks.harness import gpu as gpu_rig
from pipelines.device import loader
from pipelines.model import kernels


@pytest.fixture
def out(tmp_path):
    return tmp_path / "gpu.json"


def run(out, *options):
    return gpu.main(["--dry", "--out", str(out), *options])


def test_a_dry_run_measures_and_writes_what_it_prints(out, capsys):
    report = run(out, "--only", "floors", "end_to_end", "waits", "warm_up", "norms", "memory")

    found = {name: section for name, section in report.items() if isinstance(section, dict)}
    assert {name: section["ended"] for name, section in found.items()} == dict.fromkeys(found, "done")
    assert len(found) == 6
    assert found["end_to_end"]["times_faster"] > 0
    assert found["end_to_end"]["70 % load"].keys() == {"p50_ms", "p95_ms", "p99_ms"}
    assert found["warm_up"]["graphs"] == 17  # four functions, four batches, and one text
    assert set(found["waits"].values()) >= {"none"}
    assert json.loads(out.read_text()) == json.loads(capsys.readouterr().out.splitlines()[-1]) == report


def test_a_section_that_fails_or_takes_too_long_keeps_what_it_found_and_stops_nobody(out, monkeypatch):
    def fails(bench, found):
        found["before"] = 1
        raise ValueError("no")

    def hangs(bench, found):
        found["before"] = 2
        with contextlib.suppress(Exception):  # as compilers' faults are
            time.sleep(60)
        found["after"] = 2

    monkeypatch.setattr(gpu, "SECTIONS", {fails: 10, hangs: 0.1, gpu.floors: 10})

    report = run(out)

    assert (report["fails"]["ended"], report["fails"]["before"]) == ("ValueError: no", 1)
    assert (report["hangs"]["ended"], report["hangs"]["before"]) == ("OutOfTime: stopped after 0 s", 2)
    assert "after" not in report["hangs"]
    assert report["floors"]["ended"] == "done"


def test_another_call_does_what_is_missing(out, monkeypatch):
    calls = []

    def first(bench, found):
        calls.append("first")

    def second(bench, found):
        calls.append("second")
        if calls.count("second") == 1:
            raise ValueError

    monkeypatch.setattr(gpu, "SECTIONS", {first: 10, second: 10})
    run(out)

    report = run(out)

    assert calls == ["first", "second", "second"]
    assert report["second"]["ended"] == "done"


def test_sections_without_time_are_skipped(out):
    report = run(out, "--minutes", "0", "--only", "floors")

    assert report["floors"] == {"ended": "skipped: out of time"}


@pytest.fixture
def bench():
    return gpu_rig.make_bench(dry=True, minutes=1)


def test_a_warm_up_is_measured_in_the_order_of_a_start(bench, monkeypatch):
    order = []

    def capture_graphs(model, graphs, *others):
        order.append("capture")
        model.graphs = graphs

    monkeypatch.setattr(loader, "measure", lambda model, side: order.append("measure"))
    monkeypatch.setattr(loader, "capture", capture_graphs)
    monkeypatch.setattr(loader, "allot", lambda model, free: order.append("allot"))

    gpu.warm_up(bench, {})

    assert order == ["measure", "capture", "allot"]


def test_the_most_that_a_device_held_outlives_a_measurement(bench, monkeypatch):
    bench.device = torch.device("cuda")
    for peak in (3e9, 1e9):
        monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda peak=peak: peak)
        monkeypatch.setattr(torch.cuda, "max_memory_reserved", lambda peak=peak: 2 * peak)
        bench.note_peaks()
    found = {}

    gpu.memory(bench, found)

    assert found == {"peak_allocated_gb": 3, "peak_reserved_gb": 6}


@pytest.mark.parametrize("used_before", [True, False])
def test_weights_are_plain_for_a_while_only(bench, used_before):
    packs = kernels._packs
    if used_before:
        assert bench.ours

    with contextlib.suppress(ZeroDivisionError), gpu_rig.plain_weights(bench):
        plain = bench.ours
        assert not kernels._packs(torch.ones(2, 2))
        raise ZeroDivisionError

    assert kernels._packs is packs
    assert bench.ours is not plain
