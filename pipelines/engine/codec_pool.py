"""Pictures in and out beside the device: the threads that decode what requests bring and encode what they get.

CPU, device, CPU: the device thread never waits for a JPEG. What goes wrong here ends the request that it is about; but
for a preview: the request goes on without any more of them.
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
    """`tell` takes previews, `end` the last message of a request: both unless it has had that."""

    def __init__(
        self,
        codec: Codec,
        tell: Callable[[Request, Preview], None],
        end: Callable[[Request, Generated | Failed], None],
    ) -> None:
        self._codec = codec
        self._tell = tell
        self._end = end
        self._threads = ThreadPoolExecutor(os.cpu_count(), thread_name_prefix="codec")

    def decode(self, request: Request, then: Callable[[Request], None]) -> None:
        """Decode the request's picture, then pass the request on."""
        self._submit(request, partial(self._decode, request, then))

    def preview(self, request: Request, step: int, rendered: Rendered) -> None:
        """Send what the request's first image looks like after a step."""
        request.preview = self._threads.submit(self._preview, request, step, rendered)

    def answer(self, request: Request) -> None:
        """Encode the request's rendered images, each on its own thread, and send them."""
        *others, last = [image.rendered for image in request.images if image.rendered is not None]
        encoding = [self._threads.submit(self._picture, rendered) for rendered in others]
        self._submit(request, partial(self._answer, request, encoding, last))

    def close(self) -> None:
        """Return when nothing is left to do."""
        self._threads.shutdown()

    # --- on the threads ----------------------------------------------------------------------------------------------

    def _decode(self, request: Request, then: Callable[[Request], None]) -> None:
        began = time.monotonic()
        request.pixels = self._codec.decode(request.work.image)
        request.work = msgspec.structs.replace(request.work, image=b"")  # nobody needs it any more, and it may be large
        request.decoded = time.monotonic()
        request.timings["decode_image"] = request.decoded - began
        then(request)

    def _preview(self, request: Request, step: int, rendered: Rendered) -> None:
        try:
            picture = self._picture(rendered)
        except Exception as error:  # noqa: BLE001 – whatever it is, the request can do without
            log_fault("preview", 1, error)
            return  # still `previewing`: no other is tried
        self._tell(request, Preview(request.id, step, request.images[0].trajectory.steps, picture))
        request.previewing = False

    def _answer(self, request: Request, encoding: Sequence[Future[Picture]], last: Rendered) -> None:
        """Encode the last picture here; wait for the others, and for a preview: it must not come after them.

        Nothing that is waited for can be behind this in the threads' line: it was all submitted before.
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
        self._threads.submit(self._contained, request, run)

    def _contained(self, request: Request, run: Callable[[], None]) -> None:
        try:
            run()
        except ImageFault as fault:
            self._end(request, Failed(id=request.id, kind=fault.kind, message=fault.message, ctx=fault.ctx))
        except Exception as error:  # noqa: BLE001 – whatever it is, it has one owner, and the others go on
            log_fault("codec", 1, error)
            message = "The engine failed at reading or writing a picture."
            self._end(request, Failed(id=request.id, kind="engine_error", message=message))
