"""One connection to PostgreSQL with its prepared statements."""

import re
import time
from collections.abc import Collection, Sequence
from typing import Any, ClassVar, NamedTuple, TypeAlias

import asyncpg
from typing_extensions import override

Row: TypeAlias = Any  # asyncpg.Record, which has no types: columns by name or number
Rows: TypeAlias = Sequence[Row]


class Statement(NamedTuple):
    """An operation's name, as metrics show it, and its SQL."""

    operation: str
    text: str


class Connection:
    """An open connection. `raw`: asyncpg's own."""

    def __init__(self, raw: Any) -> None:
        self.raw = raw
        self.idle_since = 0.0
        self._prepared: dict[Statement, Any] = {}

    async def fetch(self, statement: Statement, arguments: Sequence[Any], until: float) -> Rows:
        """Execute, prepared; rows within the time, by the monotonic clock, or `TimeoutError`."""
        prepared = self._prepared.get(statement)
        if prepared is None:
            # By a name: without one asyncpg has it parsed and planned again each time.
            name = f"{statement.operation}_{len(self._prepared)}"
            prepared = await self.raw.prepare(statement.text, name=name, timeout=left(until))
            self._prepared[statement] = prepared
        rows: Rows = await prepared.fetch(*arguments, timeout=left(until))
        return rows


class _Connection(asyncpg.Connection):  # type: ignore[misc]  # it has no types
    """Takes what asyncpg asks of the types in our statements from the connection before.

    They are PostgreSQL's own, so their numbers are the same everywhere. Asking costs it 10 ms for each connection (with
    AVX2 only), of which many are opened at once after a failover. Were the method called otherwise, each would ask.
    """

    __slots__ = ()
    _answers: ClassVar[dict[tuple[int, ...], Any]] = {}

    @override
    async def _introspect_types(self, typeoids: Collection[int], timeout: float) -> Any:
        asked = tuple(sorted(typeoids))
        if asked not in self._answers:
            self._answers[asked] = await super()._introspect_types(typeoids, timeout)
        return self._answers[asked]


async def opened(url: str, *, timeout_s: float, statement_s: float = 0.0) -> Any:
    """Return a new connection of asyncpg's. `statement_s`: then the server itself stops a statement; 0: never.

    Every statement has an index that serves it, whatever the statistics say. Plans are made once: those for the first
    values and an empty table would be others, and stay for as long as the connection.
    """
    return await asyncpg.connect(
        url,
        timeout=timeout_s,
        connection_class=_Connection,
        statement_cache_size=0,  # `Connection` keeps what it has prepared
        server_settings={
            "application_name": "fourstep",
            "enable_seqscan": "off",
            "enable_bitmapscan": "off",
            "plan_cache_mode": "force_generic_plan",
            "jit": "off",
            "statement_timeout": str(int(statement_s * 1000)),
            "idle_in_transaction_session_timeout": "60000",  # the lock of a frozen server's chore goes to another
        },
    )


class Hosts:
    """The hosts of a URL, asked one after the other. asyncpg would spend all its time on the first that is silent."""

    def __init__(self, url: str) -> None:
        scheme, separator, rest = url.partition("://")
        authority = re.split(r"[/?]", rest, maxsplit=1)[0]
        user, at, hosts = authority.rpartition("@")
        start, end = f"{scheme}{separator}{user}{at}", rest.removeprefix(authority)
        self._urls = [f"{start}{host}{end}" for host in hosts.split(",")]  # the one that answered last comes first

    async def open(self, *, timeout_s: float, statement_s: float = 0.0) -> Any:
        """Return a connection to the first host that can be used. Raises the last one's error."""
        until = time.monotonic() + timeout_s
        urls = [*self._urls]
        for number, url in enumerate(urls, 1):
            share_s = left(until) / (len(urls) - number + 1)
            try:
                raw = await opened(url, timeout_s=share_s, statement_s=statement_s)
            except Exception:
                if number == len(urls):
                    raise
            else:
                self._urls.remove(url)
                self._urls.insert(0, url)
                return raw
        raise AssertionError


def left(until: float) -> float:
    """Return the seconds until then, at least a millisecond."""
    return max(0.001, until - time.monotonic())
