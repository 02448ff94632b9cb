"""One unfinished request, and the images it is made of, on their way through the engine loop."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from pipelines.engine.backend import Stage

if TYPE_CHECKING:
    from concurrent.futures import Future

    from pipelines.engine.backend import Event, Pixels
    from pipelines.messages import Priority, Work


class Rendered(NamedTuple):
    """A picture that the device has made: uint8 [H, W, 3] on the host, and whether it was blackened as unsafe."""

    pixels: Pixels
    nsfw: bool


class Span(NamedTuple):
    """A stage between two events on the device, run on a batch of `images` images of `pixels` pixels each.

    `follows`: the end of its wait for another stream, which comes first; None if it had none to wait for.
    """

    stage: Stage
    pixels: int
    images: int
    begin: Event
    end: Event
    follows: Event | None = None

    @property
    def seconds(self) -> float:
        """Seconds from begin to end on the device, those of the wait among them. Waits for it."""
        return self.end.since(self.begin)

    @property
    def waited(self) -> float:
        """Seconds of the wait for another stream. Waits for the device."""
        return 0.0 if self.follows is None else self.follows.since(self.begin)


@dataclass(eq=False, slots=True)
class Request:
    """An unfinished `Work`. `arrived` and `decoded` are monotonic seconds; `timings` seconds by name.

    `cancelled`: its answer is no longer wanted. `ended`: its last message is on its way.
    """

    work: Work
    arrived: float
    decoded: float = 0.0
    cancelled: bool = False
    ended: bool = False
    pixels: Any = None  # uint8 [H, W, 3], once decoded
    starts: list[Any] = field(default_factory=list)  # what `Backend.draw` has made for each image
    conditioning: Any = None
    images: list[Image] = field(default_factory=list)
    previewing: bool = False  # a preview is being made or encoded, or one has failed: then there are no more
    preview: Future[None] | None = None  # the encoding of the latest one
    spans: list[Span] = field(default_factory=list)
    timings: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))

    @property
    def id(self) -> str:
        """The work's id."""
        return self.work.id

    @property
    def priority(self) -> Priority:
        """The work's priority."""
        return self.work.priority

    @property
    def tenant(self) -> str:
        """The caller that fairness counts the request for."""
        return self.work.tenant

    @property
    def rows(self) -> int:
        """UNet rows of all its images."""
        params = self.work.params
        return params.num_images * (2 if params.guidance_scale > 1 else 1)

    def time(self) -> None:
        """Add the device's seconds of each stage, and of waits between streams, to `timings`. Waits for the device."""
        for span in self.spans:
            waited = span.waited
            self.timings[span.stage.value] += span.seconds - waited
            if span.follows is not None:
                self.timings[Stage.WAIT.value] += waited

    @property
    def submitted(self) -> bool:
        """Whether the device has been told to make all its pictures: nothing is left to denoise."""
        return bool(self.images) and all(image.submitted for image in self.images)


@dataclass(eq=False, slots=True)
class Image:
    """One image of a request: a trajectory while it is on the device, then `rendered`.

    `start`: what `Backend.encode` takes for it, its seed or what was drawn; None from then on. `submitted`: the device
    has been told to make its picture; `again`: once more, since it came out as no numbers. `resolved`: the picture has
    been waited for; `rendered` is still None then if it was not finite either time.
    """

    request: Request
    start: Any
    trajectory: Any = None
    submitted: bool = False
    again: bool = False
    resolved: bool = False
    rendered: Rendered | None = None

    @property
    def priority(self) -> Priority:
        """The request's priority."""
        return self.request.priority

    @property
    def tenant(self) -> str:
        """The request's tenant."""
        return self.request.tenant

    @property
    def arrived(self) -> float:
        """When the request arrived, in monotonic seconds."""
        return self.request.arrived

    @property
    def wants_preview(self) -> bool:
        """Whether a preview is to be made now: of a request's first image, between steps, after the last was sent."""
        request = self.request
        return (
            request.work.previews
            and self is request.images[0]
            and not self.trajectory.finished
            and not request.previewing
        )

    @property
    def rows(self) -> int:
        """UNet rows that each of its steps takes."""
        rows: int = self.trajectory.rows
        return rows

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width in pixels."""
        height, width, _ = self.request.pixels.shape
        return height, width
