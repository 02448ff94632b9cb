"""A request in the pool, and what becomes of it: told of events, answered, or failed."""

import asyncio
import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeAlias

from pipelines.messages import INPUT_FAULTS, Cancelled, Failed, Generated, Log, Preview, Priority, Started, Work
from server.fal.errors import FalError, RequestError, invalid
from server.workers.supervisor import Supervisor

if TYPE_CHECKING:
    from server.workers.fair_queue import FairQueue

Event: TypeAlias = Started | Log | Preview


@dataclasses.dataclass(eq=False, slots=True)
class PendingRequest:
    """A request in the pool: either it waits in `line`, or `supervisor` has it in hand.

    `level`: the class that it counted as when it was sent. `tries` and `solo_failures`: engines that ended with it,
    and those of them that had nothing else.
    """

    work: Work
    on_event: Callable[[Event], None] | None
    answer: asyncio.Future[Generated]
    arrived: float
    line: "FairQueue[PendingRequest] | None" = None
    supervisor: Supervisor | None = None
    level: int = 0
    solo_failures: int = 0
    tries: int = 0
    timer: asyncio.TimerHandle | None = None

    @property
    def priority(self) -> Priority:
        """The work's priority."""
        return self.work.priority

    @property
    def tenant(self) -> str:
        """Whom fairness counts it for."""
        return self.work.tenant

    @property
    def cost(self) -> int:
        """Images."""
        return self.work.params.num_images

    def tell(self, event: Event) -> None:
        """Pass on an event. If the listener fails, so does its request, and nothing else."""
        if self.on_event is None or self.answer.done():
            return
        try:
            self.on_event(event)
        except Exception as error:  # noqa: BLE001 – it reaches the listener's owner as `run`'s
            self.answer.set_exception(error)

    def settle(self, end: Generated | FalError) -> None:
        """Answer it, unless it has been answered or its caller is gone."""
        if self.answer.done():
            return
        if isinstance(end, Generated):
            self.answer.set_result(end)
        else:
            self.answer.set_exception(end)


def verdict(message: Generated | Failed | Cancelled) -> Generated | FalError:
    """What an engine's last word on a request means to its caller."""
    if isinstance(message, Generated):
        return message
    if isinstance(message, Cancelled):
        return RequestError("client_cancelled", "The request was cancelled.")
    if message.kind in INPUT_FAULTS:
        return invalid("image_url", message.kind, message.message, message.ctx)
    return RequestError("runner_server_error", message.message)
