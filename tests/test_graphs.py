"""Which calls are captured, replayed and given up: on a device that only pretends to capture."""

import numpy as np
import pytest
import torch

from pipelines.graphs import Graphs, pad
from pipelines.lcm import Lcm
from pipelines.on_torch import DeviceModel
from pipelines.types import GenerationParams
from tests import models


class FakeGraph:
    """As a CUDA graph: reads and writes tensors of its own, and can be used until it is destroyed."""

    def __init__(self, run, inputs, nbytes):
        self._run, self._held, self.nbytes = run, tuple(tensor.clone() for tensor in inputs), nbytes
        self.replays, self.destroyed = 0, False

    def replay(self, inputs):
        assert not self.destroyed
        for held, given in zip(self._held, inputs, strict=True):
            held[: len(given)].copy_(given)
        self.replays += 1
        return self._run(*self._held)

    def destroy(self):
        assert not self.destroyed
        self.destroyed = True


class FakeDevice:
    """Captures as long as what it holds stays within `memory` bytes; a graph takes one for each row and pixel row."""

    def __init__(self, memory=10**9):
        self.memory, self.graphs = memory, []

    def pool(self):
        return object()

    def capture(self, run, inputs, pool):
        nbytes = len(inputs[0]) * inputs[0].shape[-1]
        if nbytes + sum(graph.nbytes for graph in self.graphs if not graph.destroyed) > self.memory:
            raise torch.OutOfMemoryError
        self.graphs.append(FakeGraph(run, inputs, nbytes))
        return self.graphs[-1]

    @property
    def alive(self):
        return [graph for graph in self.graphs if not graph.destroyed]


def size_of(tensor):
    return tuple(tensor.shape[2:])


def double(tensor):
    return 2 * tensor


def rows(count, side=8):
    return torch.arange(count * side * side, dtype=torch.float32).reshape(count, 1, side, side)


@pytest.fixture
def device():
    return FakeDevice()


def learned(device, *calls, budget=10**9, run=double):
    """Graphs that have learnt these calls, and the wrapped function."""
    graphs = Graphs(device, budget)
    call = graphs.wrap("double", run, size_of)
    with graphs.learning():
        for tensor in calls:
            call(tensor)
    return graphs, call


@pytest.mark.parametrize(("count", "bucket"), [(1, 1), (2, 2), (3, 4), (4, 4), (5, 8), (8, 8), (9, 0)])
def test_a_call_takes_the_smallest_bucket_that_holds_it(count, bucket):
    graphs = Graphs(FakeDevice(), 10**9)

    assert graphs.bucket(count) == bucket


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_a_captured_call_gives_its_own_rows(device, count):
    _, call = learned(device, rows(1), rows(2), rows(4))
    learning_replays = sum(graph.replays for graph in device.graphs)

    actual = call(rows(count))

    assert torch.equal(actual, double(rows(count)))
    assert sum(graph.replays for graph in device.graphs) == learning_replays + 1


def test_rows_left_over_from_a_fuller_call_show_nowhere(device):
    _, call = learned(device, rows(4))
    call(rows(4) + 1000)

    actual = call(rows(3))

    assert torch.equal(actual, double(rows(3)))


@pytest.mark.parametrize("tensor", [rows(1), rows(9), rows(4, side=16)], ids=["rows", "too many rows", "size"])
def test_other_shapes_run_as_they_are(device, tensor):
    _, call = learned(device, rows(4))
    before = [graph.replays for graph in device.graphs]

    actual = call(tensor)

    assert torch.equal(actual, double(tensor))
    assert [graph.replays for graph in device.graphs] == before


def test_nothing_is_captured_but_while_learning(device):
    graphs, call = learned(device)

    call(rows(1))

    assert not device.graphs
    assert not graphs.can_use("double", 1, (8, 8))


def test_what_is_captured_is_captured_once(device):
    learned(device, rows(3), rows(4), rows(3))

    assert len(device.graphs) == 1


def test_more_rows_than_any_bucket_are_not_captured(device):
    learned(device, rows(9))

    assert not device.graphs


def test_outputs_may_be_several_and_may_be_none(device):
    graphs = Graphs(device, 10**9)
    call = graphs.wrap("both", lambda tensor: (tensor + 1, None), size_of)
    with graphs.learning():
        call(rows(4))

    first, second = call(rows(3))

    assert torch.equal(first, rows(3) + 1)
    assert second is None


def test_beyond_the_budget_the_size_unused_for_longest_goes(device):
    graphs, call = learned(device, rows(1, 8), rows(1, 16), budget=50)
    call(rows(1, 8))
    with graphs.learning():
        call(rows(1, 32))

    assert [graphs.can_use("double", 1, (side, side)) for side in (8, 16, 32)] == [True, False, True]
    assert graphs.nbytes == sum(graph.nbytes for graph in device.alive) == 40


def test_a_shape_that_alone_exceeds_the_budget_stays_uncaptured(device, caplog):
    graphs, call = learned(device, rows(8, 32), budget=100)

    actual = call(rows(8, 32))

    assert torch.equal(actual, double(rows(8, 32)))
    assert not device.alive
    assert graphs.nbytes == 0
    assert "no room in the budget" in caplog.text


def test_where_memory_runs_out_other_sizes_make_room(caplog):
    device = FakeDevice(memory=100)

    graphs, _ = learned(device, rows(1, 8), rows(1, 64), rows(1, 96))

    assert [graphs.can_use("double", 1, (side, side)) for side in (8, 64, 96)] == [False, False, True]
    assert "no room" not in caplog.text


def test_where_memory_runs_out_for_good_the_call_still_runs(caplog):
    device = FakeDevice(memory=100)

    _, call = learned(device, rows(1, 128))

    assert torch.equal(call(rows(1, 128)), double(rows(1, 128)))
    assert "no room to capture double for 1 rows of 128×128" in caplog.text


def test_evicting_says_whether_there_was_anything(device):
    graphs, _ = learned(device, rows(1, 8), rows(2, 8), rows(1, 16))

    assert [graphs.evict(), len(device.alive), graphs.evict(), graphs.evict()] == [True, 1, True, False]


def test_destroying_leaves_nothing(device):
    graphs, call = learned(device, rows(1, 8), rows(1, 16))

    graphs.destroy()

    assert not device.alive
    assert torch.equal(call(rows(1, 8)), double(rows(1, 8)))


@pytest.mark.parametrize("count", [1, 2, 4])
def test_padding_repeats_the_last_row(count):
    padded = pad(rows(count), 4)

    assert torch.equal(padded[:count], rows(count))
    assert all(torch.equal(row, rows(count)[-1]) for row in padded[count:])


# --- with a model --------------------------------------------------------------------------------------------------


def generate(model, count):
    params = GenerationParams(prompt="a beach", seed=3, num_images=count, guidance_scale=2.0 if count == 1 else 1.0)
    pixels = np.arange(64 * 64 * 3, dtype=np.uint8).reshape(64, 64, 3)
    conditioning = model.prepare(params)
    trajectories = model.encode([(params, conditioning, pixels, 3 + number) for number in range(count)])
    while not trajectories[0].finished:
        model.step(trajectories)
    return model.decode(trajectories).numpy()


@pytest.mark.parametrize("count", [1, 3])
def test_captured_pictures_are_those_of_uncaptured_ones(device, monkeypatch, count):
    monkeypatch.setattr("pipelines.on_torch.CAPTURED_SIZES", ((64, 64),))
    captured = DeviceModel(models.make(safety_checker=models.safety_checker()))
    told = []

    captured.capture(Graphs(device, 10**9), 4, lambda fraction, what: told.append((fraction, what)))
    learning_replays = sum(graph.replays for graph in device.graphs)
    actual = generate(captured, count)

    expected = generate(Lcm(models.make()), count)
    assert np.abs(actual.astype(int) - expected.astype(int)).max() <= 1
    assert sum(graph.replays for graph in device.graphs) == learning_replays + 6  # encode, four steps, decode
    assert told == [(number / 3, f"preparing for {rows} pictures of 64×64") for number, rows in enumerate((4, 2, 1))]


def test_out_of_memory_gives_up_graphs_before_the_next_try(device, monkeypatch):
    monkeypatch.setattr("pipelines.on_torch.CAPTURED_SIZES", ((64, 64),))
    model = DeviceModel(models.make())
    model.capture(Graphs(device, 10**9), 1, lambda fraction, what: None)

    model.diagnose(torch.OutOfMemoryError())

    assert device.graphs
    assert not device.alive
