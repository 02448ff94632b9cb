"""Limits on what is in flight, of all callers together and of one key: connections, calls, bytes … More is 429.

429 is the one answer to overload that fal's Python and JavaScript clients both try again (a 503 fails in Python).

A reservation is made as soon as the caller is known, before anything of the call is read. The middleware
`ReleaseReservations` releases it when the exchange ends, however it ends. The number of waiting jobs is not counted
here: the queue counts what is on disk.
"""

import asyncio
import collections
import contextlib
import functools
import math
from collections.abc import Callable

from starlette.requests import HTTPConnection
from starlette.types import ASGIApp, Receive, Scope, Send

from server.access.api_keys import Allowance
from server.access.auth import Caller
from server.fal.errors import overloaded
from server.settings import AccessSettings

_RESERVATIONS = "fourstep.permits"


class Quota:
    """A total amount, and what each owner has taken of it. `what` and `whose` name it and the owner in the error.

    `elsewhere`: what an owner has taken at other servers, which counts for its share.
    """

    def __init__(
        self, total: float, what: str, whose: str = "key", elsewhere: Callable[[str], int] = lambda owner: 0
    ) -> None:
        self._total = total
        self._what = what
        self._whose = whose
        self._elsewhere = elsewhere
        self._taken: collections.Counter[str] = collections.Counter()
        self.used = 0

    def has_room(self, owner: str, amount: int, share: int | None) -> bool:
        """Return whether `take` would succeed."""
        within_share = share is None or self.taken(owner) + amount <= share
        return within_share and self.used + amount <= self._total

    def take(self, owner: str, amount: int, share: int | None) -> None:
        """Take `amount`. Raises `RequestError` 429 beyond the owner's `share`, and beyond the total."""
        if share is not None and self.taken(owner) + self._elsewhere(owner) + amount > share:
            raise overloaded(f"This {self._whose} has too many {self._what} in flight; try again")
        if self.used + amount > self._total:
            raise overloaded(f"Too many {self._what} in flight; try again")
        self._taken[owner] += amount
        self.used += amount

    def taken(self, owner: str) -> int:
        """Return what the owner has taken here."""
        return self._taken[owner]

    def give_back(self, owner: str, amount: int) -> None:
        """Release `amount` of what the owner has taken."""
        self.used -= amount
        self._taken[owner] -= amount
        if not self._taken[owner]:
            del self._taken[owner]


class Reservation:
    """What one exchange has taken of a quota; may grow and shrink, and is closed at the end.

    `share`: the most that the owner may have, over all reservations.
    """

    def __init__(self, quota: Quota, owner: str, share: int | None = None) -> None:
        self._quota = quota
        self._owner = owner
        self._share = share
        self.amount = 0

    def take(self, amount: int = 1) -> None:
        """Take `amount` more. Raises `RequestError` 429, and takes nothing then."""
        self._quota.take(self._owner, amount, self._share)
        self.amount += amount

    def has_room(self, amount: int) -> bool:
        """Return whether `take` would succeed."""
        return self._quota.has_room(self._owner, amount, self._share)

    def give_back(self, amount: int) -> None:
        """Release `amount` before the end."""
        self._quota.give_back(self._owner, amount)
        self.amount -= amount

    def resize(self, amount: int) -> None:
        """Set the whole reservation to `amount`. Raises `RequestError` 429, and changes nothing then."""
        if amount > self.amount:
            self.take(amount - self.amount)
        else:
            self.give_back(self.amount - amount)

    def close(self) -> None:
        """Release the whole reservation."""
        self.give_back(self.amount)


class Limits:
    """The server's quotas. A reservation ends with the exchange or the socket for which it was made.

    `elsewhere`: how many of "calls" or "sessions" a key has in flight at other servers.
    `large_body`: held while a piece of a large body is kept, or all of it parsed: many together take turns on the loop.
    """

    def __init__(self, settings: AccessSettings, elsewhere: Callable[[str, str], int] = lambda what, owner: 0) -> None:
        # All together are counted where connections are made.
        self._connections = Quota(math.inf, "connections")
        # So that room is left for `max_calls` runs, or for as many as there can be streams.
        streams = max(settings.max_connections - settings.max_calls, settings.max_connections // 2)
        self._status_streams = Quota(streams, "status streams")
        self.large_body = asyncio.Lock()
        self._calls = Quota(settings.max_calls, "calls", elsewhere=functools.partial(elsewhere, "calls"))
        self._sessions = Quota(
            settings.max_sessions, "realtime sessions", elsewhere=functools.partial(elsewhere, "sessions")
        )
        self._downloads = Quota(settings.max_downloads, "downloads", whose="client")
        self._downloads_share = max(1, int(settings.max_downloads * settings.key_share))
        self._memory = Quota(settings.body_budget_bytes, "bytes")
        # What was accepted is not refused; the engines' capacity bounds it.
        self._job_memory = Quota(math.inf, "bytes")

    def connection(self, connection: HTTPConnection, caller: Caller) -> None:
        """Reserve the connection of an exchange or a socket. Raises `RequestError` 429."""
        self._keep(connection, Reservation(self._connections, caller.id, caller.allowance.connections)).take()

    def status_stream(self, connection: HTTPConnection, caller: Caller) -> None:
        """Reserve one stream of a job's statuses, beside its connection. Raises `RequestError` 429."""
        self._keep(connection, Reservation(self._status_streams, caller.id)).take()

    def call(self, connection: HTTPConnection, caller: Caller) -> None:
        """Reserve one run or stream. Raises `RequestError` 429."""
        self._keep(connection, Reservation(self._calls, caller.id, caller.allowance.calls)).take()

    def session(self, connection: HTTPConnection, caller: Caller) -> None:
        """Reserve one realtime socket. Raises `RequestError` 429."""
        self._keep(connection, Reservation(self._sessions, caller.id, caller.allowance.sessions)).take()

    def download(self, connection: HTTPConnection, owner: str) -> None:
        """Reserve the sending of a stored file, for a key or an address. Raises `RequestError` 429."""
        self._keep(connection, Reservation(self._downloads, owner, self._downloads_share)).take()

    def memory(self, connection: HTTPConnection, caller: Caller) -> Reservation:
        """Return an empty reservation for bytes in memory: bodies, frames, fetched pictures."""
        return self._keep(connection, Reservation(self._memory, caller.id, caller.allowance.memory))

    def pictures(self, owner: str, allowance: Allowance | None) -> Reservation:
        """Return an empty reservation for a fetched picture, to be closed. `allowance` is None for an accepted job."""
        if allowance is None:
            return Reservation(self._job_memory, owner)
        return Reservation(self._memory, owner, allowance.memory)

    @property
    def calls_running(self) -> int:
        """Number of runs and streams in flight."""
        return self._calls.used

    @property
    def sessions_open(self) -> int:
        """Number of realtime sockets."""
        return self._sessions.used

    def taken(self, owner: str) -> dict[str, int]:
        """Return what an owner has in flight here, by name."""
        return {"calls": self._calls.taken(owner), "sessions": self._sessions.taken(owner)}

    @property
    def memory_used(self) -> int:
        """Bytes that are reserved."""
        return self._memory.used

    def _keep(self, connection: HTTPConnection, reservation: Reservation) -> Reservation:
        reservations: contextlib.ExitStack = connection.scope[_RESERVATIONS]
        return reservations.enter_context(contextlib.closing(reservation))


class ReleaseReservations:
    """ASGI middleware that releases what was reserved for an exchange or a socket when it ends."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection."""
        with contextlib.ExitStack() as scope[_RESERVATIONS]:
            await self._app(scope, receive, send)
