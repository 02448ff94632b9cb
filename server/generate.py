"""The use case: from an input to its output. Run, stream, realtime and queue all call `generate`.

Its steps: resolve the input picture, run the work on a device, store the results or put them into the answer.
"""

import asyncio
import contextlib
import dataclasses
import logging
from collections.abc import Callable
from typing import Any, Protocol, TypeAlias

from pipelines.messages import Generated, Picture, Priority, Started, Work
from server.access.api_keys import Allowance
from server.access.limits import Limits
from server.fal import data_uri
from server.fal.errors import RequestError, overloaded, start_timed_out
from server.fal.schemas import LcmInput, parse
from server.inputs import Inputs
from server.jobs.job import Job
from server.metrics import Metrics
from server.settings import RequestSettings
from server.storage.files import Files
from server.storage.full import NO_SPACE
from server.workers.pending import Event
from server.workers.pool import Pool

LOG = logging.getLogger(__name__)

OnEvent: TypeAlias = Callable[[Event], None]

CONTENT_TYPE = "image/jpeg"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Resources:
    """Parts of the server that the use case works with, each made once when the server starts."""

    settings: RequestSettings
    pool: Pool
    files: Files
    inputs: Inputs
    limits: Limits
    metrics: Metrics


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One request beside its input: who calls, how urgent it is, and what the answer needs.

    `id` is unique. `tenant`: who the scheduler counts it for. `cdn`: base URL of links to stored files. `allowance`:
    what the tenant may have in flight; None for an accepted job, which has no limit. `start_timeout`: seconds within
    which the device must have begun. `lifecycle`: the caller's header about the life of the output files. `image`: the
    picture's bytes if they came beside the JSON; the results are then returned as bytes too.
    """

    id: str
    tenant: str
    priority: Priority
    cdn: str
    allowance: Allowance | None = None
    start_timeout: float | None = None
    lifecycle: str | None = None
    previews: bool = False
    image: bytes | None = None

    @property
    def durable(self) -> bool:
        """Whether results must be on disk before the call is done: a queued job's survive a power cut."""
        return self.priority in {Priority.NORMAL, Priority.LOW}


class UseCase(Protocol):
    """`generate` with its resources bound."""

    async def __call__(self, data: LcmInput, call: Call, on_event: OnEvent | None = None) -> dict[str, Any]:
        """Return the output for an input."""


class Generate(Protocol):
    """`generate`, or a test's replacement of it."""

    async def __call__(
        self, ctx: Resources, data: LcmInput, call: Call, on_event: OnEvent | None = None
    ) -> dict[str, Any]:
        """Return the output for an input."""


async def generate(ctx: Resources, data: LcmInput, call: Call, on_event: OnEvent | None = None) -> dict[str, Any]:
    """Return the output for an input, with its keys in fal's order.

    `on_event` is called with the start, log lines and previews. Cancelling the awaiting task cancels the work. Raises
    `FalError`: `InvalidInput` for a picture which can't be fetched or read, `RequestError` for what is not the caller's
    fault.
    """
    ctx.pool.check()  # fetch no picture for an engine which can't run
    data = data.seeded()
    try:
        with contextlib.closing(ctx.limits.pictures(call.tenant, call.allowance)) as memory:
            async with asyncio.timeout(call.start_timeout) as deadline:
                image = call.image
                if image is None:
                    image = await ctx.inputs.get(data.image_url, tenant=call.tenant, memory=memory)
                work = Work(
                    id=call.id,
                    params=data.params(),
                    image=image,
                    priority=call.priority,
                    tenant=call.tenant,
                    previews=call.previews,
                )
                generated = await ctx.pool.run(work, _watched(deadline, on_event))
    except TimeoutError:
        raise start_timed_out() from None
    flags = [picture.nsfw for picture in generated.pictures]
    ctx.metrics.generated(call.priority.name.lower(), generated.timings, flags)
    return {
        "images": await _images(ctx, data, call, generated),
        "timings": generated.timings,
        "seed": data.seed,
        "num_inference_steps": data.num_inference_steps,
        "request_id": data.request_id,
        "nsfw_content_detected": flags,
    }


async def run_job(use_case: UseCase, job: Job, on_event: OnEvent) -> dict[str, Any]:
    """Return the output for a job of the queue, which knows its own start timeout. Raises as `generate` does."""
    call = Call(
        id=f"{job.id}.{job.fence}",  # a second try is not the first one's work
        tenant=job.owner,
        priority=job.priority,
        cdn=job.call["cdn"],
        lifecycle=job.call["lifecycle"],
    )
    return await use_case(parse(job.input), call, on_event)


def _watched(deadline: asyncio.Timeout, on_event: OnEvent | None) -> OnEvent | None:
    """Return `on_event`, extended to lift the start deadline once the device has begun."""
    if deadline.when() is None:
        return on_event

    def watch(event: Event) -> None:
        if isinstance(event, Started) and not deadline.expired():
            deadline.reschedule(None)
        if on_event:
            on_event(event)

    return watch


async def _images(ctx: Resources, data: LcmInput, call: Call, generated: Generated) -> list[dict[str, Any]]:
    return [await _image(ctx, data, call, picture) for picture in generated.pictures]


async def _image(ctx: Resources, data: LcmInput, call: Call, picture: Picture) -> dict[str, Any]:
    """Return one entry of `images`. If the input was bytes, nothing is stored: `content` holds the result.

    There is no `url` then, unless as a data URI: the Swift client takes whatever text is there.
    """
    if call.image is None:
        return inline(picture) if data.sync_mode else _entry(picture, url=await _stored(ctx, call, picture))
    entry = inline(picture) if data.sync_mode else _entry(picture)
    return {"content": picture.data, **entry}


async def _stored(ctx: Resources, call: Call, picture: Picture) -> str:
    """Store a result as a file; return its URL.

    Raises `RequestError`: 429 for a full disk, which is temporary; `internal_error` for a disk which is broken or not
    writable, where a retry does not help.
    """
    try:
        name = await ctx.files.save(
            picture.data, CONTENT_TYPE, lifecycle=call.lifecycle, owner=call.tenant, durable=call.durable
        )
    except OSError as error:
        LOG.error("a result could not be stored: %s", error.strerror)  # noqa: TRY400 - nothing of the file's name
        if error.errno in NO_SPACE:
            raise overloaded("The results can't be stored at present") from error
        raise RequestError("internal_error", "The result could not be stored") from error
    return f"{call.cdn}/files/{name}"


def inline(picture: Picture) -> dict[str, Any]:
    """Return an entry of `images` which holds its picture as a data URI."""
    return _entry(picture, url=data_uri.encode(picture.data, CONTENT_TYPE))


def _entry(picture: Picture, **where: str) -> dict[str, Any]:
    return {**where, "width": picture.width, "height": picture.height, "content_type": CONTENT_TYPE}
