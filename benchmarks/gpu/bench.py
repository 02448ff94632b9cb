"""What the sections measure with: a stopwatch, captured calls, the engine loop around a model, a pretended device."""

import contextlib
import functools
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from benchmarks.gpu.random_weights import random_model
from benchmarks.harness import device
from pipelines.device import loader
from pipelines.device.cuda_graphs import Cuda, Graphs
from pipelines.device.torch_backend import TorchBackend
from pipelines.model import kernels
from pipelines.weights.checkpoint import LoadedCheckpoint
from tests.support.published_configs import FULL, TINY


@dataclass
class Bench:
    """What the sections share. `quick`: seconds that one measurement may take; `peaks`: bytes, see `note_peaks`."""

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
        """Median milliseconds of `run`, warm."""
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
        """`run` as a captured call, and how it is given up."""
        capture = self.make_capture()
        graph = capture.capture(run, inputs, capture.pool())
        return functools.partial(graph.replay, inputs), graph.destroy

    def captured_model(self, model=None, *, sizes=None, rows=None, its_streams=None, compiler=None):
        """A model of ours with its graphs; `rows`: which batches of up to 8 are captured."""
        made = TorchBackend(model or self.model, its_streams)
        self.capture_shapes(made, sizes, rows, compiler)
        return made

    def capture_shapes(self, made, sizes=None, rows=None, compiler=None):
        """Capture the model at these sizes, by default the bench's, in these batches, by default all up to 8."""
        loader.capture_graphs(
            made,
            Graphs(self.make_capture(), 2**40),
            max(rows or (8,)),
            lambda fraction, what: None,
            compiler,
            sizes=sizes or ((self.side, self.side),),
            batches=sorted(rows) if rows else None,
        )

    def note_peaks(self):
        """Keep what was allocated and reserved at most so far: measuring a stage starts torch's count again."""
        self.peaks = tuple(map(max, self.peaks, self.memory_peaks()))

    def timestep(self, rows):
        return torch.full((rows,), 500, device=self.device)

    def unet_inputs(self, rows):
        latent, network = self.side // 8, self.ours.network
        return (
            self.randn(rows, 4, latent, latent),
            self.randn(rows, sum(network.shift_widths)),
            self.randn(rows, 77, sum(network.context_widths)),
        )

    def text(self, rows):
        return self.randn(rows, 77, self.model.text_encoder.config.hidden_size)


class Pretend:
    """A capture for machines that have none."""

    nbytes = 0

    def pool(self):
        return None

    def capture(self, run, inputs, pool):
        run(*inputs)
        graph = Pretend()
        graph.replay = lambda given: run(*given)
        return graph

    def destroy(self):
        pass


def cuda_peaks():
    """Bytes allocated and reserved at most since torch's count began."""
    return torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved()


def make_bench(*, dry, minutes):
    pretended_peaks = iter([(3e9, 6e9)])  # and less from then on, as after a count that has begun again
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


@contextlib.contextmanager
def plain_weights(bench):
    """For a while no weights are in oneDNN's layout, and no functions of ours have such: a compiler lays them out."""
    kept, kernels._packs = kernels._packs, lambda weight: False
    vars(bench).pop("ours", None)
    try:
        yield
    finally:
        kernels._packs = kept
        vars(bench).pop("ours", None)


def loaded(bench, found, **options):
    """A captured model, and what capturing it took."""
    begun = time.perf_counter()
    model = bench.captured_model(**options)
    found["capture_s"] = round(time.perf_counter() - begun, 1)
    return model


@contextlib.contextmanager
def serving(bench, backend):
    """The engine loop around a model, warm; its graphs are given up afterwards."""
    engine = device.Ours(device.config(max_batch=8), backend)
    try:
        engine.many(several(bench, 16), 8)
        yield engine
    finally:
        engine.close()
        backend.graphs.evict()


def several(bench, count):
    """Requests of the usual size, each with a seed of its own."""
    data = device.picture(bench.side, bench.side)
    return [(device.request(seed), data) for seed in range(count)]


def picture_of(bench, model, **fields):
    """One request alone through the stages."""
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
