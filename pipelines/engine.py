"""The loop that feeds the device: admit → step → retire.

Requests join and leave between denoising steps, not between batches. Each image of a request is a trajectory of its
own; one UNet call takes whichever trajectories share a size one timestep further, wherever each of them stands.

    reader thread     submit, cancel, drain                            never waits
    codec threads     JPEG → pixels; pixels → JPEG, and the answer     never touch the device
    device thread     run: the loop, the only one to call the model    never encodes or decodes a JPEG

All state belongs to the device thread. The others reach it through `_inbox`, and through a request's `cancelled`, which
they only ever set. A request gets exactly one last message: from whoever takes it out of `_in_hand`.

What fails in a batch is run again in smaller ones until only the culprit is left: out of memory halves the batch (and
is remembered), anything else runs the members one by one. A fault that leaves the device unusable ends the loop, and
the process with it: the server starts another one and runs again what was in hand.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import queue
import time
import traceback
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING

from pipelines import batching
from pipelines.images import ImageFault
from pipelines.pace import Pace
from pipelines.requests import Image, Rendered, Request
from pipelines.stages import Diagnosis
from pipelines.types import PATIENCE_S, Beat, Cancelled, Failed, Generated, Log, Picture, Preview, Started

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
    from typing import Any

    from pipelines.stages import Codec, Model
    from pipelines.types import EngineConfig, FailureKind, FromEngine, Work

logger = logging.getLogger(__name__)

IDLE_BEAT_S = 1.0
# Every beat wakes the server: four a second are enough, but for one that needs more patience than the last.
BEAT_EVERY_S = 0.25


class Engine:
    """The loop, and the threads around it. `emit` takes messages for the server, from any thread."""

    def __init__(self, config: EngineConfig, model: Model, codec: Codec, emit: Callable[[FromEngine], None]) -> None:
        self._config = config
        self._model = model
        self._codec = codec
        self._emit = emit
        self._codec_threads = ThreadPoolExecutor(os.cpu_count(), thread_name_prefix="codec")
        self._inbox = queue.SimpleQueue[Request | None]()
        self._in_hand: dict[str, Request] = {}
        self._waiting: list[Request] = []
        self._active: list[Request] = []
        self._draining = False
        self._pace = Pace()
        self._limits: dict[tuple[str, Hashable], int] = {}
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
        self._on_codec_thread(request, functools.partial(self._decode_picture, request))

    def cancel(self, request_id: str) -> None:
        """Stop a request at its next step, if it is still in hand."""
        request = self._in_hand.get(request_id)
        if request is not None:
            request.cancelled = True

    def drain(self) -> None:
        """Let `run` return once nothing is in hand."""
        self._draining = True
        self._inbox.put(None)

    # --- the loop, on the device thread ------------------------------------------------------------------------------

    def run(self) -> None:
        """Serve until drained. Raises only when the device is lost."""
        while self._admit():
            self._step()
            self._retire()
        self._codec_threads.shutdown()

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
        self._in_batches("encode", [image for request in joining for image in request.images], self._encode)
        return True

    def _step(self) -> None:
        """One UNet call, and the previews that it gave."""
        running = [image for image in self._images() if not image.trajectory.finished]
        batch = batching.next_step(running, lambda shape: self._limit("steps", shape), time.monotonic())
        self._attempt("steps", batch, self._denoise)
        self._in_batches("preview", [image for image in batch if image.wants_preview], self._preview)

    def _retire(self) -> None:
        """Make pictures of what is denoised, and hand complete requests to the codec threads."""
        done = [image for image in self._images() if image.trajectory.finished and image.rendered is None]
        self._in_batches("decode", done, self._decode)
        for request in list(self._active):
            if all(image.rendered is not None for image in request.images):
                self._active.remove(request)
                self._answer(request)

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
        self._attempt("text", request.images[:1], self._prepare)

    def _end(self, request: Request, message: Generated | Failed | Cancelled) -> None:
        """Say the last word on a request, unless it has been said."""
        for group in (self._waiting, self._active):
            if request in group:
                group.remove(request)
        self._say_last(request, message)

    def _say_last(self, request: Request, message: Generated | Failed | Cancelled) -> None:
        if self._in_hand.pop(request.id, None) is not None:
            self._emit(message)
        if self._draining:
            self._inbox.put(None)  # perhaps it was the last: the loop may be waiting for it

    def _images(self) -> Iterable[Image]:
        return (image for request in self._active for image in request.images)

    # --- stages ------------------------------------------------------------------------------------------------------

    def _prepare(self, images: Sequence[Image]) -> None:
        request = images[0].request
        with self._stage("text", images):
            request.conditioning = self._model.prepare(request.work.params)
        if request.conditioning.summary:
            self._emit(Log(request.id, request.conditioning.summary))

    def _encode(self, images: Sequence[Image]) -> None:
        items = [(i.request.work.params, i.request.conditioning, i.request.pixels, i.seed) for i in images]
        with self._stage("encode", images):
            trajectories = self._model.encode(items)
        for image, trajectory in zip(images, trajectories, strict=True):
            image.trajectory = trajectory

    def _denoise(self, images: Sequence[Image]) -> None:
        with self._stage("steps", images):
            self._model.step([image.trajectory for image in images])

    def _decode(self, images: Sequence[Image]) -> None:
        for image, rendered in zip(images, self._render("decode", images), strict=True):
            image.rendered = rendered
            if rendered is None:
                self._fail(image.request, "bad_output", "The model computed something that is no picture.")

    def _preview(self, images: Sequence[Image]) -> None:
        for image, rendered in zip(images, self._render("preview", images), strict=True):
            if rendered is not None:
                send = functools.partial(self._send_preview, image.request, image.trajectory.step, rendered)
                image.request.preview = self._on_codec_thread(image.request, send)

    def _render(self, name: str, images: Sequence[Image]) -> list[Rendered | None]:
        """What each image looks like so far, black where it is unsafe; None where it is not even numbers."""
        trajectories = [image.trajectory for image in images]
        with self._stage(name, images):
            pixels = self._model.decode(trajectories)
            finite = self._model.finite(trajectories)
        unsafe = self._unsafe(images, pixels)
        for row, blackened in enumerate(unsafe):
            if blackened:
                pixels[row] = 0
        with self._stage(name, images):
            pictures = self._model.fetch(pixels)
        return [Rendered(pictures[row], unsafe[row]) if finite[row] else None for row in range(len(images))]

    def _unsafe(self, images: Sequence[Image], pixels: Any) -> list[bool]:
        """Which pictures must not be shown, of those that are to be checked."""
        forced = self._config.force_safety_checks
        checked = [forced or image.request.work.params.enable_safety_checks for image in images]
        if not any(checked):
            return checked
        with self._stage("safety", images):
            flags = self._model.check(pixels)
        return [flag and asked for flag, asked in zip(flags, checked, strict=True)]

    # --- how a stage is run ------------------------------------------------------------------------------------------

    def _in_batches(self, name: str, images: Sequence[Image], run: Callable[[Sequence[Image]], None]) -> None:
        """A stage for images of any sizes: one size at a time, within the limit."""
        for group in batching.by_shape(images):
            for batch in batching.parts(group, self._limit(name, group[0].shape)):
                self._attempt(name, batch, run)

    def _attempt(self, name: str, images: Sequence[Image], run: Callable[[Sequence[Image]], None]) -> None:
        """A stage for one batch; if that fails, for smaller ones, until only the culprit fails."""
        images = [image for image in images if self._in_hand.get(image.request.id) is image.request]
        if not images:
            return
        try:
            run(images)
        except Exception as error:
            diagnosis = self._model.diagnose(error)
            _log_fault(name, len(images), error)
            if diagnosis is Diagnosis.DEVICE_LOST:
                raise
            if len(images) == 1:
                kind: FailureKind = "out_of_memory" if diagnosis is Diagnosis.OUT_OF_MEMORY else "engine_error"
                self._fail(images[0].request, kind, f"The engine failed at the stage {name!r}.")
                return
        else:
            return
        size = 1
        if diagnosis is Diagnosis.OUT_OF_MEMORY:
            size = self._limits[name, images[0].shape] = len(images) // 2
        for part in batching.parts(images, size):
            self._attempt(name, part, run)

    def _limit(self, name: str, shape: Hashable) -> int:
        return self._limits.get((name, shape), self._config.max_batch)

    @contextlib.contextmanager
    def _stage(self, name: str, images: Sequence[Image]) -> Iterator[None]:
        """Say that a stage begins and for how long it may be silent; then note how long it took."""
        height, width = images[0].shape
        self._beat(name, self._pace.allow_s(name, height * width, len(images)))
        began = time.monotonic()
        yield
        took = time.monotonic() - began
        self._pace.note(name, height * width, len(images), took)
        for request in {image.request for image in images}:
            request.timings[name] += took

    def _beat(self, name: str, allow_s: float) -> None:
        now = time.monotonic()
        if now >= self._beat_due or allow_s > self._allowed_s:
            self._beat_due, self._allowed_s = now + BEAT_EVERY_S, max(allow_s, PATIENCE_S)
            self._emit(Beat(name, allow_s, tuple(request.id for request in self._active)))

    def _fail(self, request: Request, kind: FailureKind, message: str) -> None:
        self._end(request, Failed(id=request.id, kind=kind, message=message))

    # --- on the codec threads ----------------------------------------------------------------------------------------

    def _answer(self, request: Request) -> None:
        *others, last = [image.rendered for image in request.images if image.rendered is not None]
        encoding = [self._codec_threads.submit(self._picture, rendered) for rendered in others]
        self._on_codec_thread(request, functools.partial(self._send_pictures, request, encoding, last))

    def _on_codec_thread(self, request: Request, run: Callable[[], None]) -> Future[None]:
        return self._codec_threads.submit(self._contained, request, run)

    def _contained(self, request: Request, run: Callable[[], None]) -> None:
        """A bad picture costs its own request only, and so does a fault in here."""
        try:
            run()
        except ImageFault as fault:
            self._say_last(request, Failed(id=request.id, kind=fault.kind, message=fault.message, ctx=fault.ctx))
        except Exception as error:  # noqa: BLE001 – whatever it is, it has one owner, and the loop goes on
            _log_fault("codec", 1, error)
            message = "The engine failed at reading or writing a picture."
            self._say_last(request, Failed(id=request.id, kind="engine_error", message=message))

    def _decode_picture(self, request: Request) -> None:
        began = time.monotonic()
        request.pixels = self._codec.decode(request.work.image)
        request.decoded = time.monotonic()
        request.timings["decode_image"] = request.decoded - began
        self._inbox.put(request)

    def _send_preview(self, request: Request, step: int, rendered: Rendered) -> None:
        steps = request.images[0].trajectory.steps
        self._emit(Preview(request.id, step, steps, self._picture(rendered)))

    def _send_pictures(self, request: Request, encoding: Sequence[Future[Picture]], last: Rendered) -> None:
        """Encode the last picture here; wait for the others, and for a preview: it must not come after them.

        Nothing waited for can be behind this in the threads' line: all of it was submitted before.
        """
        began = time.monotonic()
        picture = self._picture(last)
        if request.preview is not None:
            request.preview.result()
        pictures = (*(future.result() for future in encoding), picture)
        now = time.monotonic()
        timings = {**request.timings, "encode_jpeg": now - began, "inference": now - request.arrived}
        self._say_last(request, Generated(id=request.id, pictures=pictures, timings=timings))

    def _picture(self, rendered: Rendered) -> Picture:
        height, width, _ = rendered.pixels.shape
        return Picture(self._codec.encode(rendered.pixels), width, height, rendered.nsfw)


def _log_fault(stage: str, images: int, error: Exception) -> None:
    """Where and what, but for the exception's own words: they may quote a prompt."""
    where = "".join(traceback.format_tb(error.__traceback__))
    logger.warning("stage %s failed for %d image(s): %s\n%s", stage, images, type(error).__name__, where)
