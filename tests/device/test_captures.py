"""What is captured on cards of 4 to 24 GB, and what of it is left after a large picture."""

import pytest

from pipelines.device.captures import POLICY, step_rows
from pipelines.engine.backend import Stage
from tests.device.card import TINY_COSTS, TINY_WEIGHTS, Card, request, started

TINY = {"weights": TINY_WEIGHTS, "costs": TINY_COSTS}
CARDS = {
    "4 GB, TAESD": (4, TINY),
    "4 GB": (4, {}),
    "6 GB": (6, {}),
    "8 GB": (8, {}),
    "12 GB": (12, {}),
    "24 GB": (24, {}),
}
FIRST, PHOTO, LARGEST = (512, 512), (768, 1024), (1024, 1024)


@pytest.fixture(params=CARDS.values(), ids=CARDS.keys())
def card(request):
    gib, kind = request.param
    return Card(gib, **kind)


def captured(model, stage, size=FIRST):
    """The rows for which a stage is captured."""
    return sorted(model.graphs._held.get((stage, size), {}))


def budget(card, model):
    usable = POLICY.stages_share * card.room
    return min(usable * POLICY.most, max(usable * POLICY.least, usable - model.captures._largest()))


def test_what_is_held_is_what_is_said_and_within_the_budget(card):
    model = started(card)

    inputs = sum(tensor.nbytes for pool in model.graphs._pools.values() for tensor in pool.inputs.values())
    assert model.graphs.nbytes == pytest.approx(card.held + inputs, abs=100)  # bytes are cut to whole ones
    assert 0 < model.graphs.nbytes <= budget(card, model)


def test_every_captured_batch_is_one_that_there_is_room_for(card):
    model = started(card)

    shapes = [(Stage(name), size, max(rows)) for (name, size), rows in model.graphs._held.items()]
    for stage, size, rows in shapes:
        if stage not in {Stage.TEXT, Stage.SAFETY}:
            assert rows <= model.room(stage, size, 8)
    assert any(stage is Stage.STEP for stage, _, _ in shapes)


def test_a_captured_call_needs_no_memory_of_the_stages():
    model = started(Card(12))
    model.share_memory(0.0)

    stages = (Stage.STEP, Stage.ENCODE, Stage.DECODE)
    assert [model.room(stage, FIRST, 8) for stage in stages] == [8, 2, 2]
    assert [model.room(stage, PHOTO, 8) for stage in stages] == [1, 1, 1]


@pytest.mark.parametrize(
    ("gib", "kind", "steps", "checks", "decodes"),
    [
        (4, TINY, [1, 2], [], []),
        (4, {}, [1], [1], []),
        (6, {}, [1, 2, 3, 4], [1, 2], []),
        (8, {}, [1, 2, 3, 4, 6, 8], [1, 2], [1]),
        (12, {}, [1, 2, 3, 4, 6, 8], [1, 2], [1, 2]),
    ],
)
def test_steps_come_first_then_the_checker_then_the_autoencoder(gib, kind, steps, checks, decodes):
    model = started(Card(gib, **kind))

    stages = (Stage.STEP, Stage.SAFETY, Stage.DECODE, Stage.ENCODE)
    assert [captured(model, stage) for stage in stages] == [steps, checks, decodes, decodes]


@pytest.mark.parametrize(("gib", "size"), [(6, PHOTO), (8, PHOTO), (8, LARGEST), (16, LARGEST)])
def test_a_photo_has_room_beside_what_is_captured(gib, size):
    model = started(Card(gib))
    before = model.graphs.nbytes

    assert request(model, size)
    assert model.graphs.nbytes == before


def test_the_hundredth_request_after_a_photo_is_captured(card):
    model = started(card)
    request(model, LARGEST)
    model.idle(1.0)
    model.idle(2.0)
    for _ in range(99):
        assert request(model, FIRST, steps=1)
    (graph,) = [graph for rows, graph in model.graphs._held[Stage.STEP, FIRST].items() if rows == 1]
    before = graph.replays
    request(model, FIRST, steps=1)

    assert graph.replays == before + 1


def crowded():
    """A card on which another program has taken what a large picture needs beside the graphs."""
    card, now = Card(12), [1000.0]
    model = started(card, clock=lambda: now[0])
    card.others = card.free() - 1e9
    return card, model, now


def test_only_as_much_is_given_up_as_a_picture_needs():
    _, model, _ = crowded()

    assert request(model, LARGEST)
    assert captured(model, Stage.DECODE) == []
    assert captured(model, Stage.STEP) == [1, 2, 3, 4, 6, 8]


def test_what_was_given_up_is_left_to_the_stages_at_once():
    card, model, _ = crowded()
    before = model.memory_budget.budget
    held = model.graphs.nbytes

    assert [model.relieve(), model.relieve(), model.relieve()] == [True, True, False]
    assert model.memory_budget.budget - before == pytest.approx((held - model.graphs.nbytes) / 2)
    assert card.held == pytest.approx(8e6, rel=0.1)  # the text encoder's


def give_all_up(model):
    while model.relieve():
        pass


def test_one_picture_is_captured_again_after_two_seconds_of_rest_and_once_in_ten_minutes():
    card, model, now = crowded()
    card.others = 0.0
    seen = []
    for idle, passed in ((1.9, 0), (2.0, 0), (2.0, 1), (500.0, 599), (1.0, 600), (2.0, 600)):
        if captured(model, Stage.STEP) == [1] or not seen:
            give_all_up(model)
        now[0] = 1000.0 + passed
        model.idle(idle)
        seen.append(captured(model, Stage.STEP))

    assert seen == [[], [1], [], [], [], [1]]
    assert captured(model, Stage.DECODE) == captured(model, Stage.ENCODE) == captured(model, Stage.SAFETY) == [1]


def test_what_has_no_room_again_is_tried_again():
    card, model, now = crowded()
    give_all_up(model)
    card.others += card.free()
    model.idle(2.0)
    nothing = captured(model, Stage.STEP)
    card.others, now[0] = 0.0, now[0] + 600.0
    model.idle(2.0)

    assert (nothing, captured(model, Stage.STEP)) == ([], [1])


def test_the_stages_get_what_is_free_when_something_was_captured_again():
    card, model, _ = crowded()
    give_all_up(model)
    card.others = 3e9
    model.idle(2.0)

    expected = (POLICY.stages_share * (card.room - 3e9) - model.graphs.nbytes) / 2
    assert model.memory_budget.budget == pytest.approx(expected, rel=0.01)


def test_a_pool_that_comes_out_too_large_is_made_again_smaller(card):
    card.surprise = 1.7

    model = started(card)

    assert card.held <= budget(card, model)
    assert captured(model, Stage.STEP) or card.room < 1e9
    assert not card.broken


def test_a_surprise_costs_only_the_shapes_that_have_no_room():
    model = started(Card(8, surprise=1.7))

    assert captured(model, Stage.STEP) == [1, 2, 3, 4, 6, 8]
    assert captured(model, Stage.DECODE) == []


@pytest.mark.parametrize(
    ("max_batch", "steps", "pictures"),
    [(1, [1, 2], [1]), (2, [1, 2], [1, 2]), (5, [1, 2, 3, 4, 5], [1, 2]), (16, [1, 2, 3, 4, 6, 8, 16], [1, 2])],
)
def test_rows_that_are_captured(max_batch, steps, pictures):
    model = started(Card(24), max_batch=max_batch)

    assert sorted(step_rows(max_batch)) == captured(model, Stage.STEP) == steps
    assert captured(model, Stage.DECODE) == captured(model, Stage.ENCODE) == captured(model, Stage.SAFETY) == pictures


def test_a_step_of_many_large_pictures_runs_uncaptured_and_one_with_guidance_captured():
    model = started(Card(24))

    assert captured(model, Stage.STEP, (768, 768)) == [1, 2, 3]


def test_five_pictures_are_three_replays():
    model = started(Card(24))
    graphs = model.graphs._held[Stage.DECODE, FIRST]
    before = {rows: graph.replays for rows, graph in graphs.items()}

    assert request(model, FIRST, count=5)

    assert {rows: graph.replays - before[rows] for rows, graph in graphs.items()} == {2: 2, 1: 1}


def test_the_loop_is_told_to_make_pictures_as_they_are_captured():
    model = started(Card(24))

    rooms = [model.room(stage, FIRST, 8) for stage in (Stage.DECODE, Stage.PREVIEW, Stage.ENCODE, Stage.STEP)]
    assert rooms == [2, 2, 8, 8]
    assert model.room(Stage.DECODE, PHOTO, 8) > 2
    assert model.room(Stage.DECODE, FIRST, 1) == 1
