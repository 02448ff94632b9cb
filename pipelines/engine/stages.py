"""Stages of the loop: images go in, what the backend makes of them is noted on them, every call is timed.

    prepare    prompts → conditioning              (text)
    encode     pixels → trajectories               (encode)
    step       trajectories, one timestep further  (steps)
    preview    trajectories → pictures so far      (preview, safety)
    decode     trajectories → last pictures        (decode, safety)

Waits of one stream of the device for another are a stage of their own, `wait`.

A request that can't go through a stage is ended there, and the others go on.
"""

from __future__ import annotations

import time
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from pipelines.engine.backend import Stage
from pipelines.engine.request import Image, Rendered, Request
from pipelines.engine.stage_runner import StageRunner
from pipelines.messages import Failed, GenerationParams, Work

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any

    from pipelines.engine.backend import Backend
    from pipelines.engine.readback import PendingPictures, Readback
    from pipelines.messages import EngineConfig, FailureKind


class Stages:
    """The backend's stages, for images of any sizes unless said otherwise. Pictures go to the `readback`.

    `announce(stage, seconds)` is called before each call of the backend, with the seconds it may be silent;
    `end(request, message)` for a request that has failed.
    """

    def __init__(
        self,
        config: EngineConfig,
        backend: Backend,
        readback: Readback,
        announce: Callable[[Stage, float], None],
        end: Callable[[Request, Failed], None],
    ) -> None:
        self._backend = backend
        self._readback = readback
        self._end = end
        self._check_all = config.force_safety_checks
        self._runner = StageRunner(config.max_batch, backend, announce, self._fail)

    def warm_up(self, side: int) -> None:
        """Run every stage on a black picture of side × side. Raises what the backend raises."""
        work = Work(id="", params=GenerationParams(prompt="", seed=0, num_inference_steps=1), image=b"")
        request = Request(work, time.monotonic(), pixels=np.zeros((side, side, 3), np.uint8))
        images = request.images = [Image(request, start=0)]
        self._prepare(images)
        for stage, run in (
            (Stage.ENCODE, self._encode),
            (Stage.STEP, self._step),
            (Stage.DECODE, lambda images: self._render(Stage.DECODE, images, self._backend.decode)()),
        ):
            with self._backend.learning(stage, side * side):
                run(images)
        self._runner.learn(request)

    def prepare(self, request: Request) -> None:
        """Encode a request's prompts."""
        self._runner.attempt(Stage.TEXT, request.images[:1], self._prepare)

    def encode(self, images: Sequence[Image]) -> None:
        """Start each image's trajectory."""
        self._runner.in_batches(Stage.ENCODE, images, self._encode)

    def step_limit(self, shape: tuple[int, int]) -> int:
        """Return how many UNet rows of pictures of this height and width may share a step."""
        return self._runner.limit(Stage.STEP, shape)

    def step(self, batch: Sequence[Image]) -> None:
        """Take images of one size one timestep further."""
        self._runner.attempt(Stage.STEP, batch, self._step)

    def preview(self, images: Sequence[Image]) -> None:
        """Have pictures made of those images whose requests want to see them as they are now."""
        self._runner.in_batches(Stage.PREVIEW, [image for image in images if image.wants_preview], self._preview)

    def decode(self, images: Sequence[Image]) -> None:
        """Have the last pictures made."""
        self._runner.in_batches(Stage.DECODE, images, self._decode)

    def decode_exactly(self, image: Image) -> None:
        """Have a last picture made again that came out as no numbers, where the backend has a more exact way."""
        self._runner.attempt(Stage.DECODE, [image], self._decode_exactly)

    def learn(self, request: Request) -> None:
        """Note how long the device took for a finished request."""
        self._runner.learn(request)

    # --- one batch: images of one size -------------------------------------------------------------------------------

    def _prepare(self, images: Sequence[Image]) -> None:
        request = images[0].request
        with self._runner.timed(Stage.TEXT, images):
            request.conditioning = self._backend.prepare(request.work.params)

    def _encode(self, images: Sequence[Image]) -> None:
        items = [(i.request.work.params, i.request.conditioning, i.request.pixels, i.start) for i in images]
        with self._runner.timed(Stage.ENCODE, images):
            trajectories = self._backend.encode(items)
        for image, trajectory in zip(images, trajectories, strict=True):
            image.trajectory, image.start = trajectory, None  # page-locked noise may be megabytes

    def _step(self, images: Sequence[Image]) -> None:
        with self._runner.timed(Stage.STEP, images, follows=True):
            self._backend.step([image.trajectory for image in images])

    def _preview(self, images: Sequence[Image]) -> None:
        pictures = self._render(Stage.PREVIEW, images, self._backend.decode)
        for image in images:
            image.request.previewing = True
        self._readback.preview(images, pictures)

    def _decode(self, images: Sequence[Image]) -> None:
        pictures = self._render(Stage.DECODE, images, self._backend.decode)
        for image in images:
            image.submitted = True
        self._readback.finish(images, pictures)

    def _decode_exactly(self, images: Sequence[Image]) -> None:
        self._readback.finish(images, self._render(Stage.DECODE, images, self._backend.decode_exactly))

    def _render(
        self, stage: Stage, images: Sequence[Image], decode: Callable[[Sequence[Any]], Any | None]
    ) -> PendingPictures:
        """Have pictures made of the trajectories as they are now by `decode`, and checked where that is asked for.

        Submits the work; the function returned waits for it.
        """
        trajectories = [image.trajectory for image in images]
        checked = [self._check_all or image.request.work.params.enable_safety_checks for image in images]
        with self._runner.timed(stage, images, follows=True):
            pixels = decode(trajectories)
            if pixels is None:
                return lambda: [None] * len(images)
            finite = self._backend.finite(trajectories)
        unsafe = finite  # any flags: those of pictures that are not to be checked are not read
        if any(checked):
            with self._runner.timed(Stage.SAFETY, images):
                unsafe = self._backend.check(pixels)
        with self._runner.timed(stage, images):
            wait = self._backend.fetch(pixels, finite, unsafe)
        return partial(resolve_pictures, wait, checked)

    def _fail(self, request: Request, stage: Stage, kind: FailureKind) -> None:
        """End a request that can't go through a stage. Without a preview it goes on, and gets no more of them."""
        if stage is Stage.PREVIEW:
            request.previewing = True
        else:
            message = f"The engine failed at the stage '{stage}'."
            self._end(request, Failed(id=request.id, kind=kind, message=message))


def resolve_pictures(
    wait: Callable[[], tuple[Any, Sequence[bool], Sequence[bool]]], checked: Sequence[bool]
) -> list[Rendered | None]:
    """Wait for pictures, whether their latents are finite, and what the safety checker says (`Backend.fetch`).

    An unsafe picture is black if it was to be `checked`; one whose latents are not finite is None.
    """
    pictures, finite, unsafe = wait()
    nsfw = [flag and asked for flag, asked in zip(unsafe, checked, strict=True)]
    pictures[nsfw] = 0
    return [Rendered(pictures[row], nsfw[row]) if finite[row] else None for row in range(len(pictures))]
