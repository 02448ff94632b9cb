"""Threads that decode input pictures and encode output pictures, so that the device thread never waits for a JPEG.

A fault here ends the request that it concerns. A fault in a preview does not: the request goes on without previews.
"""

from __future__ import annotations

import os
import time
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING

import msgspec

from pipelines.engine.backend import log_fault
from pipelines.images.codec import ImageFault
from pipelines.messages import Failed, Generated, Picture, Preview

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from pipelines.engine.backend import Codec
    from pipelines.engine.request import Rendered, Request


class CodecPool:
    """Decodes and encodes the pictures of requests.

    `send(request, preview)` and `end(request, message)` do nothing for a request that has had its last message.
    """

    def __init__(
        self,
        codec: Codec,
        send: Callable[[Request, Preview], None],
        end: Callable[[Request, Generated | Failed], None],
    ) -> None:
        self._codec = codec
        self._send = send
        self._end = end
        self._threads = ThreadPoolExecutor(os.cpu_count(), thread_name_prefix="codec")

    def decode(self, request: Request, then: Callable[[Request], None]) -> None:
        """Decode the request's picture, then pass the request on."""
        self._submit(request, partial(self._decode, request, then))

    def preview(self, request: Request, step: int, rendered: Rendered) -> None:
        """Encode and send the request's first image as it is after a step."""
        request.preview = self._threads.submit(self._preview, request, step, rendered)

    def answer(self, request: Request) -> None:
        """Encode the request's rendered images, each on its own thread, and send them."""
        *others, last = [image.rendered for image in request.images if image.rendered is not None]
        encoding = [self._threads.submit(self._picture, rendered) for rendered in others]
        self._submit(request, partial(self._answer, request, encoding, last))

    def close(self) -> None:
        """Return when all submitted work is done."""
        self._threads.shutdown()

    # --- on the threads ----------------------------------------------------------------------------------------------

    def _decode(self, request: Request, then: Callable[[Request], None]) -> None:
        began = time.monotonic()
        request.pixels = self._codec.decode(request.work.image)
        request.work = msgspec.structs.replace(request.work, image=b"")  # no longer needed, and it may be large
        request.decoded = time.monotonic()
        request.timings["decode_image"] = request.decoded - began
        then(request)

    def _preview(self, request: Request, step: int, rendered: Rendered) -> None:
        try:
            picture = self._picture(rendered)
        except Exception as error:  # noqa: BLE001 – any fault: the request does not need its previews
            log_fault("preview", 1, error)
            return  # `previewing` stays set: no other is made
        self._send(request, Preview(request.id, step, request.images[0].trajectory.steps, picture))
        request.previewing = False

    def _answer(self, request: Request, encoding: Sequence[Future[Picture]], last: Rendered) -> None:
        """Encode the last picture here, wait for the others and for a preview, which must not be sent after the answer.

        Everything that is waited for was submitted to the threads before this, so it can't be queued behind it.
        """
        began = time.monotonic()
        picture = self._picture(last)
        pictures = (*(future.result() for future in encoding), picture)
        if request.preview is not None:
            request.preview.result()
        now = time.monotonic()
        timings = {**request.timings, "encode_jpeg": now - began, "inference": now - request.arrived}
        self._end(request, Generated(id=request.id, pictures=pictures, timings=timings))

    def _picture(self, rendered: Rendered) -> Picture:
        height, width, _ = rendered.pixels.shape
        return Picture(self._codec.encode(rendered.pixels), width, height, rendered.nsfw)

    def _submit(self, request: Request, run: Callable[[], None]) -> None:
        self._threads.submit(self._guarded, request, run)

    def _guarded(self, request: Request, run: Callable[[], None]) -> None:
        try:
            run()
        except ImageFault as fault:
            self._end(request, Failed(id=request.id, kind=fault.kind, message=fault.message, ctx=fault.ctx))
        except Exception as error:  # noqa: BLE001 – any fault: it ends one request, and the others go on
            log_fault("codec", 1, error)
            message = "The engine failed at reading or writing a picture."
            self._end(request, Failed(id=request.id, kind="engine_error", message=message))
