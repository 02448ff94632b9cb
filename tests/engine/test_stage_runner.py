"""How large a batch may be after memory ran out, and for how long a stage may stay silent."""

import numpy as np
import pytest

from pipelines.engine.backend import Stage
from pipelines.engine.request import Image, Request
from pipelines.engine.stage_runner import FIRST_S, MARGIN, SMALL_FOR_S, SilenceBudget, StageRunner
from pipelines.messages import GenerationParams, Work
from tests.support.faulty_engine import FaultyModel


def images(count):
    work = Work(id="a", params=GenerationParams(prompt="", seed=0), image=b"")
    request = Request(work, arrived=0.0, pixels=np.zeros((64, 64, 3), np.uint8))
    return [Image(request, seed) for seed in range(count)]


@pytest.mark.parametrize(("small_for_s", "sizes"), [(0.0, [2, 1, 1, 2, 1, 1]), (SMALL_FOR_S, [2, 1, 1, 1, 1])])
def test_batches_stay_small_until_memory_may_be_back(small_for_s, sizes):
    def run(batch):
        tried.append(len(batch))
        if len(batch) > 1:
            raise MemoryError

    def ignore(*_):
        pass

    tried = []
    runner = StageRunner(8, FaultyModel(), ignore, ignore, small_for_s=small_for_s)
    for _ in range(2):
        runner.in_batches(Stage.DECODE, images(2), run)

    assert tried == sizes


def test_a_stage_never_seen_gets_the_benefit_of_the_doubt():
    assert SilenceBudget().allow_s(Stage.STEP, 512 * 512, 1) == FIRST_S


def test_a_stage_may_take_a_multiple_of_the_worst_measured():
    budget = SilenceBudget()
    for seconds in (0.5, 2.0, 1.0):
        budget.note(Stage.STEP, 1000, 1, seconds)

    assert budget.allow_s(Stage.STEP, 1000, 1) == MARGIN * 2.0


def test_patience_grows_with_the_batch_and_with_the_picture():
    budget = SilenceBudget()
    budget.note(Stage.STEP, 1000, 2, 1.0)

    assert budget.allow_s(Stage.STEP, 4000, 8) == MARGIN * 16.0


def test_stages_are_measured_apart():
    budget = SilenceBudget()
    budget.note(Stage.STEP, 1000, 1, 1.0)

    assert budget.allow_s(Stage.DECODE, 1000, 1) == FIRST_S
