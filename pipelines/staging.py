"""How the loop runs a stage: in batches of one size, announced and timed, and what fails again on fewer images.

A batch that failed is run in halves, so that only the culprit's request fails in the end; if memory ran out, no other
batch of that size gets larger for a while. Where a fault has left the device unusable the exception goes on, through
the loop, to the end of the process.
"""

from __future__ import annotations

import contextlib
import logging
import math
import time
import traceback
from typing import TYPE_CHECKING

from pipelines import batching
from pipelines.pace import Pace
from pipelines.stages import Diagnosis

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterator, Sequence

    from pipelines.requests import Image, Request
    from pipelines.types import FailureKind

logger = logging.getLogger(__name__)

# How long a batch stays small after memory ran out: what another program took may have come back.
SMALL_FOR_S = 60.0


class Staging:
    """`announce` is told of each stage and for how long it may be silent; `fail` ends a request that can't be done."""

    def __init__(
        self,
        max_batch: int,
        diagnose: Callable[[Exception], Diagnosis],
        announce: Callable[[str, float], None],
        fail: Callable[[Request, FailureKind, str], None],
    ) -> None:
        self._max_batch = max_batch
        self._diagnose = diagnose
        self._announce = announce
        self._fail = fail
        self._limits: dict[tuple[str, Hashable], tuple[int, float]] = {}
        self._pace = Pace()

    def limit(self, stage: str, shape: Hashable) -> int:
        """How many may share a call: as configured, or less where memory has run out of late."""
        size, until = self._limits.get((stage, shape), (self._max_batch, math.inf))
        return size if time.monotonic() < until else self._max_batch

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
            diagnosis = self._diagnose(error)
            if diagnosis is Diagnosis.DEVICE_LOST:
                raise
        else:
            return
        # Out here the exception is gone, and with it whatever memory its frames held.
        out_of_memory = diagnosis is Diagnosis.OUT_OF_MEMORY
        if len(images) == 1:
            kind: FailureKind = "out_of_memory" if out_of_memory else "engine_error"
            self._fail(images[0].request, kind, f"The engine failed at the stage {stage!r}.")
            return
        half = -(-len(images) // 2)
        if out_of_memory:
            limit = min(half, self.limit(stage, images[0].shape))
            self._limits[stage, images[0].shape] = limit, time.monotonic() + SMALL_FOR_S
        for part in batching.parts(images, half):
            self.attempt(stage, part, run)

    @contextlib.contextmanager
    def timed(self, stage: str, images: Sequence[Image]) -> Iterator[None]:
        """Announce a stage, then note how long it took, for its requests and for the patience with the next."""
        height, width = images[0].shape
        self._announce(stage, self._pace.allow_s(stage, height * width, len(images)))
        began = time.monotonic()
        yield
        took = time.monotonic() - began
        self._pace.note(stage, height * width, len(images), took)
        for request in {image.request for image in images}:
            request.timings[stage] += took


def log_fault(stage: str, images: int, error: Exception) -> None:
    """Where and what, but for the exception's own words: they may quote a prompt."""
    where = "".join(traceback.format_tb(error.__traceback__))
    logger.warning("stage %s failed for %d image(s): %s\n%s", stage, images, type(error).__name__, where)
