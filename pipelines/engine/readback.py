"""Thread that waits for finished pictures, so that the device thread can go on with other steps.

Batches of pictures arrive in the order in which they were submitted. A fault while waiting for one is a fault of the
device: it is raised on the device thread, which ends with it.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING

from pipelines.messages import Failed, Generated

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import TypeAlias

    from pipelines.engine.codec_pool import CodecPool
    from pipelines.engine.request import Image, Rendered, Request

    PendingPictures: TypeAlias = Callable[[], list[Rendered | None]]


class Readback:
    """Passes the pictures of complete requests to the codec threads.

    `end(request, message)` is called for a request whose pictures failed; `release(request)`, on the device thread, for
    each request that the device is done with; `again(image)`, there too, once for a last picture that came out as no
    numbers, and has it made again. `on_device_thread` calls a function there.
    """

    def __init__(
        self,
        codecs: CodecPool,
        end: Callable[[Request, Generated | Failed], None],
        release: Callable[[Request], None],
        again: Callable[[Image], None],
        on_device_thread: Callable[[Callable[[], None]], None],
    ) -> None:
        self._codecs = codecs
        self._end = end
        self._release = release
        self._again = again
        self._on_device_thread = on_device_thread
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="readback")

    def finish(self, images: Sequence[Image], pictures: PendingPictures) -> None:
        """Have the last pictures of these images waited for, and complete requests answered."""
        self._thread.submit(self._guarded, partial(self._finish, images, pictures))

    def preview(self, images: Sequence[Image], pictures: PendingPictures) -> None:
        """Have previews of these images, at the step they have reached, waited for and sent."""
        steps = [image.trajectory.step for image in images]
        self._thread.submit(self._guarded, partial(self._preview, images, steps, pictures))

    def close(self) -> None:
        """Return when all pictures have been waited for."""
        self._thread.shutdown()

    # --- on the thread -----------------------------------------------------------------------------------------------

    def _finish(self, images: Sequence[Image], pictures: PendingPictures) -> None:
        for image, rendered in zip(images, pictures(), strict=True):
            if rendered is None and not image.again:
                image.again = True
                self._on_device_thread(partial(self._again, image))
            else:
                image.rendered, image.resolved = rendered, True
        for request in dict.fromkeys(image.request for image in images):
            if request.ended or not all(image.resolved for image in request.images):
                continue
            request.time()
            if all(image.rendered is not None for image in request.images):
                self._codecs.answer(request)
            else:
                message = "The model computed something that is no picture."
                self._end(request, Failed(id=request.id, kind="bad_output", message=message))
            self._on_device_thread(partial(self._release, request))

    def _preview(self, images: Sequence[Image], steps: Sequence[int], pictures: PendingPictures) -> None:
        for image, step, rendered in zip(images, steps, pictures(), strict=True):
            if rendered is None:
                image.request.previewing = False
            else:
                self._codecs.preview(image.request, step, rendered)

    def _guarded(self, run: Callable[[], None]) -> None:
        try:
            run()
        except Exception as error:  # noqa: BLE001 – raised again on the device thread
            self._on_device_thread(partial(_raise, error))


def _raise(error: Exception) -> None:
    raise error
