"""CUDA graphs: which calls are captured, replayed and evicted, on a fake device."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from pipelines.device import loader
from pipelines.device.cuda_graphs import Graphs
from pipelines.device.torch_backend import TorchBackend
from pipelines.errors import CaptureFailedError
from pipelines.messages import GenerationParams
from pipelines.model.functions import make_functions
from pipelines.model.lcm import Lcm
from tests.support import tiny_models


class FakeGraph:
    """As a CUDA graph: reads and writes tensors of its own, and can be used until it is destroyed."""

    def __init__(self, run, inputs, pool, nbytes):
        self._run, self._held, self.pool, self.nbytes = run, tuple(tensor.clone() for tensor in inputs), pool, nbytes
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
    """Captures as long as a graph's own memory stays within `memory` bytes: one for each row and pixel row."""

    def __init__(self, memory=10**9, fault=torch.OutOfMemoryError):
        self.memory, self.fault, self.graphs = memory, fault, []

    def pool(self):
        return object()

    def capture(self, run, inputs, pool):
        nbytes = len(inputs[0]) * inputs[0].shape[-1]
        if nbytes > self.memory:
            raise self.fault("no")
        run(*inputs)
        self.graphs.append(FakeGraph(run, inputs, pool, nbytes))
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


def holds(graphs, name, count, size):
    """Whether a call of `count` rows has a graph."""
    return graphs._graph(name, count, size) is not None


@pytest.mark.parametrize(("count", "expected"), [(1, 1), (2, 3), (3, 3), (4, 8), (8, 8), (9, None)])
def test_a_call_takes_the_smallest_graph_that_holds_it(device, count, expected):
    _, call = learned(device, rows(8), rows(3), rows(1))

    call(rows(count))

    replayed = [graph for graph in device.graphs if graph.replays == 2]  # once while learning
    assert [len(graph._held[0]) for graph in replayed] == ([] if expected is None else [expected])


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


@pytest.mark.parametrize("tensor", [rows(9), rows(4, side=16)], ids=["rows", "size"])
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
    assert not holds(graphs, "double", 1, (8, 8))


def test_what_is_captured_is_captured_once(device):
    learned(device, rows(4), rows(4))

    assert len(device.graphs) == 1


def test_graphs_share_memory_within_a_stream_and_never_between_two(device):
    graphs = Graphs(device, 10**9)
    calls = [graphs.wrap(name, double, size_of, stream=stream) for name, stream in (("a", "x"), ("b", "y"), ("c", "y"))]
    with graphs.learning():
        for call in calls:
            call(rows(2))
            call(rows(1, 16))

    pools = [graph.pool for graph in device.graphs]
    assert pools[0] is pools[1]
    assert len({id(pool) for pool in pools[2:]}) == 1
    assert pools[0] is not pools[2]


def test_outputs_may_be_several_and_may_be_none(device):
    graphs = Graphs(device, 10**9)
    call = graphs.wrap("both", lambda tensor: (tensor + 1, None), size_of)
    with graphs.learning():
        call(rows(4))

    first, second = call(rows(3))

    assert torch.equal(first, rows(3) + 1)
    assert second is None


def test_the_budget_goes_to_what_is_learnt_first(device, caplog):
    graphs, _ = learned(device, rows(1, 8), rows(1, 32), rows(1, 16), budget=25)

    assert [holds(graphs, "double", 1, (side, side)) for side in (8, 16, 32)] == [True, True, False]
    assert graphs.nbytes == sum(graph.nbytes for graph in device.alive) == 24
    assert "no room in the budget for double for 1 rows of 32×32" in caplog.text


def test_what_has_no_room_to_be_captured_still_runs(caplog):
    device = FakeDevice(memory=100)

    graphs, call = learned(device, rows(1, 128), rows(1, 8))

    assert torch.equal(call(rows(1, 128)), double(rows(1, 128)))
    assert holds(graphs, "double", 1, (8, 8))
    assert "no room to capture double for 1 rows of 128×128" in caplog.text


def test_a_capture_that_fails_is_an_error_that_says_what_to_do():
    device = FakeDevice(memory=100, fault=RuntimeError)

    with pytest.raises(CaptureFailedError, match="double for 1 rows of 128×128") as error:
        learned(device, rows(1, 128))

    assert "--graphs off" in error.value.hint


def test_evicting_leaves_nothing_and_says_whether_there_was_anything(device):
    graphs, call = learned(device, rows(1, 8), rows(2, 8), rows(1, 16))

    assert [graphs.evict(), graphs.evict()] == [True, False]
    assert not device.alive
    assert torch.equal(call(rows(1, 8)), double(rows(1, 8)))


# --- with a model --------------------------------------------------------------------------------------------------


def generate(model, count):
    params = GenerationParams(prompt="a beach", seed=3, num_images=count, guidance_scale=2.0 if count == 1 else 1.0)
    pixels = np.arange(64 * 64 * 3, dtype=np.uint8).reshape(64, 64, 3)
    conditioning = model.prepare(params)
    trajectories = model.encode([(params, conditioning, pixels, 3 + number) for number in range(count)])
    while not trajectories[0].finished:
        model.step(trajectories)
    return model.decode(trajectories).numpy()


def ignore(fraction, what):
    pass


def capture(model, device, max_batch, tell=ignore):
    """The model with batches of 64×64 captured."""
    shapes = [((64, 64), rows) for rows in loader.batches(max_batch)]
    return loader.capture_graphs(model, Graphs(device, 10**9), shapes, tell)


@pytest.mark.parametrize("count", [1, 3])
def test_captured_pictures_are_those_of_uncaptured_ones(device, count):
    model, told = TorchBackend(tiny_models.make(safety_checker=tiny_models.safety_checker())), []

    captured = capture(model, device, 4, lambda fraction, what: told.append((fraction, what)))
    learning_replays = sum(graph.replays for graph in device.graphs)
    actual = generate(captured, count)

    expected = generate(Lcm(tiny_models.make()), count)
    assert np.abs(actual.astype(int) - expected.astype(int)).max() <= 1
    assert sum(graph.replays for graph in device.graphs) == learning_replays + 7  # text, encode, four steps, decode
    assert told == [(number / 3, f"preparing for {rows} pictures of 64×64") for number, rows in enumerate((4, 2, 1))]


@pytest.mark.parametrize(
    ("max_batch", "steps"), [(1, [1, 2]), (2, [1, 2]), (3, [1, 2, 3]), (6, [1, 2, 4, 6]), (16, [1, 2, 4, 8, 16])]
)
def test_a_full_batch_is_captured_and_so_is_one_picture_with_guidance(device, max_batch, steps):
    model = capture(TorchBackend(tiny_models.make()), device, max_batch)

    assert [rows for rows in range(1, 17) if rows in model.graphs._held["unet", (64, 64)]] == steps


def test_batches_without_room_are_left_out_and_the_others_captured(device, caplog):
    checkpoint = tiny_models.make()
    functions = make_functions(checkpoint)

    def small(latents):
        if len(latents) > 2:
            raise torch.OutOfMemoryError
        return functions.vae_decode(latents)

    model = capture(TorchBackend(checkpoint, replace(functions, vae_decode=small)), device, 4)

    assert [holds(model.graphs, "decode", rows, (64, 64)) for rows in (1, 2, 4)] == [True, True, False]
    assert "no room for 4 pictures of 64×64 at once" in caplog.text


def test_graphs_are_given_up_for_a_picture_that_has_no_room_beside_them(device):
    model = capture(TorchBackend(tiny_models.make()), device, 1)

    assert [model.relieve(), model.relieve()] == [True, False]
    assert device.graphs
    assert not device.alive
