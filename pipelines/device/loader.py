"""Loads a model onto its device for the engine: weights, memory profile, CUDA graphs, memory budget."""

from __future__ import annotations

import gc
import logging
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch

from pipelines.device import advice, devices, dtypes, memory
from pipelines.device.cuda_graphs import Cuda, Graphs
from pipelines.device.torch_backend import TorchBackend, is_out_of_memory
from pipelines.engine.backend import ImageCodec, LoadedBackend, Stage
from pipelines.errors import NoRoomError
from pipelines.messages import GenerationParams
from pipelines.model.functions import make_functions
from pipelines.model.kernels import instructions
from pipelines.weights import checkpoint

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from pipelines.device.cuda_graphs import Size
    from pipelines.engine.backend import Pixels
    from pipelines.messages import EngineConfig
    from pipelines.model.functions import ModelFunctions
    from pipelines.model.lcm import Conditioning
    from pipelines.model.trajectory import Trajectory

    Progress = Callable[[float, str], None]

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class CaptureSizes:
    """Shapes that are run before the first request, and the memory for them.

    `warm_up_side`: side of the square picture of profile and first run, the size that most requests have.
    `warm_up_side_cpu`: the same for a CPU, where full-size weights take half a minute for 512; a small picture loads
    the weights into memory and measures the speed just as well. `captured`: height and width of the graphs, the most
    frequent first, each for the batches up to the largest allowed.
    `graphs_share`: share of the memory beside the weights that graphs may take. `stages_share`: share of the memory
    left then that stages may count on; the driver's and other programs' need varies.
    """

    warm_up_side: int = 512
    warm_up_side_cpu: int = 128
    captured: tuple[Size, ...] = ((512, 512), (512, 768), (768, 512), (768, 768))
    graphs_share: float = 0.5
    stages_share: float = 0.8


SIZES = CaptureSizes()


def load(config: EngineConfig, progress: Progress, sizes: CaptureSizes = SIZES) -> LoadedBackend:
    """Return the model that `config` names, on its device.

    Raises `CheckpointError`; `CaptureFailedError`; `NoRoomError` if memory runs out.
    """
    try:
        with devices.tuning(config):
            return _load(config, progress, sizes)
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        raise NoRoomError(config.device) from error


def _load(config: EngineConfig, progress: Progress, sizes: CaptureSizes) -> LoadedBackend:
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
    if cpu:
        devices.keep_freed_memory()
    else:  # on a CPU the engine's first run is the profile: `TorchBackend.learning`
        profile_memory(backend, sizes.warm_up_side)
    if model.device.type == "cuda" and config.graphs == "auto":
        room = int(devices.free_memory(model.device) * sizes.graphs_share)
        graphs = Graphs(Cuda(exact=config.max_batch == 1), room)
        shapes = [(size, rows) for size in sizes.captured for rows in batches(config.max_batch)]
        backend = capture_graphs(backend, graphs, shapes, progress)
    if model.device.type == "cuda":
        pin_memory(backend, sizes.warm_up_side, batches(config.max_batch))
    set_memory_budget(backend, devices.free_memory(model.device) * sizes.stages_share)
    return LoadedBackend(
        model=backend,
        codec=ImageCodec(config),
        name=model.name,
        device=str(model.device),
        dtype=str(model.dtype).removeprefix("torch."),
        notice=" ".join(filter(None, notices)),
        warm_up_side=sizes.warm_up_side_cpu if cpu else sizes.warm_up_side,
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


def profile_memory(model: TorchBackend, side: int) -> None:
    """Run a black picture through every stage, uncaptured, and record the memory that each takes."""
    device, pixels = model.model.device, side * side
    (item,) = _black(model, side, side, 1)
    if device.type == "cuda":
        model.step(model.encode([item]))  # libraries that are loaded now would count
    trajectories: list[Trajectory] = []
    for stage, run in (
        (Stage.ENCODE, lambda: trajectories.extend(model.encode([item]))),
        (Stage.STEP, lambda: model.step(trajectories)),
        (Stage.DECODE, lambda: model.check(model.decode(trajectories))),
    ):
        model.settle()
        model.memory_budget.note(stage, pixels, 1, memory.peak(device, run))
    model.settle()


def pin_memory(model: TorchBackend, side: int, rows: Sequence[int]) -> None:
    """Copy square pictures in batches of these sizes to the host, so that memory is pinned: that stops the device.

    Two at a time, since pictures come and go at once. After captures, which give pinned memory back.
    """
    for count in rows:
        pixels = torch.zeros(count, side, side, 3, dtype=torch.uint8, device=model.model.device)
        flags = torch.zeros(count, dtype=torch.bool, device=model.model.device)
        for wait in [model.fetch(pixels, flags, flags) for _ in range(2)]:
            wait()


def set_memory_budget(model: TorchBackend, free: float) -> None:
    """Divide `free` bytes among the stages that may run at once, one for each stream."""
    model.memory_budget.budget = free / (1 + model.overlaps)
    logger.info("memory: %s", model.memory_budget)


def capture_graphs(
    model: TorchBackend,
    graphs: Graphs,
    shapes: Sequence[tuple[Size, int]],
    progress: Progress,
) -> TorchBackend:
    """Return `model` with captured functions: black pictures of each (size, rows) are run through every stage.

    With only single pictures, a step with guidance is captured too; its two rows fit no batch.
    """
    captured = model.captured(captured_functions(model.functions, graphs), graphs)
    alone = max(rows for _, rows in shapes) == 1
    with graphs.learning():
        for number, ((height, width), rows) in enumerate(shapes):
            progress(number / len(shapes), f"preparing for {rows} pictures of {height}×{width}")
            _capture_size(captured, height, width, rows, guided=alone)
    captured.settle()
    return captured


def captured_functions(plain: ModelFunctions, graphs: Graphs) -> ModelFunctions:
    """Return the functions with their shapes captured in `graphs`."""
    steps, pictures = "steps", "pictures"
    return replace(
        plain,
        embed=graphs.wrap("text", plain.embed, _text_size, stream=pictures),
        unet=graphs.wrap("unet", plain.unet, _latent_size, stream=steps),
        vae_encode=graphs.wrap("encode", plain.vae_encode, _size, stream=pictures),
        vae_decode=graphs.wrap("decode", plain.vae_decode, _latent_size, stream=pictures),
        flags=plain.flags and graphs.wrap("safety", plain.flags, _pixels_size, stream=pictures),
    )


def _capture_size(model: TorchBackend, height: int, width: int, rows: int, *, guided: bool) -> None:
    """Run every stage once, and a step with guidance if `guided`. A shape without room is left out."""
    try:
        trajectories = model.encode(_black(model, height, width, rows))
        model.step(trajectories)
        model.check(model.decode(trajectories))
        if guided:
            model.step(model.encode(_black(model, height, width, 1, guidance=2.0)))
    except torch.OutOfMemoryError:
        logger.warning("no room for %d pictures of %d×%d at once", rows, height, width)


def _black(
    model: TorchBackend, height: int, width: int, rows: int, guidance: float = 1.0
) -> list[tuple[GenerationParams, Conditioning, Pixels, int]]:
    params = GenerationParams(prompt="", seed=0, num_inference_steps=1, guidance_scale=guidance)
    conditioning = model.prepare(params)
    return [(params, conditioning, np.zeros((height, width, 3), np.uint8), 0) for _ in range(rows)]


def batches(most: int) -> list[int]:
    """Return the numbers of pictures to capture: powers of two and the largest batch, largest first.

    After the largest, the memory pool has all that the others need.
    """
    return [most, *(2**power for power in reversed(range(most.bit_length())) if 2**power < most)]


def _latent_size(latents: torch.Tensor) -> tuple[int, int]:
    """Return height and width of the pictures of [N, channels, h, w]."""
    _, _, height, width = latents.shape
    return 8 * height, 8 * width


def _size(images: torch.Tensor) -> tuple[int, int]:
    """Return height and width of [N, channels, H, W]."""
    _, _, height, width = images.shape
    return height, width


def _pixels_size(pixels: torch.Tensor) -> tuple[int, int]:
    """Return height and width of [N, H, W, 3]."""
    _, height, width, _ = pixels.shape
    return height, width


def _text_size(ids: torch.Tensor) -> tuple[int, int]:
    """Return the size of token ids [rows, length]."""
    return 1, ids.shape[1]
