"""Loop that feeds the device: admit requests, run one denoising step, retire what is denoised, and again.

A request is one or more images. An image on the device is a trajectory: its latents and the timestep they have reached.
One UNet call takes any trajectories of one picture size one timestep further, whichever timestep each of them has
reached. So requests join and leave between two steps, and none waits for a batch to fill or to end.

One pass of the loop:

    _admit     take decoded requests from the inbox, drop cancelled ones, choose who joins (`batching.admissible`),
               encode prompts and pictures
    _step      choose the images of one UNet call (`batching.next_step`), run it, have previews made
    _retire    have pictures made of the images whose steps are done

The threads of an engine process:

    reader      submit, cancel, drain; never waits                          `pipelines.worker`
    decode, large    encoded picture → pixels before the device;
    encode           pixels → JPEG and the answer after it                  `pipelines.engine.codec_pool`
    device      `run`: this loop; the only thread that calls the backend    `pipelines.engine.stages`
    readback    waits for finished pictures to reach the host               `pipelines.engine.readback`

The device thread submits work to the device and does not wait for pictures. While the pictures of one batch are
decoded, checked and copied to the host, the steps of the next run, on devices that can do both at once.

All state belongs to the device thread. Other threads change it in two ways only: they put a function into `_inbox`,
which the device thread calls, or they set a request's `cancelled`. Every request gets exactly one last message, from
the thread that takes it out of `_unfinished`, and no message after that.

A batch that fails is run again in smaller batches until only the request at fault is left
(`pipelines.engine.stage_runner`). A fault after which the device is unusable ends the loop and with it the process; the
server then starts another process and runs the unfinished requests again.
"""

from __future__ import annotations

import queue
import threading
import time
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from pipelines.engine import batching
from pipelines.engine.backend import FaultKind
from pipelines.engine.codec_pool import CodecPool
from pipelines.engine.readback import Readback
from pipelines.engine.request import Image, Request
from pipelines.engine.stages import Stages
from pipelines.errors import NoRoomError
from pipelines.images.decoder_process import Decoders
from pipelines.messages import PATIENCE_S, Beat, Cancelled, Failed, Log, Started, Work

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from pipelines.engine.backend import Backend, Codec
    from pipelines.messages import Decoded, EngineConfig, FromEngine, LastMessage, Preview


@dataclass(frozen=True, kw_only=True)
class BeatTimes:
    """Seconds between two `Beat` messages: of an idle engine, and at least, of a busy one.

    Every beat wakes the server, so a busy engine sends few; one that asks for more patience goes out at once.
    """

    idle_s: float = 1.0
    busy_s: float = 0.25


BEAT_TIMES = BeatTimes()


class Engine:
    """The loop and the threads around it. `emit` takes messages for the server, from any thread."""

    def __init__(
        self,
        config: EngineConfig,
        backend: Backend,
        codec: Codec,
        emit: Callable[[FromEngine], None],
        *,
        overlaps: bool = False,
        decoders: Decoders | None = None,
        beat_times: BeatTimes = BEAT_TIMES,
    ) -> None:
        self._config = config
        self._backend = backend
        self._emit = emit
        # A full step on the device, and another one decoded and ready; where pictures are made beside steps, those too.
        self.capacity = (3 if overlaps else 2) * config.max_batch
        decoders = decoders or Decoders(config)
        self.decoders = decoders.limits.count
        self._codecs = CodecPool(codec, decoders, backend.draw, self._send, self._send_last)
        self._inbox: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        readback = Readback(self._codecs, self._send_last, self._release, self._decode_again, self._inbox.put)
        self._readback = readback
        self._stages = Stages(config, backend, readback, self._beat, self._end)
        self._unfinished: dict[str, Request] = {}
        self._waiting: list[Request] = []
        self._active: list[Request] = []
        self._draining = False
        self._sending = threading.Lock()
        self._beat_times = beat_times
        self._beat_due = 0.0
        self._allowed_s = 0.0

    # --- on the reader thread ----------------------------------------------------------------------------------------

    def submit(self, work: Work) -> None:
        """Accept a request."""
        request = Request(work, time.monotonic())
        self._unfinished[work.id] = request
        self._codecs.decode(request, then=lambda decoded: self._inbox.put(partial(self._waiting.append, decoded)))

    def cancel(self, request_id: str) -> None:
        """Stop a request at its next step, if it is unfinished."""
        request = self._unfinished.get(request_id)
        if request is not None:
            request.cancelled = True
            self._codecs.stop(request)

    def drain(self) -> None:
        """Let `run` return once every request is finished."""
        self._draining = True
        self._inbox.put(_wake)

    # --- on the device thread, before the loop -----------------------------------------------------------------------

    def warm_up(self, side: int) -> None:
        """Run a black picture of side × side through every stage, so that kernels are chosen and stages are timed.

        Raises `NoRoomError` where the device has too little memory for that.
        """
        try:
            self._stages.warm_up(side)
        except Exception as error:
            if self._backend.diagnose(error) is not FaultKind.OUT_OF_MEMORY:
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
        """Receive decoded requests, drop cancelled ones and start those which may join. False once drained."""
        if not self._receive():
            return False
        for request in [*self._waiting, *self._active]:
            if request.cancelled:
                self._end(request, Cancelled(request.id))
        joining = self._joining()
        for request in joining:
            self._start(request)
        self._stages.encode([image for request in joining for image in request.images])
        return True

    def _step(self) -> None:
        """Run one UNet call, and its previews. Images still being encoded wait for the next, if others are ready."""
        running = [image for image in self._images() if not image.trajectory.finished]
        ready = [image for image in running if image.trajectory.ready] or running
        batch = batching.next_step(ready, self._stages.step_limit, time.monotonic())
        self._stages.step(batch)
        self._stages.preview(batch)

    def _retire(self) -> None:
        """Have pictures made of the images whose steps are done."""
        self._stages.decode([image for image in self._images() if image.trajectory.finished and not image.submitted])

    # --- requests come and go ----------------------------------------------------------------------------------------

    def _receive(self) -> bool:
        """Call what is in the inbox; wait for it if there is nothing else to do. False once drained."""
        rested, since = False, time.monotonic()
        while not self._draining or self._unfinished:
            idle = not self._joining() and all(request.submitted for request in self._active)
            if not self._active and not self._waiting:
                self._beat("idle", 0.0)
            try:
                call = self._inbox.get(idle, self._beat_times.idle_s)
            except queue.Empty:
                if not idle:
                    return True
                if not self._unfinished:
                    if not rested:
                        self._backend.rest()
                    rested = True
                    self._backend.idle(time.monotonic() - since)
                continue
            call()
            since = time.monotonic()
        return False

    def _joining(self) -> list[Request]:
        """Return the waiting requests that join now.

        The device is full of a full step, or of a full batch of pictures being made.
        """
        submitted = [request for request in self._active if request.submitted]
        full = sum(len(request.images) for request in submitted) >= self._config.max_batch
        on_device = self._active if full else [request for request in self._active if not request.submitted]
        return batching.admissible(self._waiting, on_device, self._config.max_batch, time.monotonic())

    def _start(self, request: Request) -> None:
        """Move a waiting request to the device, and encode its prompts."""
        self._waiting.remove(request)
        self._active.append(request)
        request.timings["queue"] = time.monotonic() - request.decoded
        self._emit(Started(request.id))
        starts, request.starts = request.starts, []
        request.images = [Image(request, start) for start in starts]
        self._stages.prepare(request)
        if not request.ended and request.conditioning.summary:
            self._emit(Log(request.id, request.conditioning.summary))

    def _end(self, request: Request, message: Failed | Cancelled) -> None:
        """Take a request off the device, with its last message."""
        for group in (self._waiting, self._active):
            if request in group:
                group.remove(request)
        self._send_last(request, message)

    def _release(self, request: Request) -> None:
        """Take a request off the device: its pictures have reached the host."""
        self._stages.learn(request)
        if request in self._active:  # else it was cancelled meanwhile
            self._active.remove(request)

    # --- messages, from any thread -----------------------------------------------------------------------------------

    def _send(self, request: Request, message: Decoded | Preview) -> None:
        """Send a message about a request, unless its last has been sent."""
        with self._sending:
            if not request.ended:
                self._emit(message)

    def _send_last(self, request: Request, message: LastMessage) -> None:
        """Send the last message about a request, unless it has been sent."""
        with self._sending:
            request.ended = True
            if self._unfinished.pop(request.id, None) is not None:
                self._emit(message)
        if self._draining:
            self._inbox.put(_wake)  # the loop may be waiting for this request alone

    def _beat(self, stage: str, allow_s: float) -> None:
        """Tell the server that the loop is alive, and for how many seconds the coming stage may be silent."""
        now = time.monotonic()
        if now >= self._beat_due or allow_s > self._allowed_s:
            self._beat_due, self._allowed_s = now + self._beat_times.busy_s, max(allow_s, PATIENCE_S)
            self._emit(Beat(str(stage), allow_s, tuple(request.id for request in self._active)))

    def _decode_again(self, image: Image) -> None:
        """Have a picture made again that came out as no numbers."""
        self._stages.decode_exactly(image)

    def _images(self) -> Iterable[Image]:
        return (image for request in self._active for image in request.images)


def _wake() -> None:
    """Do nothing: the loop looks at its state again after every call from its inbox."""
