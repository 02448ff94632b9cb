"""Threads that decode input pictures and encode output pictures, so that the device thread never waits for a JPEG.

    encode    pixels → JPEG and the answer; never behind a decode
    decode    encoded picture → pixels, seed → noise; a request whose picture is large is given back (`Large`)
    large     one thread for each decoder process; waits for it

The server sends a request whose picture is known to be large only when a decoder process is free, so that those that
wait for one are in fair order and take no place in the engine.

A fault here ends the request that it concerns. A fault in a preview does not: the request goes on without previews.
"""

from __future__ import annotations

import time
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Any

import msgspec

from pipelines.engine.backend import log_fault
from pipelines.images.codec import ImageFault, LargePicture
from pipelines.images.decoder_process import Unwanted, processors
from pipelines.messages import Cancelled, Decoded, Failed, Generated, Large, Picture, Preview

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from pipelines.engine.backend import Codec, Pixels
    from pipelines.engine.request import Rendered, Request
    from pipelines.images.decoder_process import Decoders
    from pipelines.messages import GenerationParams, LastMessage


class CodecPool:
    """Decodes and encodes the pictures of requests, and draws their noise (`Backend.draw`).

    `send(request, preview)` and `end(request, message)` do nothing for a request that has had its last message.
    """

    def __init__(
        self,
        codec: Codec,
        decoders: Decoders,
        draw: Callable[[GenerationParams, Pixels, int], Any],
        send: Callable[[Request, Decoded | Preview], None],
        end: Callable[[Request, LastMessage], None],
    ) -> None:
        self._codec = codec
        self._decoders = decoders
        self._draw = draw
        self._send = send
        self._end = end
        self._encoding = ThreadPoolExecutor(processors(), thread_name_prefix="encode")
        self._decoding = ThreadPoolExecutor(processors(), thread_name_prefix="decode")
        self._large = ThreadPoolExecutor(decoders.limits.count, thread_name_prefix="large")

    def decode(self, request: Request, then: Callable[[Request], None]) -> None:
        """Decode the request's picture, then pass the request on."""
        if request.work.large:
            self._submit(self._large, request, partial(self._decode_large, request, then))
        else:
            self._submit(self._decoding, request, partial(self._decode, request, then))

    def stop(self, request: Request) -> None:
        """Stop decoding the large picture of a cancelled request."""
        if request.work.large:
            self._decoders.stop(request.id)

    def preview(self, request: Request, step: int, rendered: Rendered) -> None:
        """Encode and send the request's first image as it is after a step."""
        request.preview = self._encoding.submit(self._preview, request, step, rendered)

    def answer(self, request: Request) -> None:
        """Encode the request's rendered images, each on its own thread, and send them."""
        *others, last = [image.rendered for image in request.images if image.rendered is not None]
        encoding = [self._encoding.submit(self._picture, rendered) for rendered in others]
        self._submit(self._encoding, request, partial(self._answer, request, encoding, last))

    def close(self) -> None:
        """Return when all submitted work is done."""
        for threads in (self._large, self._decoding, self._encoding):
            threads.shutdown()
        self._decoders.close()

    # --- on the threads ----------------------------------------------------------------------------------------------

    def _decode(self, request: Request, then: Callable[[Request], None]) -> None:
        began = time.monotonic()
        try:
            pixels = self._codec.decode(request.work.image)
        except LargePicture as large:
            self._end(request, Large(request.id, large.alone))
        else:
            self._pass_on(request, pixels, began, then)

    def _decode_large(self, request: Request, then: Callable[[Request], None]) -> None:
        began = time.monotonic()
        try:
            work = request.work
            pixels = self._decoders.decode(work.id, work.image, lambda: not request.cancelled, alone=work.alone)
        except Unwanted:
            self._end(request, Cancelled(request.id))
        except LargePicture as large:
            self._end(request, Large(request.id, large.alone))
        else:
            self._send(request, Decoded(request.id))
            self._pass_on(request, pixels, began, then)

    def _pass_on(self, request: Request, pixels: Pixels, began: float, then: Callable[[Request], None]) -> None:
        request.pixels = pixels
        request.work = msgspec.structs.replace(request.work, image=b"")  # no longer needed, and it may be large
        decoded = time.monotonic()
        params = request.work.params
        request.starts = [self._draw(params, pixels, params.seed + number) for number in range(params.num_images)]
        request.decoded = time.monotonic()
        request.timings["decode_image"], request.timings["noise"] = decoded - began, request.decoded - decoded
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

    def _submit(self, threads: ThreadPoolExecutor, request: Request, run: Callable[[], None]) -> None:
        threads.submit(self._guarded, request, run)

    def _guarded(self, request: Request, run: Callable[[], None]) -> None:
        try:
            run()
        except ImageFault as fault:
            self._end(request, Failed(id=request.id, kind=fault.kind, message=fault.message, ctx=fault.ctx))
        except Exception as error:  # noqa: BLE001 – any fault: it ends one request, and the others go on
            log_fault("codec", 1, error)
            message = "The engine failed at reading or writing a picture."
            self._end(request, Failed(id=request.id, kind="engine_error", message=message))
