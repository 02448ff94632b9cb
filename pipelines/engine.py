"""The loop that feeds the device: admit → step → retire.

Requests join and leave between denoising steps, not between batches. Each image of a request is a trajectory of its
own; one UNet call takes whichever trajectories share a size one timestep further, wherever each of them stands.

    reader thread     submit, cancel, drain                      never waits
    codec threads     JPEG → pixels; pixels → JPEG, the answer   (`pipelines.codec_threads`)
    device thread     run: the loop                              the only one to call the model

All state belongs to the device thread. The others reach it through `_inbox`, and through a request's `cancelled`, which
they only ever set. A request gets exactly one last message: from whoever takes it out of `_in_hand`.

What fails in a batch is run again in smaller ones until only the culprit is left (`pipelines.staging`). A fault that
leaves the device unusable ends the loop, and the process with it: the server starts another one and runs again what was
in hand.
"""

from __future__ import annotations

import functools
import queue
import time
from typing import TYPE_CHECKING

import numpy as np

from pipelines import batching
from pipelines.codec_threads import CodecThreads
from pipelines.requests import Image, Rendered, Request
from pipelines.staging import Staging
from pipelines.types import (
    PATIENCE_S,
    Beat,
    Cancelled,
    Failed,
    Generated,
    GenerationParams,
    Log,
    Started,
    Work,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from typing import Any

    from pipelines.stages import Codec, Model
    from pipelines.types import EngineConfig, FailureKind, FromEngine

IDLE_BEAT_S = 1.0
# Every beat wakes the server: four a second are enough, but for one that needs more patience than the last.
BEAT_EVERY_S = 0.25


class Engine:
    """The loop, and the threads around it. `emit` takes messages for the server, from any thread."""

    def __init__(self, config: EngineConfig, model: Model, codec: Codec, emit: Callable[[FromEngine], None]) -> None:
        self._config = config
        self._model = model
        self._emit = emit
        self._codecs = CodecThreads(codec, emit, self._say_last)
        self._inbox = queue.SimpleQueue[Request | None]()
        self._in_hand: dict[str, Request] = {}
        self._waiting: list[Request] = []
        self._active: list[Request] = []
        self._draining = False
        self._stages = Staging(config.max_batch, model.diagnose, self._beat, self._fail)
        self._beat_due = 0.0
        self._allowed_s = 0.0

    @property
    def capacity(self) -> int:
        """How many requests to have in hand: a full step on the device, and another one decoded and ready."""
        return 2 * self._config.max_batch

    # --- from the reader thread --------------------------------------------------------------------------------------

    def submit(self, work: Work) -> None:
        """Take a request in hand."""
        request = Request(work, time.monotonic())
        self._in_hand[work.id] = request
        self._codecs.decode(request, then=self._inbox.put)

    def cancel(self, request_id: str) -> None:
        """Stop a request at its next step, if it is still in hand."""
        request = self._in_hand.get(request_id)
        if request is not None:
            request.cancelled = True

    def drain(self) -> None:
        """Let `run` return once nothing is in hand."""
        self._draining = True
        self._inbox.put(None)

    # --- on the device thread, before the loop -----------------------------------------------------------------------

    def warm_up(self, side: int) -> None:
        """Run a black picture of side × side through every stage: kernels get chosen, and the stages' pace is known."""
        work = Work(id="", params=GenerationParams(prompt="", seed=0, num_inference_steps=1), image=b"")
        request = Request(work, time.monotonic(), pixels=np.zeros((side, side, 3), np.uint8))
        images = request.images = [Image(request, seed=0)]
        self._prepare(images)
        self._encode(images)
        self._denoise(images)
        self._render("decode", images)

    # --- the loop, on the device thread ------------------------------------------------------------------------------

    def run(self) -> None:
        """Serve until drained. Raises only when the device is lost."""
        while self._admit():
            self._step()
            self._retire()
        self._codecs.close()

    def _admit(self) -> bool:
        """Take in what is decoded, drop what is cancelled, start who may join. False once drained."""
        if not self._receive():
            return False
        for request in [*self._waiting, *self._active]:
            if request.cancelled:
                self._end(request, Cancelled(request.id))
        joining = batching.admissible(self._waiting, self._active, self._config.max_batch, time.monotonic())
        for request in joining:
            self._start(request)
        self._stages.in_batches("encode", [image for request in joining for image in request.images], self._encode)
        return True

    def _step(self) -> None:
        """One UNet call, and the previews that it gave."""
        running = [image for image in self._images() if not image.trajectory.finished]
        batch = batching.next_step(running, functools.partial(self._stages.limit, "steps"), time.monotonic())
        self._stages.attempt("steps", batch, self._denoise)
        self._stages.in_batches("preview", [image for image in batch if image.wants_preview], self._preview)

    def _retire(self) -> None:
        """Make pictures of what is denoised, and hand complete requests to the codec threads."""
        done = [image for image in self._images() if image.trajectory.finished and image.rendered is None]
        self._stages.in_batches("decode", done, self._decode)
        for request in list(self._active):
            if all(image.rendered is not None for image in request.images):
                self._active.remove(request)
                self._codecs.answer(request)

    # --- requests come and go ----------------------------------------------------------------------------------------

    def _receive(self) -> bool:
        """Empty the inbox; with nothing else to do, wait for it. False once drained."""
        while not self._draining or self._in_hand:
            idle = not (self._waiting or self._active)
            if idle:
                self._beat("idle", 0.0)
            try:
                request = self._inbox.get(idle, IDLE_BEAT_S)
            except queue.Empty:
                if idle:
                    continue
                return True
            if request is not None:
                self._waiting.append(request)
        return False

    def _start(self, request: Request) -> None:
        """Take a waiting request aboard, and encode its prompts."""
        self._waiting.remove(request)
        self._active.append(request)
        request.timings["queue"] = time.monotonic() - request.decoded
        self._emit(Started(request.id))
        params = request.work.params
        request.images = [Image(request, params.seed + number) for number in range(params.num_images)]
        self._stages.attempt("text", request.images[:1], self._prepare)
        if not request.ended and request.conditioning.summary:
            self._emit(Log(request.id, request.conditioning.summary))

    def _end(self, request: Request, message: Generated | Failed | Cancelled) -> None:
        for group in (self._waiting, self._active):
            if request in group:
                group.remove(request)
        self._say_last(request, message)

    def _fail(self, request: Request, kind: FailureKind, message: str) -> None:
        self._end(request, Failed(id=request.id, kind=kind, message=message))

    def _say_last(self, request: Request, message: Generated | Failed | Cancelled) -> None:
        """From any thread: the last word on a request, unless it has been said."""
        request.ended = True
        if self._in_hand.pop(request.id, None) is not None:
            self._emit(message)
        if self._draining:
            self._inbox.put(None)  # perhaps it was the last: the loop may be waiting for it

    def _beat(self, stage: str, allow_s: float) -> None:
        now = time.monotonic()
        if now >= self._beat_due or allow_s > self._allowed_s:
            self._beat_due, self._allowed_s = now + BEAT_EVERY_S, max(allow_s, PATIENCE_S)
            self._emit(Beat(stage, allow_s, tuple(request.id for request in self._active)))

    def _images(self) -> Iterable[Image]:
        return (image for request in self._active for image in request.images)

    # --- stages ------------------------------------------------------------------------------------------------------

    def _prepare(self, images: Sequence[Image]) -> None:
        request = images[0].request
        with self._stages.timed("text", images):
            request.conditioning = self._model.prepare(request.work.params)

    def _encode(self, images: Sequence[Image]) -> None:
        items = [(i.request.work.params, i.request.conditioning, i.request.pixels, i.seed) for i in images]
        with self._stages.timed("encode", images):
            trajectories = self._model.encode(items)
        for image, trajectory in zip(images, trajectories, strict=True):
            image.trajectory = trajectory

    def _denoise(self, images: Sequence[Image]) -> None:
        with self._stages.timed("steps", images):
            self._model.step([image.trajectory for image in images])

    def _decode(self, images: Sequence[Image]) -> None:
        for image, rendered in zip(images, self._render("decode", images), strict=True):
            image.rendered = rendered
            if rendered is None:
                self._fail(image.request, "bad_output", "The model computed something that is no picture.")

    def _preview(self, images: Sequence[Image]) -> None:
        for image, rendered in zip(images, self._render("preview", images), strict=True):
            if rendered is not None:
                self._codecs.preview(image.request, image.trajectory.step, rendered)

    def _render(self, name: str, images: Sequence[Image]) -> list[Rendered | None]:
        """What each image looks like so far, black where it is unsafe; None where it is not even numbers."""
        trajectories = [image.trajectory for image in images]
        with self._stages.timed(name, images):
            pixels = self._model.decode(trajectories)
            finite = self._model.finite(trajectories)
        unsafe = self._unsafe(images, pixels)
        with self._stages.timed(name, images):
            pictures = self._model.fetch(pixels)
        pictures[unsafe] = 0
        return [Rendered(pictures[row], unsafe[row]) if finite[row] else None for row in range(len(images))]

    def _unsafe(self, images: Sequence[Image], pixels: Any) -> list[bool]:
        """Which pictures must not be shown, of those that are to be checked."""
        forced = self._config.force_safety_checks
        checked = [forced or image.request.work.params.enable_safety_checks for image in images]
        if not any(checked):
            return checked
        with self._stages.timed("safety", images):
            flags = self._model.check(pixels)
        return [flag and asked for flag, asked in zip(flags, checked, strict=True)]
