"""Which calls of a model are captured as CUDA graphs, within the memory of the card.

Graphs save launches, and hold their memory for good. So they get what is left beside the largest picture alone, and a
part of the memory in any case. What gains most for its memory comes first:

    steps      the UNet: some 600 launches, four times a picture, 260 bytes a pixel; a pool of its own
    pictures   safety checker (some 400 launches, 33 bytes), then the autoencoder (some 130, 1 500 bytes)

Per function there is a ceiling of pixels times rows, found before anything is captured. All shapes below it are
captured, largest first, and use the same memory, so that a ceiling costs what its largest shape costs. Pictures are
captured for one and two rows, and more of them are several replays; a step of five or seven takes the next larger
graph, as if it had six or eight.

When one picture has no room beside the graphs, the larger pool is given up. What most requests ask for, one picture of
the first size, is captured again once there has been nothing to do for a while, but not all the time: whoever sent
that picture may send more of them.
"""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import torch

from pipelines.device.torch_backend import is_out_of_memory
from pipelines.engine.backend import Stage
from pipelines.messages import GenerationParams
from pipelines.model.calls import Calls

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from pipelines.device.cuda_graphs import Graphs, Size
    from pipelines.device.torch_backend import TorchBackend
    from pipelines.engine.backend import Pixels
    from pipelines.messages import EngineConfig
    from pipelines.model.calls import Rows
    from pipelines.model.lcm import Conditioning

    Progress: TypeAlias = Callable[[float, str], None]
    # Stage, height and width, rows.
    Shape: TypeAlias = tuple[Stage, Size, int]

logger = logging.getLogger(__name__)

STEPS, PICTURES, TEXT = "steps", "pictures", "text"

# Rows of pictures that are captured.
PICTURE_ROWS = (2, 1)


@dataclass(frozen=True, kw_only=True)
class CapturePolicy:
    """Sizes, shares and times of captures.

    `sizes`: height and width of the pictures, the most frequent first. `stages_share`: share of the free memory that
    stages and graphs may count on; the driver's and other programs' need varies. `most`, `least`: shares of that which
    graphs may take at most, and may take though the largest picture then has no room beside them. `steps_share`: the
    steps' share of the graphs' memory. `graph_bytes`: what the driver keeps for a graph, about.
    `again_after_s`: seconds of idleness before what was given up is captured again; `again_every_s`: and between two
    such times.
    """

    sizes: tuple[Size, ...] = ((512, 512), (512, 768), (768, 512), (768, 768))
    stages_share: float = 0.8
    most: float = 0.5
    least: float = 0.25
    steps_share: float = 0.9
    graph_bytes: int = 8 * 2**20
    again_after_s: float = 2.0
    again_every_s: float = 600.0


POLICY = CapturePolicy()


class Captures:
    """What is captured of a model, on one device. Used from the device's thread.

    `model`: of `captured_model`, with these `graphs`. `costs`: bytes a pixel which each stage takes in a pool of its
    own, none if not measured. `free`: returns the bytes of the device that are free.
    """

    def __init__(
        self,
        model: TorchBackend,
        graphs: Graphs,
        config: EngineConfig,
        costs: Mapping[Stage, float],
        *,
        free: Callable[[], float],
        policy: CapturePolicy = POLICY,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._model = model
        self._graphs = graphs
        self._max_batch = config.max_batch
        self._most_pixels = config.max_side**2
        self._costs = costs
        self._free = free
        self._policy = policy
        self._clock = clock
        self._usable = 0.0
        self._lost = False
        self._again_at = 0.0

    def start(self, progress: Progress) -> None:
        """Capture all that there is memory for, and leave the rest of the memory to the stages."""
        steps = step_rows(self._max_batch)
        self._fill(self._policy.sizes, steps, PICTURE_ROWS[-min(self._max_batch, len(PICTURE_ROWS)) :], progress)

    def give_up(self) -> bool:
        """Give up the larger pool. Return False if there is none."""
        stream = max((STEPS, PICTURES), key=self._graphs.held)
        if not self._graphs.evict(stream):
            return False
        self._share()
        self._lost = True
        logger.warning("gave up all captured %s for their memory: they run slower until there is nothing to do", stream)
        return True

    def idle(self, seconds: float) -> None:
        """Capture one picture of the first size again, if it was given up and it is time."""
        if self._lost and seconds >= self._policy.again_after_s and self._clock() >= self._again_at:
            self._again_at = self._clock() + self._policy.again_every_s
            first = self._policy.sizes[:1]
            self._fill(first, step_rows(1) if self._max_batch == 1 else (1,), (1,), lambda fraction, what: None)
            self._lost = not self._graphs.captured(Stage.STEP, *first)

    # --- memory ------------------------------------------------------------------------------------------------------

    def _fill(self, sizes: Sequence[Size], steps: Sequence[int], pictures: Sequence[int], progress: Progress) -> None:
        """Capture these sizes and rows as far as there is memory, steps first; the stages get what is left."""
        policy = self._policy
        self._usable = (self._free() + self._graphs.nbytes) * policy.stages_share
        budget = max(self._usable - self._largest(), self._usable * policy.least)
        budget = min(budget, self._usable * policy.most)
        with self._graphs.learning(Stage.TEXT):
            self._model.prepare(GenerationParams(prompt="", seed=0))
        for part, (stream, plan, share) in enumerate(
            (
                (STEPS, lambda budget: self._steps(budget, sizes, steps), policy.steps_share),
                (PICTURES, lambda budget: self._pictures(budget, sizes, pictures), 1.0),
            )
        ):
            others = self._graphs.nbytes - self._graphs.held(stream)
            self._fill_pool(plan, share * budget - others, partial(_half, progress, part))
        self._model.settle()
        self._share()

    def _largest(self) -> float:
        """Return the bytes that the largest picture alone may need, beside a step of the same size."""
        need = partial(self._model.memory_budget.need, pixels=self._most_pixels)
        return need(Stage.STEP) + max(need(Stage.ENCODE), need(Stage.DECODE))

    def _fill_pool(self, plan: Callable[[float], list[Shape]], budget: float, progress: Progress) -> None:
        """Capture a plan's shapes; a pool that comes out larger than its budget is dropped, and a smaller one made."""
        planned = budget
        while shapes := plan(planned):
            for number, (stage, size, rows) in enumerate(shapes):
                progress(number / len(shapes), f"preparing {stage} for {rows} of {size[0]}×{size[1]}")
                with self._graphs.learning(stage, budget=budget) as learning:
                    self._run(stage, size, rows)
                if learning.overgrown:
                    break
            else:
                return
            while plan(planned) == shapes:  # at least one shape fewer
                planned *= min(budget / learning.overgrown, 0.95)

    def _steps(self, budget: float, sizes: Sequence[Size], rows: Sequence[int]) -> list[Shape]:
        """Return the steps that fit: up to as many pixels as a full batch of the first size has.

        A larger one takes the device longer than its launches take Python. One picture, or its two rows with guidance,
        is captured for every size.
        """
        height, width = sizes[0]
        most = max(self._max_batch * height * width, *(2 * height * width for height, width in sizes))
        shapes = [(size, count) for size, count in _shapes(sizes, rows) if _pixels(size, count) <= most]
        return self._within(budget, (Stage.STEP,), shapes)

    def _pictures(self, budget: float, sizes: Sequence[Size], rows: Sequence[int]) -> list[Shape]:
        """Return the work on pictures that fits: the safety checker first."""
        shapes = _shapes(sizes, rows)
        checks = [] if self._model.functions.flags is None else self._within(budget, (Stage.SAFETY,), shapes)
        left = budget - self._need(checks)
        return self._within(left, (Stage.DECODE, Stage.ENCODE), shapes) + checks

    def _within(self, budget: float, stages: Iterable[Stage], shapes: Sequence[tuple[Size, int]]) -> list[Shape]:
        """Return these stages for all shapes up to the highest ceiling that the budget allows, largest first."""
        ordered = sorted(shapes, key=lambda shape: -_pixels(*shape))
        for first in range(len(ordered)):
            found = [(stage, size, rows) for stage in stages for size, rows in ordered[first:]]
            if self._need(found) <= budget:
                return found
        return []

    def _need(self, shapes: Sequence[Shape]) -> float:
        """Return the bytes that shapes take in one pool, about."""
        largest = max((self._costs.get(stage, 0.0) * _pixels(size, rows) for stage, size, rows in shapes), default=0.0)
        return largest + len(shapes) * self._policy.graph_bytes

    def _share(self) -> None:
        self._model.share_memory(self._usable - self._graphs.nbytes)

    # --- calls that are captured -------------------------------------------------------------------------------------

    def _run(self, stage: Stage, size: Size, rows: int) -> None:
        """Run black pictures through a stage. A shape without room is left out."""
        height, width = size
        model, guidance = self._model, 2.0 if stage is Stage.STEP and rows > self._max_batch else 1.0
        try:
            if stage is Stage.SAFETY:
                model.check(torch.zeros(rows, height, width, 3, dtype=torch.uint8, device=model.model.device))
            elif stage is Stage.ENCODE:
                model.encode(black(model, height, width, rows))
            else:
                (item,) = black(model, height, width, 1, guidance)
                trajectories = model.encode([item] * (rows if guidance == 1.0 else 1))  # of one picture, encoded once
                (model.step if stage is Stage.STEP else model.decode)(trajectories)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            logger.warning("no room for %s of %d pictures of %d×%d", stage, rows, height, width)


def _half(progress: Progress, part: int, fraction: float, what: str) -> None:
    """Tell how much of the first (0) or second (1) of two halves is done."""
    progress((part + fraction) / 2, what)


def captured_model(model: TorchBackend, graphs: Graphs) -> TorchBackend:
    """Return `model` with its work captured in `graphs`, each call under the name of its stage."""
    functions, calls = model.functions, model.calls
    pictures = partial(graphs.wrap, stream=PICTURES, split=True)
    functions = replace(
        functions,
        embed=graphs.wrap(Stage.TEXT, functions.embed, _text_size, stream=TEXT),  # a pool of its own, never given up
        flags=functions.flags and pictures(Stage.SAFETY, functions.flags, _pixels_size),
    )
    calls = Calls(
        encode=pictures(Stage.ENCODE, calls.encode, _pixels_size),
        step=graphs.wrap(Stage.STEP, calls.step, _latent_size, stream=STEPS),
        decode=pictures(Stage.DECODE, calls.decode, _latent_size),
    )
    return model.captured(functions, calls, graphs)


def step_rows(most: int) -> list[int]:
    """Return the rows of steps to capture, largest first: powers of two, halfway between them up to 6, and `most`.

    With only single pictures, also the two rows of one with guidance, which fit no batch.
    """
    rows = {most, *(2**power for power in range(most.bit_length())), *(rows for rows in (3, 6) if rows < most)}
    return sorted(rows if most > 1 else {1, 2}, reverse=True)


def black(
    model: TorchBackend, height: int, width: int, rows: int, guidance: float = 1.0
) -> list[tuple[GenerationParams, Conditioning, Pixels, int]]:
    """Return what `encode` takes for black pictures, each one of its own."""
    params = GenerationParams(prompt="", seed=0, num_inference_steps=1, guidance_scale=guidance)
    conditioning = model.prepare(params)
    return [(params, conditioning, np.zeros((height, width, 3), np.uint8), 0) for _ in range(rows)]


def _shapes(sizes: Sequence[Size], rows: Sequence[int]) -> list[tuple[Size, int]]:
    return [(size, count) for size in sizes for count in rows]


def _pixels(size: Size, rows: int) -> int:
    return size[0] * size[1] * rows


def _latent_size(latents: Rows) -> tuple[int, int]:
    """Return height and width of the pictures of rows [channels, h, w]."""
    _, height, width = latents[0].shape
    return 8 * height, 8 * width


def _pixels_size(pixels: Rows) -> tuple[int, int]:
    """Return height and width of rows [H, W, 3]."""
    height, width, _ = pixels[0].shape
    return height, width


def _text_size(ids: Rows) -> tuple[int, int]:
    """Return the size of rows of token ids [length]."""
    return 1, len(ids[0])
