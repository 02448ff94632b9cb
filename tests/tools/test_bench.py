"""Measuring this box."""

import dataclasses
import json

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
