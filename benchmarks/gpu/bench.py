"""Tools of the sections: timing, captured calls, the product's engine around random weights."""

import contextlib
import functools
import gc
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple
from unittest import mock

import numpy as np
import torch

from benchmarks.gpu.random_weights import make_tiny_vae, random_model
from benchmarks.harness import device, trace
from pipelines.device import loader
from pipelines.device.torch_backend import TorchBackend
from pipelines.model import vae
from pipelines.model.safety import SafetyChecker
from pipelines.model.unet import Unet
from pipelines.weights.checkpoint import LoadedCheckpoint
from tests.support.published_configs import FULL, TINY

SEED = 42
# Calls in one captured graph, so that a kernel of microseconds is timed without what launches it.
REPEATS = 20
SAVED_EVERY = 0.5


class Networks(NamedTuple):
    unet: Unet
    vae: vae.KlVae
    tiny: vae.TinyVae
    flags: SafetyChecker


@dataclass
class Bench:
    """State of all sections. `quick`: seconds for one measurement. `save` writes the report's file."""

    device: torch.device
    dtype: torch.dtype
    dry: bool
    short: bool
    side: int
    photo: tuple[int, int]  # width and height of a large picture
    batches: tuple[int, ...]
    requests: int
    quick: float
    deadline: float
    save: Callable[[], None]
    saved: float = 0.0

    @functools.cached_property
    def model(self) -> LoadedCheckpoint:
        return self.make_model()

    @functools.cached_property
    def ours(self):
        """Return our stages, uncaptured."""
        return TorchBackend(self.model)

    @functools.cached_property
    def networks(self):
        """Return our networks, uncaptured: UNet, autoencoder, TAESD, safety checker."""
        small = make_tiny_vae(self.device, self.dtype, dry=self.dry)
        checker = SafetyChecker(self.model.safety_checker)
        return Networks(Unet(self.model.unet), vae.make_vae(self.model.vae), vae.make_vae(small), checker)

    @property
    def left(self):
        return self.deadline - time.monotonic()

    @property
    def configs(self):
        return TINY if self.dry else FULL

    @functools.cached_property
    def ops(self):
        """Return all operations of all networks for one picture of the usual size."""
        stages = trace.Networks(self.configs, self.dtype).traced(1, self.side, self.side)
        return [op for stage in stages.values() for op in stage]

    def make_model(self, *, tiny_vae=False, dtype=None):
        """Return a checkpoint, the same at each call."""
        torch.manual_seed(SEED)
        return random_model(self.configs, self.device, dtype or self.dtype, tiny_vae=tiny_vae, dry=self.dry)

    def ms(self, run, least=3):
        """Return the median milliseconds of `run` with its launches, the device synchronised, after warm-up."""
        for _ in range(2):
            run()
        device.synchronize()
        walls, begun = [], time.perf_counter()
        while len(walls) < least or (time.perf_counter() - begun < self.quick and len(walls) < 200):
            start = time.perf_counter()
            run()
            device.synchronize()
            walls.append(time.perf_counter() - start)
        self.note()
        return round(statistics.median(walls) * 1e3, 4)

    def us(self, run):
        """Return the microseconds of one of many runs in one graph: what a kernel takes within a captured call."""

        def many():
            for _ in range(repeats):
                run()

        repeats = 2 if self.dry else REPEATS
        return round(self.ms(self.captured(many)) * 1e3 / repeats, 2)

    def captured(self, run):
        """Return a function that replays what `run` launches; in a dry run, `run`."""
        if self.dry:
            return run
        for _ in range(2):
            run()
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        graph.capture_begin(capture_error_mode="thread_local")
        try:
            run()
        finally:
            graph.capture_end()
        return graph.replay

    def note(self):
        """Write the file if that was not just done: nothing that is measured is lost to a later fault."""
        if time.monotonic() - self.saved > SAVED_EVERY:
            self.save()
            self.saved = time.monotonic()

    def randn(self, *shape):
        return torch.randn(*shape, device=self.device, dtype=self.dtype)

    def timestep(self, rows):
        return torch.full((rows,), 500, device=self.device)

    def unet_inputs(self, rows):
        latent, network = self.side // 8, self.networks.unet
        return (
            self.randn(rows, 4, latent, latent),
            self.randn(rows, sum(network.shift_widths)),
            self.randn(rows, 77, sum(network.context_widths)),
        )

    def text(self, rows):
        return self.randn(rows, 77, self.model.text_encoder.config.hidden_size)

    @contextlib.contextmanager
    def engine(self, found, *, tiny_vae=False, all_sizes=False, model="sd15", **options):
        """Yield the product's engine, loaded as its process loads it; record what the start took.

        `all_sizes`: capture all that the product captures, and not the usual one alone. `model`: "demo" for the
        built-in one; any other gives random weights.
        """
        config = device.config(model, **({"device": str(self.device), "max_batch": 8} | options))
        begun = time.perf_counter()
        with contextlib.ExitStack() as stack:
            stack.enter_context(torch.inference_mode(mode=False))
            if not all_sizes:
                stack.enter_context(one_size_captured(self.side))
            if model != "demo":
                stack.enter_context(mock.patch.object(loader.checkpoint, "load", self._random(tiny_vae=tiny_vae)))
            made = device.Ours(config)
        found["start_s"] = round(time.perf_counter() - begun, 1)
        found |= held(made.model)
        self.note()
        try:
            yield made
        finally:
            made.close()
            del made
            gc.collect()
            if self.device.type == "cuda":
                torch.cuda.empty_cache()

    def _random(self, *, tiny_vae):
        def load(config, where, dtype, progress):
            return self.make_model(tiny_vae=tiny_vae, dtype=None if self.dry else dtype)

        return load

    def rate(self, engine, requests, clients):
        """Return images a second and percentiles with so many clients at once."""
        seconds, latencies = engine.many(requests, clients)
        self.note()
        return {"images_s": round(len(requests) / seconds, 2), **percentiles(latencies)}

    def several(self, count, width=None, height=None, **fields):
        """Return requests of the usual size with different seeds."""
        data = device.picture(width or self.side, height or self.side)
        return [(device.request(seed, **fields), data) for seed in range(count)]

    def picture(self, model, **fields):
        """Run one request through the stages; return its pictures."""
        data = device.picture(self.side, self.side)
        return device.generate(model, device.request(7, **fields), device.images.decode(data, device.config()))


def one_size_captured(side):
    """Have the product capture pictures of one size alone."""
    policy = replace(loader.POLICY, sizes=((side, side),))
    return mock.patch.object(loader, "Captures", functools.partial(loader.Captures, policy=policy))


def held(model):
    """Return what a loaded model holds: graphs, their memory, the budget of its stages."""
    found = {"memory_budget": str(model.memory_budget)}
    if model.graphs is not None:
        found["graphs_gb"] = round(model.graphs.nbytes / 1e9, 2)
    if model.model.device.type == "cuda":
        free, whole = torch.cuda.mem_get_info()
        found["free_gb"], found["of_gb"] = round(free / 1e9, 2), round(whole / 1e9, 2)
        found["reserved_gb"] = round(torch.cuda.memory_reserved() / 1e9, 2)
    return found


def make_bench(*, dry, short, deadline, save):
    return Bench(
        device=torch.device("cpu" if dry else "cuda"),
        dtype=torch.float32 if dry else torch.float16,
        dry=dry,
        short=short,
        side=64 if dry else 512,
        photo=(128, 64) if dry else (1024, 768),
        batches=((1, 2) if short else (1, 2, 4)) if dry else (1, 2, 3, 4, 6, 8),
        requests=(3 if short else 6) if dry else 300,
        quick=0.0 if dry else 0.25,
        deadline=deadline,
        save=save,
    )


@contextlib.contextmanager
def plain_weights(bench):
    """Keep weights out of oneDNN's layout within the context, because a compiler chooses their layout."""
    vars(bench).pop("networks", None)
    kept, torch.backends.mkldnn.enabled = torch.backends.mkldnn.enabled, not bench.dry
    try:
        yield
    finally:
        torch.backends.mkldnn.enabled = kept
        vars(bench).pop("networks", None)


def apart(one, other):
    return {"psnr_db": round(min(device.psnr(one, other), 999.0), 1), "levels": device.levels_apart(one, other)}


def seconds(run):
    begun = time.perf_counter()
    run()
    device.synchronize()
    return round(time.perf_counter() - begun, 1)


def percentiles(latencies):
    return {f"p{q}_ms": round(float(np.percentile(latencies, q)) * 1e3, 2) for q in (50, 95, 99)}
