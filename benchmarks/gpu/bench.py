"""Tools of the sections: timing, captured calls, the engine loop around a model, a fake capture for CPUs."""

import contextlib
import functools
import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from benchmarks.gpu.random_weights import random_model
from benchmarks.harness import device
from pipelines.device.captures import CapturePolicy, Captures, captured_model
from pipelines.device.cuda_capture import Cuda
from pipelines.device.cuda_graphs import Graphs
from pipelines.device.torch_backend import TorchBackend
from pipelines.messages import EngineConfig
from pipelines.weights.checkpoint import LoadedCheckpoint
from tests.support.published_configs import FULL, TINY


@dataclass
class Bench:
    """State of all sections. `quick`: seconds for one measurement; `peaks`: peak bytes allocated and reserved."""

    device: torch.device
    dtype: torch.dtype
    dry: bool
    side: int
    batches: tuple[int, ...]
    requests: int
    quick: float
    model: LoadedCheckpoint
    deadline: float
    memory_peaks: Callable[[], tuple[int, int]]
    peaks: tuple[int, int] = (0, 0)

    @functools.cached_property
    def ours(self):
        return TorchBackend(self.model)

    @property
    def left(self):
        return self.deadline - time.monotonic()

    def ms(self, run, least=3):
        """Return the median milliseconds of `run`, after warm-up."""
        for _ in range(2):
            run()
        device.synchronize()
        walls, begun = [], time.perf_counter()
        while len(walls) < least or (time.perf_counter() - begun < self.quick and len(walls) < 200):
            start = time.perf_counter()
            run()
            device.synchronize()
            walls.append(time.perf_counter() - start)
        return round(statistics.median(walls) * 1e3, 3)

    def randn(self, *shape):
        return torch.randn(*shape, device=self.device, dtype=self.dtype)

    def make_capture(self):
        return Pretend() if self.dry else Cuda()

    def captured(self, run, inputs):
        """Return `run` as a captured call, and the function that frees it."""
        capture = self.make_capture()
        capture.warm_up(run, inputs)
        graph = capture.capture(run, inputs, capture.pool())
        return functools.partial(graph.replay, inputs), graph.destroy

    def captured_model(self, model=None, *, sizes=None, rows=None, its_streams=None):
        """Return our model with its graphs; `rows`: the batches to capture, by default all up to 8."""
        made = TorchBackend(model or self.model, its_streams=its_streams)
        return self.capture_shapes(made, sizes, rows)

    def capture_shapes(self, made, sizes=None, rows=None):
        """Return the model with all shapes of these sizes captured, for batches up to the largest of `rows`."""
        graphs = Graphs(self.make_capture())
        captured = captured_model(made, graphs)
        config = EngineConfig(model="", data_dir="", max_batch=max(rows or (8,)))
        policy = CapturePolicy(sizes=sizes or ((self.side, self.side),))
        captured.captures = Captures(captured, graphs, config, {}, free=lambda: math.inf, policy=policy)
        captured.captures.start(lambda fraction, what: None)
        return captured

    def note_peaks(self):
        """Record the peaks so far, because measuring a stage resets torch's count."""
        self.peaks = tuple(map(max, self.peaks, self.memory_peaks()))

    def timestep(self, rows):
        return torch.full((rows,), 500, device=self.device)

    def unet_inputs(self, rows):
        latent, network = self.side // 8, self.ours.functions.unet
        return (
            self.randn(rows, 4, latent, latent),
            self.randn(rows, sum(network.shift_widths)),
            self.randn(rows, 77, sum(network.context_widths)),
        )

    def text(self, rows):
        return self.randn(rows, 77, self.model.text_encoder.config.hidden_size)


class Pretend:
    """Fake capture, for machines without CUDA."""

    reserved = beside = 0

    def pool(self):
        return object()

    def warm_up(self, run, inputs):
        run(*inputs)
        return 0

    def capture(self, run, inputs, pool):
        graph = Pretend()
        graph.replay = lambda given: run(*given)
        return graph

    def free(self):
        return math.inf

    def destroy(self):
        pass


def cuda_peaks():
    """Return the most bytes allocated and reserved since torch's count was reset."""
    return torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved()


def make_bench(*, dry, minutes):
    pretended_peaks = iter([(3e9, 6e9)])  # less from then on, as after a reset
    where = torch.device("cpu" if dry else "cuda")
    dtype = torch.float32 if dry else torch.float16
    return Bench(
        device=where,
        dtype=dtype,
        dry=dry,
        side=64 if dry else 512,
        batches=(1, 2, 4) if dry else (1, 2, 4, 8, 16),
        requests=6 if dry else 200,
        quick=0.02 if dry else 1.0,
        model=random_model(TINY if dry else FULL, where, dtype),
        deadline=time.monotonic() + 60 * minutes,
        memory_peaks=(lambda: next(pretended_peaks, (1e9, 2e9))) if dry else cuda_peaks,
    )


def loaded(bench, found, **options):
    """Return a captured model, and record the duration of the capture."""
    begun = time.perf_counter()
    model = bench.captured_model(**options)
    found["capture_s"] = round(time.perf_counter() - begun, 1)
    return model


@contextlib.contextmanager
def serving(bench, backend):
    """Yield the engine loop around a model, after warm-up; free its graphs afterwards."""
    engine = device.Ours(device.config(max_batch=8), backend)
    try:
        engine.many(several(bench, 16), 8)
        yield engine
    finally:
        engine.close()
        backend.graphs.evict()


def several(bench, count):
    """Return requests of the usual size with different seeds."""
    data = device.picture(bench.side, bench.side)
    return [(device.request(seed), data) for seed in range(count)]


def picture_of(bench, model, **fields):
    """Run one request through the stages; return its pictures."""
    data = device.picture(bench.side, bench.side)
    return device.generate(model, device.request(7, **fields), device.images.decode(data, device.config()))


def apart(one, other):
    return {"psnr_db": round(device.psnr(one, other), 1), "levels": device.levels_apart(one, other)}


def seconds(run):
    begun = time.perf_counter()
    run()
    device.synchronize()
    return round(time.perf_counter() - begun, 1)


def percentiles(latencies):
    return {f"p{q}_ms": round(float(np.percentile(latencies, q)) * 1e3, 2) for q in (50, 95, 99)}


def rate(engine, requests, clients):
    seconds, latencies = engine.many(requests, clients)
    return {"images_s": round(len(requests) / seconds, 2), **percentiles(latencies)}
