"""A request in the pool, from its arrival to its caller's answer."""

import asyncio
import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeAlias

import msgspec

from pipelines.messages import (
    INPUT_FAULTS,
    Cancelled,
    Decoded,
    Failed,
    Generated,
    Large,
    Log,
    Preview,
    Priority,
    Started,
    Work,
)
from server.fal.errors import FalError, RequestError, invalid
from server.memory import end_if_exhausted
from server.workers.supervisor import Supervisor

if TYPE_CHECKING:
    from server.workers.fair_queue import FairQueue

Event: TypeAlias = Large | Decoded | Started | Log | Preview


@dataclasses.dataclass(frozen=True, kw_only=True)
class RerunLimits:
    """The number of engines that may end while a request is assigned to them, before it is answered with an error.

    `solo_failures`: engines which had no other suspect. `tries`: all.
    """

    solo_failures: int = 3
    tries: int = 10


RERUN_LIMITS = RerunLimits()


@dataclasses.dataclass(eq=False, slots=True)
class PendingRequest:
    """A request in the pool: either it waits in `queue`, or it is assigned to `supervisor`'s engine.

    `level`: its class of priority when it was sent. `tries`: engines that ended with it. `suspect`: one of them may
    have ended because of it. `solo_failures`: those that had no other suspect. `sent`: when its engine got it.
    `decoding`: its large picture has not been decoded there yet.
    """

    work: Work
    on_event: Callable[[Event], None] | None
    answer: asyncio.Future[Generated]
    arrived: float
    queue: "FairQueue[PendingRequest] | None" = None
    supervisor: Supervisor | None = None
    level: int = 0
    solo_failures: int = 0
    tries: int = 0
    suspect: bool = False
    timer: asyncio.TimerHandle | None = None
    sent: float = 0.0
    decoding: bool = False

    @property
    def priority(self) -> Priority:
        """Return the work's priority."""
        return self.work.priority

    @property
    def tenant(self) -> str:
        """Return the caller that fairness counts it for."""
        return self.work.tenant

    @property
    def cost(self) -> int:
        """Return the number of images."""
        return self.work.params.num_images

    @property
    def large(self) -> bool:
        """Return whether a decoder process decodes its picture."""
        return self.work.large

    @property
    def alone(self) -> bool:
        """Return whether no other picture that takes much memory may be decoded beside its own."""
        return self.work.alone

    def note_large(self, message: Large) -> None:
        """Note that its picture is decoded by a decoder process from now on."""
        self.work = msgspec.structs.replace(self.work, large=True, alone=message.alone)
        self.tell(message)

    def exhausted(self, limits: RerunLimits) -> bool:
        """Return whether it may not be run again."""
        return self.solo_failures >= limits.solo_failures or self.tries >= limits.tries

    def tell(self, event: Event) -> None:
        """Pass an event to the listener. If the listener fails, so does its request, and nothing else."""
        if self.on_event is None or self.answer.done():
            return
        try:
            self.on_event(event)
        except Exception as error:  # noqa: BLE001 – it reaches the listener's owner as `run`'s
            end_if_exhausted(error)
            self.answer.set_exception(error)

    def settle(self, end: Generated | FalError) -> None:
        """Answer it, unless it is answered already or its caller is gone."""
        if self.answer.done():
            return
        if isinstance(end, Generated):
            self.answer.set_result(end)
        else:
            self.answer.set_exception(end)


def verdict(message: Generated | Failed | Cancelled) -> Generated | FalError:
    """Convert an engine's last message about a request to the caller's answer."""
    if isinstance(message, Generated):
        return message
    if isinstance(message, Cancelled):
        return RequestError("client_cancelled", "The request was cancelled.")
    if message.kind in INPUT_FAULTS:
        return invalid("image_url", message.kind, message.message, message.ctx)
    return RequestError("runner_server_error", message.message)
