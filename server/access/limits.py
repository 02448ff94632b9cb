"""How much may be in hand at once: calls, realtime sessions, bytes. Of all together, and of one key. More is 429.

429 is the one answer to overload that fal's Python and JavaScript clients both try again (a 503 fails in Python).

A permit is taken as soon as it is known who calls, before anything of the call is read, and given back by whatever ends
the exchange: `ReleaseReservations` stands around the application for that. How many jobs may wait is the queue's own
affair, which counts what is on disk; all else that is bounded by number is counted here.
"""

import collections
import contextlib
import math

from starlette.requests import HTTPConnection
from starlette.types import ASGIApp, Receive, Scope, Send

from server.access.api_keys import Allowance
from server.access.auth import Caller
from server.fal.errors import overloaded
from server.settings import LimitSettings

_PERMITS = "fourstep.permits"


class Quota:
    """So much of something, and who has how much of it. `what` it is, for those who are refused."""

    def __init__(self, total: float, what: str) -> None:
        self._total = total
        self._what = what
        self._taken: collections.Counter[str] = collections.Counter()
        self.used = 0

    def has_room(self, owner: str, amount: int, share: int | None) -> bool:
        """Whether `take` would succeed."""
        within_share = share is None or self._taken[owner] + amount <= share
        return within_share and self.used + amount <= self._total

    def take(self, owner: str, amount: int, share: int | None) -> None:
        """Raises `RequestError` 429 when the owner would have more than `share`, or all together more than there is."""
        if share is not None and self._taken[owner] + amount > share:
            raise overloaded(f"This key has too many {self._what} in hand; try again")
        if self.used + amount > self._total:
            raise overloaded(f"Too many {self._what} in hand; try again")
        self._taken[owner] += amount
        self.used += amount

    def give_back(self, owner: str, amount: int) -> None:
        """Ends a `take`."""
        self.used -= amount
        self._taken[owner] -= amount
        if not self._taken[owner]:
            del self._taken[owner]


class Reservation:
    """What somebody has of a supply, to be taken and given back as it comes and goes. Close it at the end.

    `share`: the most that the owner may have, over all holds.
    """

    def __init__(self, supply: Quota, owner: str, share: int | None = None) -> None:
        self._supply = supply
        self._owner = owner
        self._share = share
        self.amount = 0

    def take(self, amount: int = 1) -> None:
        """Raises `RequestError` 429, and takes nothing then."""
        self._supply.take(self._owner, amount, self._share)
        self.amount += amount

    def has_room(self, amount: int) -> bool:
        """Whether `take` would succeed."""
        return self._supply.has_room(self._owner, amount, self._share)

    def give_back(self, amount: int) -> None:
        """Some of it, before the end."""
        self._supply.give_back(self._owner, amount)
        self.amount -= amount

    def resize(self, amount: int) -> None:
        """Have so much in all. Raises `RequestError` 429, and takes nothing then."""
        if amount > self.amount:
            self.take(amount - self.amount)
        else:
            self.give_back(self.amount - amount)

    def close(self) -> None:
        """All of it."""
        self.give_back(self.amount)


class Limits:
    """The server's supplies. Permits end with the exchange or the socket that they were taken for."""

    def __init__(self, settings: LimitSettings) -> None:
        self._calls = Quota(settings.max_calls, "calls")
        self._sessions = Quota(settings.max_sessions, "realtime sessions")
        self._memory = Quota(settings.body_budget_bytes, "bytes")
        # What was accepted is not refused; the engines' capacity bounds it.
        self._job_memory = Quota(math.inf, "bytes")

    def call(self, connection: HTTPConnection, caller: Caller) -> None:
        """One run or stream. Raises `RequestError` 429."""
        self._hold(connection, Reservation(self._calls, caller.id, caller.allowance.calls)).take()

    def session(self, connection: HTTPConnection, caller: Caller) -> None:
        """One realtime socket. Raises `RequestError` 429."""
        self._hold(connection, Reservation(self._sessions, caller.id, caller.allowance.sessions)).take()

    def memory(self, connection: HTTPConnection, caller: Caller) -> Reservation:
        """For the bytes that are kept for a caller: bodies, frames, fetched pictures."""
        return self._hold(connection, Reservation(self._memory, caller.id, caller.allowance.memory))

    def pictures(self, owner: str, allowance: Allowance | None) -> Reservation:
        """For the picture that a request has us fetch; to be closed. No `allowance`: that of an accepted job."""
        if allowance is None:
            return Reservation(self._job_memory, owner)
        return Reservation(self._memory, owner, allowance.memory)

    @property
    def memory_used(self) -> int:
        """Bytes that are held."""
        return self._memory.used

    def _hold(self, connection: HTTPConnection, hold: Reservation) -> Reservation:
        permits: contextlib.ExitStack = connection.scope[_PERMITS]
        return permits.enter_context(contextlib.closing(hold))


class ReleaseReservations:
    """ASGI middleware: gives back, when an exchange or a socket ends, what was taken for it."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection."""
        with contextlib.ExitStack() as scope[_PERMITS]:
            await self._app(scope, receive, send)
