"""Loads a model onto its device for the engine: weights, memory profile, CUDA graphs, memory budget."""

from __future__ import annotations

import gc
import logging
from functools import partial
from typing import TYPE_CHECKING

import torch

from pipelines.device import advice, devices, dtypes, memory
from pipelines.device.captures import POLICY, Captures, black, captured_model, step_rows
from pipelines.device.cuda_capture import Cuda
from pipelines.device.cuda_graphs import Graphs
from pipelines.device.torch_backend import TorchBackend, is_out_of_memory
from pipelines.engine.backend import ImageCodec, LoadedBackend, Stage
from pipelines.errors import NoRoomError
from pipelines.model.functions import make_functions
from pipelines.model.kernels import instructions
from pipelines.model.kernels.cuda import fused_attention
from pipelines.weights import checkpoint

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from pipelines.messages import EngineConfig
    from pipelines.model.trajectory import Trajectory

    Progress = Callable[[float, str], None]

logger = logging.getLogger(__name__)


# Sides of the square picture of profile and first run: the size that most requests have; and the same for a CPU, where
# full-size weights take half a minute for 512, and a small picture loads the weights into memory and measures the speed
# just as well.
WARM_UP_SIDE = 512
WARM_UP_SIDE_CPU = 128


def load(config: EngineConfig, progress: Progress) -> LoadedBackend:
    """Return the model that `config` names, on its device.

    Raises `CheckpointError`; `CaptureFailedError`; `NoRoomError` if memory runs out.
    """
    try:
        with devices.tuning(config):
            return _load(config, progress)
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        raise NoRoomError(config.device) from error


def _load(config: EngineConfig, progress: Progress) -> LoadedBackend:
    devices.prepare(config)
    device, dtype = dtypes.pick(config)
    if warning := advice.emulated(device, dtype):
        logger.warning("%s", warning)
    unused = devices.passed_over(config)
    if unused and checkpoint.is_full_size(config):
        raise unused

    def place(dtype: torch.dtype) -> TorchBackend:
        model = checkpoint.load(config, device, dtype, progress)
        return TorchBackend(model, make_functions(model, consumed=devices.give_back_freed_memory))

    if device.type in dtypes.ACCELERATORS:
        backend = place_to_draw(place, dtype, asked=config.dtype != "auto")
    else:
        backend = place(dtype)
    model = backend.model
    notices = [str(unused or ""), model.notice, advice.wrong_numbers(config, device, model.dtype)]
    heavy_vae = advice.has_heavy_vae(model)
    if heavy_vae:
        logger.info("%s", advice.TINY_VAE)
    cpu = model.device.type == "cpu"
    costs: dict[Stage, float] = {}
    if cpu:
        devices.keep_freed_memory()
    else:  # on a CPU the engine's first run is the profile: `TorchBackend.learning`
        if model.device.type == "cuda":
            choose_attention(backend, WARM_UP_SIDE, step_rows(config.max_batch))
        costs = profile_memory(backend, WARM_UP_SIDE)
    if model.device.type == "cuda" and config.graphs == "auto":
        graphs = Graphs(Cuda(exact=config.max_batch == 1))
        backend = captured_model(backend, graphs)
        backend.captures = Captures(backend, graphs, config, costs, free=partial(devices.free_memory, model.device))
        backend.captures.start(progress)
    else:
        backend.share_memory(devices.free_memory(model.device) * POLICY.stages_share)
    if model.device.type == "cuda":
        pin_memory(backend, WARM_UP_SIDE, step_rows(config.max_batch))
    return LoadedBackend(
        model=backend,
        codec=ImageCodec(config),
        name=model.name,
        device=str(model.device),
        dtype=str(model.dtype).removeprefix("torch."),
        torch=str(torch.__version__),
        notice=" ".join(filter(None, notices)),
        warm_up_side=WARM_UP_SIDE_CPU if cpu else WARM_UP_SIDE,
        overlaps=backend.overlaps,
        instructions=instructions.names() if cpu else "",
        heavy_vae=heavy_vae,
    )


def place_to_draw(place: Callable[[torch.dtype], TorchBackend], dtype: torch.dtype, *, asked: bool) -> TorchBackend:
    """Return the model that `place` makes in `dtype`, or in float32 if a small picture does not come out in numbers.

    `asked`: the dtype is what the operator asked for. Raises `CheckpointError` then.
    """
    backend = place(dtype)
    if dtype == torch.float32 or dtypes.draws(backend):
        return backend
    device = backend.model.device
    if asked:
        raise dtypes.wrong_numbers(dtype, device)
    del backend
    gc.collect()  # a model's parts refer to each other
    devices.free_memory(device)  # gives torch's cache back
    return place(torch.float32)


def choose_attention(model: TorchBackend, side: int, rows: Sequence[int]) -> None:
    """Choose the kernels of the UNet's attention in steps of square pictures with these numbers of rows."""
    trajectories = model.encode(black(model, side, side, 1))
    with fused_attention.Noted() as noted:
        model.step(trajectories)
    model.settle()
    fused_attention.choose(noted.given.values(), rows)


def profile_memory(model: TorchBackend, side: int) -> dict[Stage, float]:
    """Run a black picture through every stage, uncaptured, and record the memory that each takes.

    Returns the bytes a pixel which each would take in a pool of its own; what `check` takes is in DECODE, too.
    """
    device, pixels = model.model.device, side * side
    (item,) = black(model, side, side, 1)
    # Libraries that are loaded now would count, and the scratch of all kernels that cuDNN times.
    known = model.encode([item])
    model.step(known)
    model.check(model.decode(known))
    trajectories: list[Trajectory] = []
    drawn: list[torch.Tensor] = []
    pools: dict[Stage, float] = {}
    for stage, counted, run in (
        (Stage.ENCODE, Stage.ENCODE, lambda: trajectories.extend(model.encode([item]))),
        (Stage.STEP, Stage.STEP, lambda: model.step(trajectories)),
        (Stage.DECODE, Stage.DECODE, lambda: drawn.append(model.decode(trajectories))),
        (Stage.SAFETY, Stage.DECODE, lambda: model.check(*drawn)),
    ):
        model.settle()
        measured = memory.measure(device, run)
        model.memory_budget.note(counted, pixels, 1, measured.peak)
        pools[stage] = measured.pool / pixels
    model.settle()
    return pools


def pin_memory(model: TorchBackend, side: int, rows: Sequence[int]) -> None:
    """Copy square pictures in batches of these sizes to the host, so that memory is pinned: that stops the device.

    Two at a time, since pictures come and go at once. After captures, which give pinned memory back.
    """
    for count in rows:
        pixels = torch.zeros(count, side, side, 3, dtype=torch.uint8, device=model.model.device)
        flags = torch.zeros(count, dtype=torch.bool, device=model.model.device)
        for wait in [model.fetch(pixels, flags, flags) for _ in range(2)]:
            wait()
