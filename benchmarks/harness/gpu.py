"""What the sections of `benchmarks.gpu` measure with: a stopwatch, a model of random weights, a pretended capture."""

import contextlib
import copy
import functools
import logging
import signal
import statistics
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from benchmarks.harness import device as rig
from pipelines.device import loader
from pipelines.device.cuda_graphs import Cuda, Graphs
from pipelines.device.torch_backend import TorchBackend
from pipelines.model import kernels
from pipelines.weights import architectures
from pipelines.weights.checkpoint import LoadedCheckpoint
from tests.support import checkpoint_layouts
from tests.support.published_configs import FULL, SCHEDULER, TINY

TINY_VAE = {"_class_name": "AutoencoderTiny", "latent_channels": 4}


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
        rig.synchronize()
        walls, begun = [], time.perf_counter()
        while len(walls) < least or (time.perf_counter() - begun < self.quick and len(walls) < 200):
            start = time.perf_counter()
            run()
            rig.synchronize()
            walls.append(time.perf_counter() - start)
        return round(statistics.median(walls) * 1e3, 3)

    def randn(self, *shape):
        return torch.randn(*shape, device=self.device, dtype=self.dtype)

    def capture_graphs(self):
        return Pretend() if self.dry else Cuda()

    def captured(self, run, inputs):
        """`run` as a captured call, and how it is given up."""
        device = self.capture_graphs()
        graph = device.capture_graphs(run, inputs, device.pool())
        return functools.partial(graph.replay, inputs), graph.destroy

    def captured_model(self, model=None, *, sizes=None, rows=None, its_streams=None, compiler=None):
        """A model of ours with its graphs; `rows`: which batches of up to 8 are captured."""
        made = TorchBackend(model or self.model, its_streams)
        self.capture_shapes(made, sizes, rows, compiler)
        return made

    def capture_shapes(self, made, sizes=None, rows=None, compiler=None):
        with only(sizes or ((self.side, self.side),), rows):
            loader.capture_graphs(
                made, Graphs(self.capture_graphs(), 2**40), max(rows or (8,)), lambda fraction, what: None, compiler
            )

    def note_peaks(self):
        """Keep what was allocated and reserved at most so far: measuring a stage starts torch's count again."""
        if self.device.type == "cuda":
            now = torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved()
            self.peaks = tuple(map(max, self.peaks, now))

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

    def capture_graphs(self, run, inputs, pool):
        run(*inputs)
        graph = Pretend()
        graph.replay = lambda given: run(*given)
        return graph

    def destroy(self):
        pass


def make_bench(*, dry, minutes):
    device = torch.device("cpu" if dry else "cuda")
    dtype = torch.float32 if dry else torch.float16
    return Bench(
        device=device,
        dtype=dtype,
        dry=dry,
        side=64 if dry else 512,
        batches=(1, 2, 4) if dry else (1, 2, 4, 8, 16),
        requests=6 if dry else 200,
        quick=0.02 if dry else 1.0,
        model=random_model(TINY if dry else FULL, device, dtype),
        deadline=time.monotonic() + 60 * minutes,
    )


def random_part(make, config, device, dtype):
    """A module with random weights made where they are to lie, of a size that keeps activations finite."""
    module = make(config).to_empty(device=device).to(dtype)
    for name, tensor in module.state_dict().items():
        if tensor.dim() > 1 and tensor.is_floating_point():
            tensor.normal_(0, max(tensor[0].numel(), 1) ** -0.5)
        elif tensor.is_floating_point():
            tensor.zero_() if name.endswith("bias") else tensor.uniform_(0.9, 1.1)
    for owner in module.modules():
        if hasattr(owner, "position_ids"):
            owner.position_ids = torch.arange(owner.position_ids.shape[-1], device=device)[None]
    return module.eval().requires_grad_(requires_grad=False)


def random_model(configs, device, dtype):
    with tempfile.TemporaryDirectory() as folder:
        checkpoint_layouts.write_tokenizer(Path(folder))
        tokenizer = architectures.load_tokenizer(Path(folder))
    checker = random_part(architectures.make_safety_checker, configs["safety_checker"], device, dtype)
    for thresholds in (checker.concept_embeds_weights, checker.special_care_embeds_weights):
        thresholds.fill_(2)  # nothing reaches it: random weights must not blacken pictures
    return LoadedCheckpoint(
        unet=random_part(architectures.make_unet, configs["unet"], device, dtype),
        vae=random_part(architectures.make_vae, configs["vae"], device, dtype),
        text_encoder=random_part(architectures.make_text_encoder, configs["text_encoder"], device, dtype),
        tokenizer=tokenizer,
        safety_checker=checker,
        scheduler_config=SCHEDULER,
        name="random",
        notice="",
        device=device,
        dtype=dtype,
    )


def with_tiny_vae(bench):
    return replace(bench.model, vae=random_part(architectures.make_vae, TINY_VAE, bench.device, bench.dtype))


def in_float32(model):
    """The same weights, computed with exactly."""
    parts = {
        name: copy.deepcopy(getattr(model, name)).float() for name in ("unet", "vae", "text_encoder", "safety_checker")
    }
    return replace(model, **parts, dtype=torch.float32)


@contextlib.contextmanager
def only(sizes, rows=None):
    """Captures of some sizes and batches: the others cost time and tell nothing new."""
    kept = loader.CAPTURED_SIZES, loader.batches
    loader.CAPTURED_SIZES = sizes
    if rows:
        loader.batches = lambda most: sorted(rows)
    try:
        yield
    finally:
        loader.CAPTURED_SIZES, loader.batches = kept


@contextlib.contextmanager
def switched(**switches):
    """Number formats of products on CUDA, for a while: fp16 accumulation, TF32."""
    kept = {name: getattr(torch.backends.cuda.matmul, name) for name in switches}
    for name, value in switches.items():
        setattr(torch.backends.cuda.matmul, name, value)
    try:
        yield
    finally:
        for name, value in kept.items():
            setattr(torch.backends.cuda.matmul, name, value)


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


class OutOfTime(BaseException):
    """A section's seconds are over. Whatever is caught in it, because it may fail, this is not."""


@contextlib.contextmanager
def at_most(seconds):
    """Raises `OutOfTime` within when the seconds are over: a section must not eat up the others' time."""

    def over(number, frame):
        raise OutOfTime(f"stopped after {seconds:.0f} s")

    before = signal.signal(signal.SIGALRM, over)
    signal.setitimer(signal.ITIMER_REAL, max(seconds, 0.01))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


class Warnings(logging.Handler):
    """What `pipelines` warns of meanwhile: shapes that can't be captured, a compiler that is not there."""

    def __init__(self):
        super().__init__(logging.WARNING)
        self.lines = []

    def emit(self, record):
        self.lines.append(record.getMessage()[:300])

    def __enter__(self):
        logging.getLogger("pipelines").addHandler(self)
        return self

    def __exit__(self, *exception):
        logging.getLogger("pipelines").removeHandler(self)


def percentiles(latencies):
    return {f"p{q}_ms": round(float(np.percentile(latencies, q)) * 1e3, 2) for q in (50, 95, 99)}


def rate(engine, requests, clients):
    seconds, latencies = engine.many(requests, clients)
    return {"images_s": round(len(requests) / seconds, 2), **percentiles(latencies)}
