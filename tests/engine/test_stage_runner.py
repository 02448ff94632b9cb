"""For how long a stage may stay silent."""

from pipelines.engine.stage_runner import FIRST_S, MARGIN, SilenceBudget


def test_a_stage_never_seen_gets_the_benefit_of_the_doubt():
    assert SilenceBudget().allow_s("steps", 512 * 512, 1) == FIRST_S


def test_a_stage_may_take_a_multiple_of_the_worst_measured():
    budget = SilenceBudget()
    budget.note("steps", 1000, 1, 0.5)
    budget.note("steps", 1000, 1, 2.0)
    budget.note("steps", 1000, 1, 1.0)

    assert budget.allow_s("steps", 1000, 1) == MARGIN * 2.0


def test_patience_grows_with_the_batch_and_with_the_picture():
    budget = SilenceBudget()
    budget.note("steps", 1000, 2, 1.0)

    assert budget.allow_s("steps", 4000, 8) == MARGIN * 16.0


def test_stages_are_measured_apart():
    budget = SilenceBudget()
    budget.note("steps", 1000, 1, 1.0)

    assert budget.allow_s("decode", 1000, 1) == FIRST_S
