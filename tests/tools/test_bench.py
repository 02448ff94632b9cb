"""Measuring this box."""

import dataclasses
import io
import json
import subprocess
import sys
import time

import msgspec
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

    found = bench.run(config, lambda: instant.load(config), None, clients=2, seconds=2)

    assert found["complete"]
    assert all(row["requests"] > 1 for row in found["clients"].values())
    assert time.monotonic() - begun < 20


def test_what_would_take_longer_than_the_seconds_is_left_out_and_said(capsys, tmp_path):
    config = EngineConfig(model="instant:300", data_dir=str(tmp_path))

    found = bench.run(config, lambda: instant.load(config), None, clients=8, seconds=2)

    assert found["clients"].keys() == {"1"}
    assert found["complete"]
    assert "8 at a time: left out, too slow for 2 s; --seconds " in capsys.readouterr().out


def test_no_request_is_begun_that_would_end_too_late(monkeypatch):
    plan = bench.Plan(None, 10.0, 1, later=0, expected=4.0)
    spent = iter((5.9, 6.1))
    monkeypatch.setattr(bench.time, "perf_counter", lambda: plan._begun + next(spent))

    assert list(plan) == [0, 1]


def test_ctrl_c_while_torch_is_imported_is_said_without_a_traceback(config):
    config = msgspec.structs.replace(config, model="sd15")
    code = f"""if True:
        import sys
        class Interrupted:  # as Ctrl-C while torch is imported
            def find_spec(self, name, *_):
                if name == "torch":
                    raise KeyboardInterrupt
        sys.meta_path.insert(0, Interrupted())
        from pipelines.tools.__main__ import main
        sys.exit(main(["pull", "--config", {msgspec.json.encode(config).decode()!r}]))"""

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)

    assert done.returncode == 130
    assert done.stderr.startswith("\nStopped. ")
    assert done.stderr.endswith("goes on from there.\n")
    assert done.stderr.count("\n") == 2


def test_ctrl_c_in_the_warm_up_waits_for_no_picture(tmp_path):
    config = EngineConfig(model="instant:20000", data_dir=str(tmp_path))

    class Interrupted(bench.LocalEngine):
        def answer(self, tick=lambda: None):
            raise KeyboardInterrupt

    begun = time.monotonic()
    engine = Interrupted(config, lambda: instant.load(config))
    with pytest.raises(KeyboardInterrupt):
        engine.one(GenerationParams(prompt="", seed=1), b"")
    engine.close()

    assert time.monotonic() - begun < 10


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
