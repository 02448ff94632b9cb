"""The engine loop's model in earnest: `Lcm` on a device, with what the loop must know of torch."""

from __future__ import annotations

import logging
import math
from collections import deque
from typing import TYPE_CHECKING

import numpy as np
import torch

from pipelines import checkpoint, devices, footprint, lanes
from pipelines.compiled import Compiler
from pipelines.errors import NoRoomError
from pipelines.footprint import Footprint
from pipelines.graphs import Cuda, Graphs
from pipelines.lcm import Lcm
from pipelines.stages import Diagnosis, ImageCodec, Outfit
from pipelines.types import GenerationParams

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from pipelines.checkpoint import Model
    from pipelines.lanes import Lane
    from pipelines.lcm import Conditioning
    from pipelines.stages import Mark, Pixels
    from pipelines.trajectory import Trajectory
    from pipelines.types import EngineConfig

    Progress = Callable[[float, str], None]
    Pictures = tuple[Pixels, list[bool], list[bool]]

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

# Launched steps whose end is not waited for: the last one, which keeps the device busy while the loop decides.
_STEPS_AHEAD = 1

# What a bare RuntimeError says when memory is out: the CPU allocators (c10/core/impl/alloc_cpu.cpp), and libraries that
# allocate beside torch.
_OUT_OF_MEMORY = (
    "can't allocate memory",
    "not enough memory",
    "_STATUS_ALLOC_FAILED",
    "CUDA error: out of memory",
    "MPS backend out of memory",
)


def load(config: EngineConfig, progress: Progress) -> Outfit:
    """The model that `config` names, on its device. Raises `CheckpointError`; `NoRoomError` if its memory runs out."""
    try:
        return _load(config, progress)
    except Exception as error:
        if not _is_out_of_memory(error):
            raise
        raise NoRoomError(config.device) from error


def _load(config: EngineConfig, progress: Progress) -> Outfit:
    if config.threads:
        torch.set_num_threads(config.threads)
    devices.prepare(config.device, exact=config.max_batch == 1)
    model = checkpoint.load(config, progress)
    device_model = DeviceModel(model)
    device_model.release()
    cpu = model.device.type == "cpu"
    if cpu:
        devices.keep_freed_memory()
    device_model.measure(WARM_UP_SIDE_CPU if cpu else WARM_UP_SIDE)
    if model.device.type == "cuda":
        graphs = Graphs(Cuda(exact=config.max_batch == 1), int(devices.free_memory(model.device) * _GRAPHS_SHARE))
        device_model.capture(graphs, config.max_batch, progress, Compiler() if config.compile else None)
    device_model.allot(devices.free_memory(model.device))
    return Outfit(
        model=device_model,
        codec=ImageCodec(config),
        name=model.name,
        device=str(model.device),
        dtype=str(model.dtype).removeprefix("torch."),
        notice=model.notice,
        warm_up_side=WARM_UP_SIDE_CPU if cpu else WARM_UP_SIDE,
        overlaps=device_model.overlaps,
    )


class DeviceModel(Lcm):
    """A `stages.Model`. Steps go in one lane of the device; everything else, which makes or reads pictures, in another.

    What crosses over: a trajectory's tensors, made beside the steps and then read by them (`begun`), and the latents
    that a step leaves, which decoding reads. Everything else stays in its lane.
    """

    def __init__(self, model: Model, its_lanes: tuple[Lane, Lane] | None = None) -> None:
        super().__init__(model)
        self.graphs: Graphs | None = None
        self.footprint = Footprint(math.inf)
        self._steps, self._pictures = its_lanes or lanes.of(model.device)
        self._ahead: deque[Mark] = deque()

    @property
    def overlaps(self) -> bool:
        """Whether pictures are made beside steps."""
        return self._steps is not self._pictures

    # --- before the loop -------------------------------------------------------------------------------------------

    def measure(self, side: int) -> None:
        """Run a black picture through every stage as it is, and note the memory that each takes."""
        device, pixels = self.model.device, side * side
        (item,) = self._black(side, side, 1)
        if device.type == "cuda":
            self.step(self.encode([item]))  # libraries that are loaded now would count
        trajectories: list[Trajectory] = []
        for stage, run in (
            ("encode", lambda: trajectories.extend(self.encode([item]))),
            ("steps", lambda: self.step(trajectories)),
            ("decode", lambda: self.check(self.decode(trajectories))),
        ):
            self._settle()
            self.footprint.note(stage, pixels, 1, footprint.peak(device, run))
        self._settle()

    def allot(self, free: float) -> None:
        """Let the stages share the memory that is left, as many at a time as there are lanes."""
        self.footprint.budget = free * _STAGES_SHARE / (1 + self.overlaps)
        logger.info("memory: %s", self.footprint)

    def capture(self, graphs: Graphs, max_batch: int, progress: Progress, compiler: Compiler | None = None) -> None:
        """Run black pictures of the usual sizes and batches through every stage, and keep what that captures."""
        self.graphs = graphs
        form = compiler or (lambda run: run)
        self.unet = graphs.wrap("unet", self.unet, _latent_size, lane="steps", form=form(self.unet))
        self.vae_encode = graphs.wrap("encode", self.vae_encode, _size, lane="pictures", form=form(self.vae_encode))
        self.vae_decode = graphs.wrap(
            "decode", self.vae_decode, _latent_size, lane="pictures", form=form(self.vae_decode)
        )
        self.prompts.embed = graphs.wrap("text", self.prompts.embed, _text_size, lane="pictures")
        if self.checker is not None:
            self.checker.flags = graphs.wrap("safety", self.checker.flags, _pixels_size, lane="pictures")
        # The largest batch first: the pool has grown to what the others need.
        shapes = [(size, rows) for size in CAPTURED_SIZES for rows in reversed(batches(max_batch))]
        self.prompts.clear()  # so that a text is read meanwhile
        with graphs.learning():
            for number, ((height, width), rows) in enumerate(shapes):
                progress(number / len(shapes), f"preparing for {rows} pictures of {height}×{width}")
                self._rehearse(height, width, rows, guided=rows == 1 == max_batch)
        self._settle()

    def _rehearse(self, height: int, width: int, rows: int, *, guided: bool) -> None:
        """Every stage once, and a step with guidance where no batch has its two rows. Without room: nothing."""
        try:
            trajectories = self.encode(self._black(height, width, rows))
            self.step(trajectories)
            self.check(self.decode(trajectories))
            if guided:
                self.step(self.encode(self._black(height, width, 1, guidance=2.0)))
        except torch.OutOfMemoryError:
            logger.warning("no room for %d pictures of %d×%d at once", rows, height, width)

    def _black(
        self, height: int, width: int, rows: int, guidance: float = 1.0
    ) -> list[tuple[GenerationParams, Conditioning, Pixels, int]]:
        params = GenerationParams(prompt="", seed=0, num_inference_steps=1, guidance_scale=guidance)
        conditioning = self.prepare(params)
        return [(params, conditioning, np.zeros((height, width, 3), np.uint8), 0) for _ in range(rows)]

    def _settle(self) -> None:
        """Return when the device has nothing left to do."""
        for lane in (self._steps, self._pictures):
            lane.mark().wait()

    # --- stages, each in its lane ------------------------------------------------------------------------------------

    def prepare(self, params: GenerationParams) -> Conditioning:
        """See `Lcm`."""
        with self._pictures.running():
            return super().prepare(params)

    def encode(self, items: Sequence[tuple[GenerationParams, Conditioning, Pixels, int]]) -> list[Trajectory]:
        """See `Lcm`."""
        with self._pictures.running():
            trajectories = super().encode(items)
        begun = self._pictures.mark()
        for trajectory in trajectories:
            trajectory.begun = begun
        return trajectories

    def step(self, trajectories: Sequence[Trajectory]) -> None:
        """See `Lcm`, and `stages.Model` for what is waited for."""
        for trajectory in trajectories:
            if trajectory.begun is not None:
                self._steps.follow(trajectory.begun, *trajectory.tensors)
        with self._steps.running():
            super().step(trajectories)
        for trajectory in trajectories:
            trajectory.begun = None
        self._ahead.append(self._steps.mark())
        if len(self._ahead) > _STEPS_AHEAD:
            self._ahead.popleft().wait()

    def decode(self, trajectories: Sequence[Trajectory]) -> torch.Tensor:
        """See `Lcm`."""
        self._pictures.follow(self._steps.mark(), *(trajectory.denoised for trajectory in trajectories))
        with self._pictures.running():
            return super().decode(trajectories)

    def finite(self, trajectories: Sequence[Trajectory]) -> torch.Tensor:
        """See `Lcm`."""
        with self._pictures.running():
            return super().finite(trajectories)

    def check(self, pixels: torch.Tensor) -> torch.Tensor:
        """See `Lcm`."""
        with self._pictures.running():
            return super().check(pixels)

    # --- what the loop must know -------------------------------------------------------------------------------------

    def fetch(self, pixels: torch.Tensor, finite: torch.Tensor, unsafe: torch.Tensor) -> Callable[[], Pictures]:
        """See `stages.Model`."""
        with self._pictures.running():
            copies = [self._pictures.to_host(tensor) for tensor in (pixels, finite, unsafe)]
        arrived = self._pictures.mark()

        def wait() -> Pictures:
            arrived.wait()
            pictures, numbers, flags = copies
            return pictures.numpy(), numbers.tolist(), flags.tolist()

        return wait

    def mark(self, stage: str) -> Mark:
        """See `stages.Model`."""
        return (self._steps if stage == "steps" else self._pictures).mark()

    def room(self, stage: str, pixels: int, most: int) -> int:
        """See `stages.Model`."""
        return self.footprint.rows("decode" if stage == "preview" else stage, pixels, most)

    def diagnose(self, error: Exception) -> Diagnosis:
        """Out of memory is torch's own error or an allocator's; any other error of the device outlives its call."""
        if _is_out_of_memory(error):
            return Diagnosis.OUT_OF_MEMORY
        if isinstance(error, torch.AcceleratorError) or "CUDA error" in str(error):
            return Diagnosis.DEVICE_LOST
        return Diagnosis.OTHER

    def relieve(self) -> bool:
        """See `stages.Model`: what is captured."""
        relieved = self.graphs is not None and self.graphs.evict()
        if relieved:
            logger.warning("gave up all captured shapes for their memory: they run slower until a restart")
        return relieved


def _is_out_of_memory(error: Exception) -> bool:
    words = str(error)
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or any(sign in words for sign in _OUT_OF_MEMORY)


def batches(most: int) -> list[int]:
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
