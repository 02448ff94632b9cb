"""How the loop runs a stage: in batches of one size, announced and timed, and what fails again on fewer images.

A batch that failed is run in halves, so that only the culprit's request fails in the end; if memory ran out, no other
batch of that size gets larger for a while, and a picture alone is tried again once the model has made room for it.
Where a fault has left the device unusable the exception goes on, through the loop, to the end of the process.
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

    from pipelines.engine.backend import Backend
    from pipelines.engine.request import Image, Request
    from pipelines.messages import FailureKind

# How long a batch stays small after memory ran out: what another program took may have come back.
SMALL_FOR_S = 60.0

# A stage that takes five times its worst so far is stuck, not slow.
MARGIN = 5.0
# Nothing measured yet: kernels are chosen, perhaps compiled, and the model's pages come in from disk.
FIRST_S = 300.0


class StageRunner:
    """`announce` is told of each stage and for how long it may be silent; `fail`, which request can't go through it."""

    def __init__(
        self,
        max_batch: int,
        model: Backend,
        announce: Callable[[str, float], None],
        fail: Callable[[Request, str, FailureKind], None],
    ) -> None:
        self._max_batch = max_batch
        self._model = model
        self._announce = announce
        self._fail = fail
        self._limits: dict[tuple[str, tuple[int, int]], tuple[int, float]] = {}
        self._silence = SilenceBudget()

    def limit(self, stage: str, shape: tuple[int, int]) -> int:
        """How many may share a call: as configured, or less where memory has no room or has run out of late."""
        size, until = self._limits.get((stage, shape), (self._max_batch, math.inf))
        most = size if time.monotonic() < until else self._max_batch
        height, width = shape
        return self._model.room(stage, height * width, most)

    def in_batches(self, stage: str, images: Sequence[Image], run: Callable[[Sequence[Image]], None]) -> None:
        """Run a stage on images of any sizes."""
        for group in batching.by_shape(images):
            for batch in batching.parts(group, self.limit(stage, group[0].shape)):
                self.attempt(stage, batch, run)

    def attempt(self, stage: str, images: Sequence[Image], run: Callable[[Sequence[Image]], None]) -> None:
        """Run a stage on images of one size, those of ended requests left out."""
        images = [image for image in images if not image.request.ended]
        if not images:
            return
        try:
            run(images)
        except Exception as error:
            log_fault(stage, len(images), error)
            diagnosis = self._model.diagnose(error)
            if diagnosis is FaultKind.DEVICE_LOST:
                raise
        else:
            return
        # Out here the exception is gone, and with it whatever memory its frames held.
        out_of_memory = diagnosis is FaultKind.OUT_OF_MEMORY
        if len(images) == 1 and out_of_memory and self._model.relieve():
            self.attempt(stage, images, run)
            return
        if len(images) == 1:
            kind: FailureKind = "out_of_memory" if out_of_memory else "engine_error"
            self._fail(images[0].request, stage, kind)
            return
        half = -(-len(images) // 2)
        if out_of_memory:
            limit = min(half, self.limit(stage, images[0].shape))
            self._limits[stage, images[0].shape] = limit, time.monotonic() + SMALL_FOR_S
        for part in batching.parts(images, half):
            self.attempt(stage, part, run)

    @contextlib.contextmanager
    def timed(self, stage: str, images: Sequence[Image]) -> Iterator[None]:
        """Announce a stage, and mark where it begins and ends on the device, for its requests."""
        height, width = images[0].shape
        pixels, count = height * width, len(images)
        self._announce(stage, self._silence.allow_s(stage, pixels, count))
        began, begin = time.monotonic(), self._model.record_event(stage)
        yield
        span = Span(stage, pixels, count, begin, self._model.record_event(stage))
        self._silence.note(stage, pixels, count, time.monotonic() - began)
        for request in {image.request for image in images}:
            request.spans.append(span)

    def learn(self, request: Request) -> None:
        """Note how long the device took for the stages of a request that is done: the patience with the next one."""
        for span in request.spans:
            self._silence.note(span.stage, span.pixels, span.images, span.seconds)


class SilenceBudget:
    """Remembers the worst seconds per pixel of each stage, by size of picture and in all."""

    def __init__(self) -> None:
        self._of_size: dict[tuple[str, int], float] = {}
        self._of_stage: dict[str, float] = {}

    def note(self, stage: str, pixels: int, images: int, seconds: float) -> None:
        """A stage took so long for so many images of `pixels` pixels each."""
        cost = seconds / (pixels * images)
        self._of_size[stage, pixels] = max(cost, self._of_size.get((stage, pixels), 0.0))
        self._of_stage[stage] = max(cost, self._of_stage.get(stage, 0.0))

    def allow_s(self, stage: str, pixels: int, images: int) -> float:
        """For how many seconds this stage may be silent. A size not seen before goes by the worst of the others."""
        cost = self._of_size.get((stage, pixels)) or self._of_stage.get(stage)
        return FIRST_S if cost is None else MARGIN * cost * pixels * images
