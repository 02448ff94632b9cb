"""A model fitted to its device before the loop: loaded, measured, captured where that can be, and given its memory."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import numpy as np
import torch

from pipelines.device import devices, memory
from pipelines.device.compile import Compiler
from pipelines.device.cuda_graphs import Cuda, Graphs
from pipelines.device.torch_backend import TorchBackend, is_out_of_memory
from pipelines.engine.backend import ImageCodec, LoadedBackend
from pipelines.errors import NoRoomError
from pipelines.messages import GenerationParams
from pipelines.weights import checkpoint

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from pipelines.engine.backend import Pixels
    from pipelines.messages import EngineConfig
    from pipelines.model.lcm import Conditioning
    from pipelines.model.trajectory import Trajectory

    Progress = Callable[[float, str], None]

logger = logging.getLogger(__name__)

# The size that most requests have. On a CPU full-size weights take half a minute for that; a small picture brings the
# weights in and tells the pace just as well.
WARM_UP_SIDE = 512
WARM_UP_SIDE_CPU = 128

# The sizes that most requests have, the most wanted first, the batches up to the largest that is allowed, and the share
# of the memory beside the weights that their graphs may take.
CAPTURED_SIZES = ((512, 512), (512, 768), (768, 512), (768, 768))
_GRAPHS_SHARE = 0.5

# Of what memory is left, the share that stages may count on: what the driver and other programs take comes and goes.
_STAGES_SHARE = 0.8


def load(config: EngineConfig, progress: Progress) -> LoadedBackend:
    """The model that `config` names, on its device. Raises `CheckpointError`; `NoRoomError` if its memory runs out."""
    try:
        return _load(config, progress)
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        raise NoRoomError(config.device) from error


def _load(config: EngineConfig, progress: Progress) -> LoadedBackend:
    if config.threads:
        torch.set_num_threads(config.threads)
    devices.prepare(config.device, exact=config.max_batch == 1)
    device, dtype = devices.pick(config)
    model = checkpoint.load(config, device, dtype, progress)
    backend = TorchBackend(model)
    backend.release()
    cpu = model.device.type == "cpu"
    if cpu:
        devices.keep_freed_memory()
    profile_memory(backend, WARM_UP_SIDE_CPU if cpu else WARM_UP_SIDE)
    if model.device.type == "cuda":
        graphs = Graphs(Cuda(exact=config.max_batch == 1), int(devices.free_memory(model.device) * _GRAPHS_SHARE))
        capture_graphs(backend, graphs, config.max_batch, progress, Compiler() if config.compile else None)
    set_memory_budget(backend, devices.free_memory(model.device))
    return LoadedBackend(
        model=backend,
        codec=ImageCodec(config),
        name=model.name,
        device=str(model.device),
        dtype=str(model.dtype).removeprefix("torch."),
        notice=model.notice,
        warm_up_side=WARM_UP_SIDE_CPU if cpu else WARM_UP_SIDE,
        overlaps=backend.overlaps,
    )


def profile_memory(model: TorchBackend, side: int) -> None:
    """Run a black picture through every stage as it is, and note the memory that each takes."""
    device, pixels = model.model.device, side * side
    (item,) = _black(model, side, side, 1)
    if device.type == "cuda":
        model.step(model.encode([item]))  # libraries that are loaded now would count
    trajectories: list[Trajectory] = []
    for stage, run in (
        ("encode", lambda: trajectories.extend(model.encode([item]))),
        ("steps", lambda: model.step(trajectories)),
        ("decode", lambda: model.check(model.decode(trajectories))),
    ):
        model.settle()
        model.memory_budget.note(stage, pixels, 1, memory.peak(device, run))
    model.settle()


def set_memory_budget(model: TorchBackend, free: float) -> None:
    """Let the stages share the memory that is left, as many at a time as there are lanes."""
    model.memory_budget.budget = free * _STAGES_SHARE / (1 + model.overlaps)
    logger.info("memory: %s", model.memory_budget)


def capture_graphs(
    model: TorchBackend,
    graphs: Graphs,
    max_batch: int,
    progress: Progress,
    compiler: Compiler | None = None,
    *,
    sizes: Sequence[tuple[int, int]] = CAPTURED_SIZES,
    batches: Sequence[int] | None = None,
) -> None:
    """Run blank pictures of `sizes` in `batches` (None: the usual) through every stage, keep what that captures."""
    model.graphs = graphs
    form = compiler or (lambda run: run)
    model.unet = graphs.wrap("unet", model.unet, _latent_size, stream="steps", form=form(model.unet))
    model.vae_encode = graphs.wrap("encode", model.vae_encode, _size, stream="pictures", form=form(model.vae_encode))
    model.vae_decode = graphs.wrap(
        "decode", model.vae_decode, _latent_size, stream="pictures", form=form(model.vae_decode)
    )
    model.prompts.embed = graphs.wrap("text", model.prompts.embed, _text_size, stream="pictures")
    if model.checker is not None:
        model.checker.flags = graphs.wrap("safety", model.checker.flags, _pixels_size, stream="pictures")
    # The largest batch first: the pool has grown to what the others need.
    shapes = [(size, rows) for size in sizes for rows in reversed(batches or usual_batches(max_batch))]
    model.prompts.clear()  # so that a text is read meanwhile
    with graphs.learning():
        for number, ((height, width), rows) in enumerate(shapes):
            progress(number / len(shapes), f"preparing for {rows} pictures of {height}×{width}")
            _capture_size(model, height, width, rows, guided=rows == 1 == max_batch)
    model.settle()


def _capture_size(model: TorchBackend, height: int, width: int, rows: int, *, guided: bool) -> None:
    """Every stage once, and a step with guidance where no batch has its two rows. Without room: nothing."""
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


def usual_batches(most: int) -> list[int]:
    """Numbers of pictures to capture: powers of two, and the largest batch itself."""
    return [*(2**power for power in range(most.bit_length()) if 2**power < most), most]


def _latent_size(latents: torch.Tensor) -> tuple[int, int]:
    """Height and width of the pictures of [N, channels, h, w]."""
    _, _, height, width = latents.shape
    return 8 * height, 8 * width


def _size(images: torch.Tensor) -> tuple[int, int]:
    """Height and width of [N, channels, H, W]."""
    _, _, height, width = images.shape
    return height, width


def _pixels_size(pixels: torch.Tensor) -> tuple[int, int]:
    """Height and width of [N, H, W, 3]."""
    _, height, width, _ = pixels.shape
    return height, width


def _text_size(ids: torch.Tensor) -> tuple[int, int]:
    """Of [rows, length] token ids."""
    return 1, ids.shape[1]
