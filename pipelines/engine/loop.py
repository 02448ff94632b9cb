"""The loop that feeds the device: admit → step → retire.

Requests join and leave between denoising steps, not between batches. Each image of a request is a trajectory of its
own; one UNet call takes whichever trajectories share a size one timestep further, wherever each of them stands.

    reader thread     submit, cancel, drain                      never waits
    codec threads     JPEG → pixels; pixels → JPEG, the answer   (`pipelines.engine.codec_pool`)
    device thread     run: the loop                              alone calls the model (`pipelines.engine.stages`)
    gallery thread    waits for finished pictures to arrive      (`pipelines.engine.readback`)

The device thread launches work and does not wait for pictures: while those of one batch are decoded, checked and copied
to the host, the steps of the next go on, on devices that can do both at once. Where a device can't, they are there by
the time they are asked for.

All state belongs to the device thread. The others reach it through `_inbox`, in which they put what it is to do, and
through a request's `cancelled`, which they only ever set. A request gets exactly one last message: from whoever takes
it out of `_in_hand`. Nothing is said of it after that.

What fails in a batch is run again in smaller ones until only the culprit is left (`pipelines.engine.stage_runner`). A
fault that leaves the device unusable ends the loop, and the process with it: the server starts another one and runs
again what was in hand.
"""

from __future__ import annotations

import functools
import queue
import threading
import time
from functools import partial
from typing import TYPE_CHECKING

from pipelines.engine import batching
from pipelines.engine.backend import FaultKind
from pipelines.engine.codec_pool import CodecPool
from pipelines.engine.readback import Readback
from pipelines.engine.request import Image, Request
from pipelines.engine.stage_runner import StageRunner
from pipelines.engine.stages import Stages
from pipelines.errors import NoRoomError
from pipelines.messages import PATIENCE_S, Beat, Cancelled, Failed, Generated, Log, Started, Work

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from pipelines.engine.backend import Backend, Codec
    from pipelines.messages import EngineConfig, FailureKind, FromEngine, Preview

IDLE_BEAT_S = 1.0
# Every beat wakes the server: four a second are enough, but for one that needs more patience than the last.
BEAT_EVERY_S = 0.25


class Engine:
    """The loop, and the threads around it. `emit` takes messages for the server, from any thread."""

    def __init__(
        self,
        config: EngineConfig,
        model: Backend,
        codec: Codec,
        emit: Callable[[FromEngine], None],
        *,
        overlaps: bool = False,
    ) -> None:
        self._config = config
        self._model = model
        self._emit = emit
        # A full step on the device, and another one decoded and ready; where pictures are made beside steps, those too.
        self.capacity = (3 if overlaps else 2) * config.max_batch
        self._codecs = CodecPool(codec, self._say, self._say_last)
        self._inbox: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._readback = Readback(self._codecs, self._say_last, self._leave, self._inbox.put)
        self._in_hand: dict[str, Request] = {}
        self._waiting: list[Request] = []
        self._active: list[Request] = []
        self._draining = False
        self._speaking = threading.Lock()
        self._runner = StageRunner(config.max_batch, model, self._beat, self._fail)
        self._stages = Stages(model, self._runner, self._readback, forced=config.force_safety_checks)
        self._beat_due = 0.0
        self._allowed_s = 0.0

    # --- from the reader thread --------------------------------------------------------------------------------------

    def submit(self, work: Work) -> None:
        """Take a request in hand."""
        request = Request(work, time.monotonic())
        self._in_hand[work.id] = request
        self._codecs.decode(request, then=lambda decoded: self._inbox.put(partial(self._waiting.append, decoded)))

    def cancel(self, request_id: str) -> None:
        """Stop a request at its next step, if it is still in hand."""
        request = self._in_hand.get(request_id)
        if request is not None:
            request.cancelled = True

    def drain(self) -> None:
        """Let `run` return once nothing is in hand."""
        self._draining = True
        self._inbox.put(_look_up)

    # --- on the device thread, before the loop -----------------------------------------------------------------------

    def warm_up(self, side: int) -> None:
        """Run a black picture of side × side through every stage: kernels get chosen, and the stages' pace is known.

        Raises `NoRoomError` where that has no room.
        """
        try:
            self._stages.warm_up(side)
        except Exception as error:
            if self._model.diagnose(error) is not FaultKind.OUT_OF_MEMORY:
                raise
            raise NoRoomError(self._config.device) from error

    # --- the loop, on the device thread ------------------------------------------------------------------------------

    def run(self) -> None:
        """Serve until drained. Raises only when the device is lost."""
        while self._admit():
            self._step()
            self._retire()
        self._readback.close()
        self._codecs.close()

    def _admit(self) -> bool:
        """Take in what is decoded, drop what is cancelled, start who may join. False once drained."""
        if not self._receive():
            return False
        for request in [*self._waiting, *self._active]:
            if request.cancelled:
                self._end(request, Cancelled(request.id))
        joining = self._joining()
        for request in joining:
            self._start(request)
        images = [image for request in joining for image in request.images]
        self._runner.in_batches("encode", images, self._stages.encode)
        return True

    def _step(self) -> None:
        """One UNet call, and the previews that it gave. What is still being encoded joins when others need not wait."""
        running = [image for image in self._images() if not image.trajectory.finished]
        ready = [image for image in running if image.trajectory.ready] or running
        batch = batching.next_step(ready, functools.partial(self._runner.limit, "steps"), time.monotonic())
        self._runner.attempt("steps", batch, self._stages.denoise)
        self._runner.in_batches("preview", [image for image in batch if image.wants_preview], self._stages.preview)

    def _retire(self) -> None:
        """Have pictures made of what is denoised."""
        done = [image for image in self._images() if image.trajectory.finished and not image.submitted]
        self._runner.in_batches("decode", done, self._stages.decode)

    # --- requests come and go ----------------------------------------------------------------------------------------

    def _receive(self) -> bool:
        """Do what is in the inbox; with nothing else to do, wait for it. False once drained."""
        while not self._draining or self._in_hand:
            idle = not self._joining() and all(request.submitted for request in self._active)
            if not self._active and not self._waiting:
                self._beat("idle", 0.0)
            try:
                todo = self._inbox.get(idle, IDLE_BEAT_S)
            except queue.Empty:
                if idle:
                    continue
                return True
            todo()
        return False

    def _joining(self) -> list[Request]:
        """Who joins now. A full step is in the way of others, and so is a batch of pictures that are yet to be made."""
        submitted = [request for request in self._active if request.submitted]
        full = sum(len(request.images) for request in submitted) >= self._config.max_batch
        aboard = self._active if full else [request for request in self._active if not request.submitted]
        return batching.admissible(self._waiting, aboard, self._config.max_batch, time.monotonic())

    def _start(self, request: Request) -> None:
        """Take a waiting request aboard, and encode its prompts."""
        self._waiting.remove(request)
        self._active.append(request)
        request.timings["queue"] = time.monotonic() - request.decoded
        self._emit(Started(request.id))
        params = request.work.params
        request.images = [Image(request, params.seed + number) for number in range(params.num_images)]
        self._runner.attempt("text", request.images[:1], self._stages.prepare)
        if not request.ended and request.conditioning.summary:
            self._emit(Log(request.id, request.conditioning.summary))

    def _end(self, request: Request, message: Generated | Failed | Cancelled) -> None:
        for group in (self._waiting, self._active):
            if request in group:
                group.remove(request)
        self._say_last(request, message)

    def _fail(self, request: Request, stage: str, kind: FailureKind) -> None:
        """A request can't go through a stage, and ends; but for a preview, which it can do without."""
        if stage == "preview":
            request.previewing = True
        else:
            self._end(request, Failed(id=request.id, kind=kind, message=f"The engine failed at the stage {stage!r}."))

    def _leave(self, request: Request) -> None:
        """Its pictures are there: the device is done with it."""
        self._runner.learn(request)
        if request in self._active:  # else it has been cancelled meanwhile
            self._active.remove(request)

    def _say(self, request: Request, message: Preview) -> None:
        """From any thread: a word on a request, unless its last has been said."""
        with self._speaking:
            if not request.ended:
                self._emit(message)

    def _say_last(self, request: Request, message: Generated | Failed | Cancelled) -> None:
        """From any thread: the last word on a request, unless it has been said."""
        with self._speaking:
            request.ended = True
            if self._in_hand.pop(request.id, None) is not None:
                self._emit(message)
        if self._draining:
            self._inbox.put(_look_up)  # perhaps it was the last: the loop may be waiting for it

    def _beat(self, stage: str, allow_s: float) -> None:
        now = time.monotonic()
        if now >= self._beat_due or allow_s > self._allowed_s:
            self._beat_due, self._allowed_s = now + BEAT_EVERY_S, max(allow_s, PATIENCE_S)
            self._emit(Beat(stage, allow_s, tuple(request.id for request in self._active)))

    def _images(self) -> Iterable[Image]:
        return (image for request in self._active for image in request.images)


def _look_up() -> None:
    """Nothing to do but to go on."""
