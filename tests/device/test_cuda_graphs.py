"""CUDA graphs: which calls are captured, replayed and evicted, on a fake device. Memory: `test_captures`."""

import math
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from pipelines.device.captures import CapturePolicy, Captures, captured_model
from pipelines.device.cuda_capture import CudaGraph
from pipelines.device.cuda_graphs import Graphs, fill
from pipelines.device.torch_backend import TorchBackend
from pipelines.errors import CaptureFailedError
from pipelines.messages import EngineConfig, GenerationParams
from pipelines.model.functions import make_functions
from pipelines.model.lcm import Lcm
from tests.support import tiny_models


class FakeGraph:
    """As a CUDA graph: reads and writes tensors of its own, and can be used until it is destroyed."""

    def __init__(self, run, inputs, pool, reserved):
        self._run, self.held, self.pool, self.reserved, self.beside = run, inputs, pool, reserved, 0
        self.replays, self.destroyed = 0, False

    def replay(self, inputs):
        assert not self.destroyed
        for held, given in zip(self.held, inputs, strict=True):
            fill(held[: len(given)], given)
        self.replays += 1
        return self._run(*self.held)

    def destroy(self):
        assert not self.destroyed
        self.destroyed = True


class FakeDevice:
    """Has room for calls of at most `memory` bytes: one for each row and pixel row.

    `fault`: all captures fail. `surprise`: bytes that a capture takes beyond what was measured.
    """

    def __init__(self, memory=10**9, fault=None, surprise=0):
        self.memory, self.fault, self.surprise, self.graphs = memory, fault, surprise, []

    def pool(self):
        return object()

    def warm_up(self, run, inputs):
        run(*inputs)
        nbytes = len(inputs[0]) * inputs[0].shape[-1]
        if nbytes > self.memory:
            raise torch.OutOfMemoryError("no")
        return nbytes

    def capture(self, run, inputs, pool):
        if self.fault:
            raise self.fault("no")
        run(*inputs)
        self.graphs.append(FakeGraph(run, inputs, pool, len(inputs[0]) * inputs[0].shape[-1] + self.surprise))
        return self.graphs[-1]

    def free(self):
        return math.inf

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


def learned(device, *calls, budget=10**9, run=double, **options):
    """Graphs that have learnt these calls, and the wrapped function."""
    graphs = Graphs(device, budget)
    call = graphs.wrap("double", run, size_of, **options)
    with graphs.learning():
        for tensor in calls:
            call(tensor)
    return graphs, call


def holds(graphs, name, count, size):
    """Whether a call of `count` rows has a graph."""
    return graphs.captured(name, size) >= count


@pytest.mark.parametrize(("count", "expected"), [(1, 1), (2, 3), (3, 3), (4, 8), (8, 8), (9, None)])
def test_a_call_takes_the_smallest_graph_that_holds_it(device, count, expected):
    _, call = learned(device, rows(8), rows(3), rows(1))

    call(rows(count))

    replayed = [graph for graph in device.graphs if graph.replays == 2]  # once while learning
    assert [len(graph.held[0]) for graph in replayed] == ([] if expected is None else [expected])


@pytest.mark.parametrize(("count", "expected"), [(1, [1]), (2, [2]), (3, [2, 1]), (5, [2, 2, 1]), (6, [2, 2, 2])])
def test_a_call_that_may_be_split_is_several_replays_and_no_row_too_many(device, count, expected):
    _, call = learned(device, rows(2), rows(1), run=lambda tensor: (2 * tensor, None), split=True)
    before = [graph.replays for graph in device.graphs]

    outputs, nothing = call(rows(count))

    assert torch.equal(outputs, 2 * rows(count))
    assert nothing is None
    replayed = [graph.replays - old for graph, old in zip(device.graphs, before, strict=True)]
    assert replayed == [expected.count(2), expected.count(1)]


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


def test_graphs_of_a_stream_share_the_tensors_that_inputs_are_copied_to(device):
    graphs, call = learned(device, rows(4), rows(2))
    other = graphs.wrap("other", lambda one, two: one + two, size_of)
    with graphs.learning():
        other(rows(3), rows(3))

    first, second, third = device.graphs
    one, two = third.held
    assert first.held[0].data_ptr() == second.held[0].data_ptr() == one.data_ptr() != two.data_ptr()
    assert graphs.nbytes == sum(graph.reserved for graph in device.alive) + first.held[0].nbytes + two.nbytes
    assert torch.equal(other(rows(2), rows(2)), 2 * rows(2))
    assert torch.equal(call(rows(2) + 5), 2 * rows(2) + 10)


def test_what_would_outgrow_the_budget_is_not_captured(device, caplog):
    graphs, _ = learned(device, rows(1, 16), rows(1, 32), rows(1, 8), budget=16 + 16 * 16 * 4 + 8 + 8 * 8 * 4 + 1)

    assert [holds(graphs, "double", 1, (side, side)) for side in (8, 16, 32)] == [True, True, False]
    assert [len(graph.held[0][0, 0]) for graph in device.alive] == [16, 8]
    assert "no room to capture double for 1 rows of 32×32" in caplog.text


def test_a_pool_that_has_outgrown_its_budget_is_given_up_whole(caplog):
    device = FakeDevice(surprise=100)
    graphs = Graphs(device)
    small, large = (graphs.wrap(name, double, size_of, stream=name) for name in ("small", "large"))
    with graphs.learning("small"):
        small(rows(1))
    with graphs.learning("large", budget=500) as learning:
        large(rows(2, 4))  # 8 bytes, 100 more, 128 of its input
        large(rows(1, 8))  # 256 of its input, 100 more
        large(rows(1, 2))

    assert learning.overgrown == 108 + 128 + 108 + 256
    assert len(device.graphs) == 3
    assert [graphs.held("small"), graphs.held("large")] == [graphs.nbytes, 0]
    assert "graphs took 0 of 0 MB with large for 1 rows of 8×8" in caplog.text


def test_only_the_functions_that_are_named_are_captured(device):
    graphs = Graphs(device)
    one, two = (graphs.wrap(name, double, size_of) for name in ("one", "two"))
    with graphs.learning("two"):
        one(rows(1))
        two(rows(1))

    assert [graphs.captured(name, (8, 8)) for name in ("one", "two")] == [0, 1]


def test_what_has_no_room_to_be_captured_still_runs(caplog):
    device = FakeDevice(memory=100)

    graphs, call = learned(device, rows(1, 128), rows(1, 8))

    assert torch.equal(call(rows(1, 128)), double(rows(1, 128)))
    assert holds(graphs, "double", 1, (8, 8))
    assert "no room to capture double for 1 rows of 128×128" in caplog.text


@pytest.mark.parametrize("fault", [RuntimeError, torch.OutOfMemoryError])
def test_a_capture_that_fails_is_an_error_that_says_what_to_do(fault):
    device = FakeDevice(fault=fault)

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


def generate_all(model, scales):
    """Pictures of these guidance scales, stepped together."""
    pixels = np.arange(64 * 64 * 3, dtype=np.uint8).reshape(64, 64, 3)
    asked = [
        GenerationParams(prompt="a beach", negative_prompt="rain", seed=3, guidance_scale=scale) for scale in scales
    ]
    trajectories = model.encode([(params, model.prepare(params), pixels, params.seed) for params in asked])
    while not trajectories[0].finished:
        model.step(trajectories)
    return model.decode(trajectories).numpy()


def ignore(fraction, what):
    pass


def capture(model, device, max_batch, tell=ignore):
    """The model with batches of 64×64 captured."""
    graphs = Graphs(device)
    captured = captured_model(model, graphs)
    config = EngineConfig(model="", data_dir="", max_batch=max_batch)
    policy = CapturePolicy(sizes=((64, 64),))
    captured.captures = Captures(captured, graphs, config, {}, free=lambda: math.inf, policy=policy)
    captured.captures.start(tell)
    return captured


@pytest.mark.parametrize("count", [1, 3])
def test_captured_pictures_are_those_of_uncaptured_ones(device, count):
    model, told = TorchBackend(tiny_models.make(safety_checker=tiny_models.safety_checker())), []

    captured = capture(model, device, 2 if count == 1 else 4, lambda fraction, what: told.append((fraction, what)))
    learning_replays = sum(graph.replays for graph in device.graphs)
    actual = generate(captured, count)

    expected = generate(Lcm(tiny_models.make()), count)
    assert np.abs(actual.astype(int) - expected.astype(int)).max() <= 1
    # Text, encode, four steps, decode; three pictures are decoded by two replays.
    assert sum(graph.replays for graph in device.graphs) == learning_replays + (8 if count == 3 else 7)
    assert told[0] == (0, f"preparing steps for {4 if count == 3 else 2} of 64×64")
    assert told[-1] == (pytest.approx(11 / 12), "preparing safety for 1 of 64×64")


def test_pictures_with_and_without_guidance_share_a_captured_step(device):
    model, plain = capture(TorchBackend(tiny_models.make()), device, 8), Lcm(tiny_models.make())
    with torch.inference_mode():
        for graph in device.graphs:
            for held in graph.held:
                if held.is_floating_point():
                    held.fill_(math.nan)  # as rows may be that a call does not fill
    scales = (1.0, 2.0, 3.0)  # five rows, in a graph of six

    together = generate_all(model, scales)

    alone = np.concatenate([generate_all(plain, [scale]) for scale in scales])
    assert np.abs(together.astype(int) - alone.astype(int)).max() <= 1


def test_batches_without_room_are_left_out_and_the_others_captured(device, caplog):
    checkpoint = tiny_models.make()
    functions = make_functions(checkpoint)

    def small(latents):
        if len(latents) > 1:
            raise torch.OutOfMemoryError
        return functions.vae_decode(latents)

    model = capture(TorchBackend(checkpoint, replace(functions, vae_decode=small)), device, 4)

    assert model.graphs.captured("decode", (64, 64)) == 1
    assert "no room to capture decode for 2 rows of 64×64" in caplog.text
    assert "no room for decode of 2 pictures of 64×64" in caplog.text


def test_graphs_are_given_up_for_a_picture_that_has_no_room_beside_them(device):
    model = capture(TorchBackend(tiny_models.make()), device, 1)

    assert [model.relieve(), model.relieve(), model.relieve()] == [True, True, False]
    assert [len(graph.held[0].shape) for graph in device.alive] == [2]  # the text encoder's


# --- operations beside the replay ------------------------------------------------------------------------------------


class Operations(TorchDispatchMode):
    """The names of all operations that a device would run, views left out."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if not func.is_view or (isinstance(result, torch.Tensor) and storage(result) != storage(args[0])):
            self.names.append(func.overloadpacket.__name__)
        return result


def storage(tensor):
    return tensor.untyped_storage().data_ptr()


class Replaying(FakeDevice):
    """Graphs as on CUDA, but for the replay itself, which `operations` count as one."""

    operations = None

    def capture(self, run, inputs, pool):
        graph = CudaGraph.__new__(CudaGraph)
        graph._inputs = tuple(tensor.clone() for tensor in inputs)
        graph._outputs = run(*graph._inputs)
        graph._graph, graph.reserved, graph.beside = SimpleNamespace(replay=self._replay), 0, 0
        return graph

    def _replay(self):
        if self.operations is not None:
            self.operations.names.append("replay")


@pytest.mark.parametrize("guidance", [1.0, 2.0])
def test_a_captured_step_is_six_operations(guidance):
    device = Replaying()
    model = capture(TorchBackend(tiny_models.make()), device, 4)
    params = GenerationParams(prompt="a beach", seed=3, num_inference_steps=2, guidance_scale=guidance)
    pixels = np.zeros((64, 64, 3), np.uint8)
    items = [(params, model.prepare(params), pixels, model.draw(params, pixels, seed)) for seed in range(2)]
    trajectories = model.encode(items)

    counted = []
    for run in (lambda: model.encode(items), lambda: model.step(trajectories), lambda: model.decode(trajectories)):
        with Operations() as device.operations:
            run()
        counted.append(device.operations.names)

    encode, step, decode = counted
    assert encode[:3] == ["copy_", "replay", "clone"]
    assert step == ["stack", "stack", "stack", "stack", "replay", "clone"]
    assert decode == ["stack", "replay", "clone", "clone"]
