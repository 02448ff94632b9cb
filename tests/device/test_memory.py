"""Memory budget: the policy, and the measurement behind it."""

import math

import pytest
import torch

from pipelines.device import loader
from pipelines.device.memory import MARGIN, MemoryBudget, measure
from pipelines.device.torch_backend import TorchBackend
from pipelines.engine.backend import HostEvent, Stage
from pipelines.engine.loop import Engine
from pipelines.messages import EngineConfig
from tests.support import tiny_models

CPU = torch.device("cpu")


def measured(budget, **costs):
    """A budget with measured stages: bytes per pixel of each."""
    seen = MemoryBudget(budget)
    for stage, cost in costs.items():
        seen.note(stage, 100, 2, int(cost * 200))
    return seen


@pytest.mark.parametrize(("pixels", "rows"), [(100, 8), (200, 8), (400, 4), (1600, 1), (10**9, 1)])
def test_larger_pictures_share_a_call_with_fewer_and_one_alone_always_goes(pixels, rows):
    memory_budget = measured(1600 * 10 * MARGIN, decode=10)

    assert memory_budget.rows("decode", pixels, 8) == rows


def test_no_more_rows_than_allowed():
    assert measured(10**12, decode=10).rows("decode", 100, 3) == 3


def test_each_stage_goes_by_its_own_need_and_an_unmeasured_one_by_none():
    memory_budget = measured(1000 * MARGIN, decode=5, steps=1)

    assert [memory_budget.rows(stage, 100, 8) for stage in ("decode", "steps", "encode")] == [2, 8, 8]


def test_the_worst_that_was_seen_counts():
    memory_budget = measured(1000 * MARGIN, decode=5)
    memory_budget.note("decode", 100, 1, 100)

    assert memory_budget.rows("decode", 100, 8) == 2


def test_without_a_budget_nothing_is_capped():
    assert measured(math.inf, decode=10**9).rows("decode", 10**9, 8) == 8


def test_the_peak_is_what_lives_at_once():
    def run():
        first = torch.ones(1000)  # 4 kB
        second = first * 2
        view = second.view(10, 100)
        del first, second
        third = view + 1
        del view
        return third * third

    assert measure(CPU, run) == (8000, 8000)


def test_what_was_there_before_does_not_count_nor_what_is_written_in_place():
    given = torch.ones(1000)

    assert measure(CPU, lambda: given.mul_(2)[:10].add_(1)).peak == 0


def test_a_model_is_measured_and_its_rows_are_capped_by_size():
    model = TorchBackend(tiny_models.make(safety_checker=tiny_models.safety_checker()))
    pools = loader.profile_memory(model, 64)
    costs = model.memory_budget._costs
    model.share_memory(20 * 64 * 64 * costs["decode"])

    assert costs.keys() == {"encode", "steps", "decode"}
    assert {stage: cost for stage, cost in pools.items() if stage != "safety"} == pytest.approx(costs)
    assert 8 < pools["safety"] < pools["decode"]
    assert min(costs.values()) > 8  # a picture has three bytes a pixel, twelve as floats
    assert model.room(Stage.DECODE, (64, 64), 32) == model.room(Stage.PREVIEW, (64, 64), 32) == int(20 / MARGIN)
    assert model.room(Stage.DECODE, (1024, 1024), 32) == 1
    assert isinstance(model.record_event(Stage.STEP), HostEvent)


def test_on_a_cpu_the_first_run_of_an_engine_is_the_measurement(monkeypatch):
    calls = []
    measured, warmed = (TorchBackend(tiny_models.make(safety_checker=tiny_models.safety_checker())) for _ in range(2))
    loader.profile_memory(measured, 64)
    check = warmed.check
    monkeypatch.setattr(warmed, "check", lambda pixels: calls.append(1) or check(pixels))

    Engine(EngineConfig(model="tiny", data_dir=""), warmed, None, lambda message: None).warm_up(64)

    assert warmed.memory_budget._costs == pytest.approx(measured.memory_budget._costs, rel=0.05)
    assert len(calls) == 1


@pytest.mark.parametrize("count", [1, 2])
def test_what_a_stage_takes_grows_with_the_rows(count):
    model = TorchBackend(tiny_models.make())
    latents = torch.zeros(count, 4, 8, 8)

    taken = measure(CPU, lambda: model.functions.vae_decode(latents)).peak

    assert taken == count * measure(CPU, lambda: model.functions.vae_decode(latents[:1])).peak
