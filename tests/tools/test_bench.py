"""Measuring this box."""

import dataclasses
import io
import json
import time

import pytest

from pipelines.engine import instant
from pipelines.errors import CheckpointError
from pipelines.messages import EngineConfig, GenerationParams
from pipelines.tools import bench
from tests.support.faulty_engine import DeviceLost, FaultyModel


@pytest.fixture
def config(tmp_path):
    return EngineConfig(model="instant:1", data_dir=str(tmp_path))


def test_the_last_line_says_it_all_as_json(config, capsys):
    found = bench.run(config, lambda: instant.load(config), requests=6, clients=3)

    last = capsys.readouterr().out.splitlines()[-1]
    assert json.loads(last) == found
    assert found["clients"].keys() == {"1", "3"}
    assert found["clients"]["3"]["images_s"] > 0


def test_without_a_number_of_requests_as_many_are_sent_as_the_seconds_allow(config):
    begun = time.monotonic()

    found = bench.run(config, lambda: instant.load(config), None, clients=2, seconds=0.4)

    assert found["complete"]
    assert all(row["requests"] > 1 for row in found["clients"].values())
    assert time.monotonic() - begun < 20


def test_ctrl_c_prints_what_there_is(config, capsys):
    class Interrupted(bench.Progress):
        def show(self, text):
            if text.startswith("3 at a time: 2 "):
                raise KeyboardInterrupt

    found = bench.run(config, lambda: instant.load(config), 6, clients=3, progress=Interrupted())

    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == found
    assert not found["complete"]
    assert {name: row["requests"] for name, row in found["clients"].items()} == {"1": 6, "3": 2}


@pytest.mark.parametrize(
    ("plan", "done", "said"),
    [
        (bench.Plan(None, 10.0, 1, later=1), [], "1 at a time: 0 done, 20 s left"),
        (bench.Plan(None, 10.0, 8, later=0), [0.1] * 3, "8 at a time: 3 done, 10 s left"),
        (bench.Plan(20, 10.0, 1, later=1), [], "1 at a time: 0 of 20 done, the first is on its way"),
    ],
)
def test_progress_has_the_time_left(plan, done, said, monkeypatch):
    monkeypatch.setattr(bench.time, "perf_counter", lambda: plan._begun)

    assert plan.said(done) == said


def test_progress_moves_at_a_terminal_and_is_a_line_now_and_then_elsewhere():
    terminal, file = io.StringIO(), io.StringIO()
    terminal.isatty = lambda: True

    for progress in (bench.Progress(terminal), bench.Progress(file, every_s=0), bench.Progress(file, every_s=60)):
        progress.show("a")
        progress.show("b")
        progress.clear()

    assert (terminal.getvalue(), file.getvalue()) == ("\ra\x1b[K\rb\x1b[K\r\x1b[K", "a\nb\n")


@pytest.mark.parametrize(
    ("device", "sets", "said"), [("cpu", "AVX2", "on cpu (AVX2), "), ("cuda:0", "", "on cuda:0, ")]
)
def test_the_processor_is_told_with_the_format_that_it_computes_in(device, sets, said, config, capsys):
    loaded = dataclasses.replace(instant.load(config), device=device, instructions=sets, dtype="bfloat16")

    found = bench.run(config, lambda: loaded, requests=1, clients=1)

    assert f"{said}bfloat16" in capsys.readouterr().out
    assert (found["instructions"], found["dtype"]) == (sets, "bfloat16")


@pytest.mark.parametrize("heavy", [True, False])
def test_what_a_tiny_autoencoder_saves_is_told_where_it_saves(heavy, config, capsys):
    loaded = dataclasses.replace(instant.load(config), heavy_vae=heavy)

    bench.run(config, lambda: loaded, requests=1, clients=1)

    assert ("--vae tiny (TAESD) saves most of" in capsys.readouterr().out) is heavy


def test_a_tiny_autoencoder_saves_what_encoding_and_decoding_take():
    said = bench.tiny_vae({"encode": 1.5, "decode": 2.0, "steps": 6.0, "inference": 10.2})

    assert "3.5 of 10.2 seconds" in said


def test_a_model_that_cannot_be_had_is_said_to_the_caller(config):
    def load():
        raise CheckpointError("no weights", "pull them")

    with pytest.raises(CheckpointError):
        bench.LocalEngine(config, load)


def test_an_engine_that_ends_is_said_to_who_waits_for_an_answer(config):
    engine = bench.LocalEngine(config, lambda: dataclasses.replace(instant.load(config), model=FaultyModel()))

    with pytest.raises(DeviceLost):
        engine.one(GenerationParams(prompt="lost", seed=1), b"")
    engine.close()


def test_every_request_has_a_latency_of_its_own(config):
    engine = bench.LocalEngine(config, lambda: instant.load(config))

    _, latencies = engine.many([(GenerationParams(prompt="", seed=seed), b"") for seed in range(7)], clients=3)
    engine.close()

    assert len(latencies) == 7
    assert min(latencies) > 0.001
