"""Runs stages in batches: announced, timed, and again on fewer images where a batch fails.

A failed batch is run again in halves until only the request at fault is left. When memory runs out, batches of that
stage and size stay small for a while, and a single image is tried again if the backend can give up memory. A fault
after which the device is unusable is raised, through the loop, to the end of the process.
"""

from __future__ import annotations

import contextlib
import math
import time
from typing import TYPE_CHECKING

from pipelines.engine import batching
from pipelines.engine.backend import FaultKind, log_fault
from pipelines.engine.request import Span

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from pipelines.engine.backend import Backend, Stage
    from pipelines.engine.request import Image, Request
    from pipelines.messages import FailureKind

# How long batches stay small after memory ran out: by then another program may have given back what it took.
SMALL_FOR_S = 60.0

# A stage that takes five times its worst so far is stuck, not slow.
MARGIN = 5.0
# Before the first measurement: kernels are chosen, and the model's pages come in from disk.
FIRST_S = 300.0


class StageRunner:
    """Runs functions as stages of a backend.

    `announce(stage, seconds)` is called before each stage, with the seconds it may be silent; `fail(request, stage,
    kind)` for a request that can't go through a stage.
    """

    def __init__(
        self,
        max_batch: int,
        backend: Backend,
        announce: Callable[[Stage, float], None],
        fail: Callable[[Request, Stage, FailureKind], None],
        *,
        small_for_s: float = SMALL_FOR_S,
    ) -> None:
        self._max_batch = max_batch
        self._backend = backend
        self._announce = announce
        self._fail = fail
        self._small_for_s = small_for_s
        self._limits: dict[tuple[Stage, tuple[int, int]], tuple[int, float]] = {}
        self._silence = SilenceBudget()

    def limit(self, stage: Stage, shape: tuple[int, int]) -> int:
        """Return how many rows are to share a call: at most `max_batch`, fewer where memory ran out lately."""
        size, until = self._limits.get((stage, shape), (self._max_batch, math.inf))
        most = size if time.monotonic() < until else self._max_batch
        return self._backend.room(stage, shape, most)

    def in_batches(self, stage: Stage, images: Sequence[Image], run: Callable[[Sequence[Image]], None]) -> None:
        """Run a stage on images of any sizes."""
        for group in batching.by_shape(images):
            for batch in batching.parts(group, self.limit(stage, group[0].shape)):
                self.attempt(stage, batch, run)

    def attempt(self, stage: Stage, images: Sequence[Image], run: Callable[[Sequence[Image]], None]) -> None:
        """Run a stage on images of one size, without those whose requests have ended."""
        images = [image for image in images if not image.request.ended]
        if not images:
            return
        try:
            run(images)
        except Exception as error:
            log_fault(stage, len(images), error)
            diagnosis = self._backend.diagnose(error)
            if diagnosis is FaultKind.DEVICE_LOST:
                raise
        else:
            return
        # Out here the exception is gone, and with it the memory that its frames held.
        out_of_memory = diagnosis is FaultKind.OUT_OF_MEMORY
        if len(images) == 1 and out_of_memory and self._backend.relieve():
            self.attempt(stage, images, run)
            return
        if len(images) == 1:
            kind: FailureKind = "out_of_memory" if out_of_memory else "engine_error"
            self._fail(images[0].request, stage, kind)
            return
        half = -(-len(images) // 2)
        if out_of_memory:
            limit = min(half, self.limit(stage, images[0].shape))
            self._limits[stage, images[0].shape] = limit, time.monotonic() + self._small_for_s
        for part in batching.parts(images, half):
            self.attempt(stage, part, run)

    @contextlib.contextmanager
    def timed(self, stage: Stage, images: Sequence[Image], *, follows: bool = False) -> Iterator[None]:
        """Announce a stage, and record where it begins and ends on the device, for the images' requests.

        `follows`: it reads the images' trajectories, which another stream of the device may still be at.
        """
        height, width = images[0].shape
        pixels, count = height * width, len(images)
        self._announce(stage, self._silence.allow_s(stage, pixels, count))
        began, begin = time.monotonic(), self._backend.record_event(stage)
        waited = self._backend.follow(stage, [image.trajectory for image in images]) if follows else None
        yield
        span = Span(stage, pixels, count, begin, self._backend.record_event(stage), waited)
        self._silence.note(stage, pixels, count, time.monotonic() - began)
        for request in {image.request for image in images}:
            request.spans.append(span)

    def learn(self, request: Request) -> None:
        """Note how long the device took for a finished request's stages: later ones may be silent accordingly."""
        for span in request.spans:
            self._silence.note(span.stage, span.pixels, span.images, span.seconds)


class SilenceBudget:
    """Seconds that a stage may be silent before its engine counts as hung, from the worst measured so far.

    Measured in seconds per pixel, for each stage and size of picture, and for each stage over all sizes.
    """

    def __init__(self) -> None:
        self._of_size: dict[tuple[Stage, int], float] = {}
        self._of_stage: dict[Stage, float] = {}

    def note(self, stage: Stage, pixels: int, images: int, seconds: float) -> None:
        """Note that a stage took `seconds` for `images` images of `pixels` pixels each."""
        cost = seconds / (pixels * images)
        self._of_size[stage, pixels] = max(cost, self._of_size.get((stage, pixels), 0.0))
        self._of_stage[stage] = max(cost, self._of_stage.get(stage, 0.0))

    def allow_s(self, stage: Stage, pixels: int, images: int) -> float:
        """Return how many seconds a stage may be silent. A size not seen before counts as the worst of the others."""
        cost = self._of_size.get((stage, pixels)) or self._of_stage.get(stage)
        return FIRST_S if cost is None else MARGIN * cost * pixels * images
