"""The thread that waits for pictures: the device thread launches them and goes on with the steps of others.

Batches of pictures arrive in the order in which they were launched. What goes wrong while one is waited for went wrong
on the device; it becomes the device thread's, which ends with it.
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
    """`end` takes the last message of a request that can't be shown, `leave` a request that the device is done with.

    `leave` is called by the device thread: `tell` takes what that is to do.
    """

    def __init__(
        self,
        codecs: CodecPool,
        end: Callable[[Request, Generated | Failed], None],
        leave: Callable[[Request], None],
        tell: Callable[[Callable[[], None]], None],
    ) -> None:
        self._codecs = codecs
        self._end = end
        self._leave = leave
        self._tell = tell
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="gallery")

    def finish(self, images: Sequence[Image], pictures: PendingPictures) -> None:
        """Have the last pictures of these images waited for, and complete requests answered."""
        self._thread.submit(self._contained, partial(self._finish, images, pictures))

    def preview(self, images: Sequence[Image], pictures: PendingPictures) -> None:
        """Have previews of these images, as they stand now, waited for and sent."""
        steps = [image.trajectory.step for image in images]
        self._thread.submit(self._contained, partial(self._preview, images, steps, pictures))

    def close(self) -> None:
        """Return when nothing is waited for."""
        self._thread.shutdown()

    # --- on the thread -----------------------------------------------------------------------------------------------

    def _finish(self, images: Sequence[Image], pictures: PendingPictures) -> None:
        for image, rendered in zip(images, pictures(), strict=True):
            image.rendered, image.resolved = rendered, True
        for request in dict.fromkeys(image.request for image in images):
            if request.ended or not all(image.resolved for image in request.images):
                continue
            request.time()
            if all(image.rendered is not None for image in request.images):
                self._codecs.answer(request)
            else:
                words = "The model computed something that is no picture."
                self._end(request, Failed(id=request.id, kind="bad_output", message=words))
            self._tell(partial(self._leave, request))

    def _preview(self, images: Sequence[Image], steps: Sequence[int], pictures: PendingPictures) -> None:
        for image, step, rendered in zip(images, steps, pictures(), strict=True):
            if rendered is None:
                image.request.previewing = False
            else:
                self._codecs.preview(image.request, step, rendered)

    def _contained(self, run: Callable[[], None]) -> None:
        try:
            run()
        except Exception as error:  # noqa: BLE001 – it is the device thread's
            self._tell(partial(_raise, error))


def _raise(error: Exception) -> None:
    raise error
