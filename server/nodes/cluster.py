"""A server as one of several on one database: its parts, what it does for the others, what it says of them."""

import asyncio
import contextlib
import logging
import socket
import time
import uuid
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any, TypeVar

from server.jobs.errors import DatabaseError
from server.jobs.postgres.migrations import migrate
from server.jobs.postgres.outbox import PostgresOutbox
from server.jobs.postgres.payloads import PayloadStore
from server.jobs.postgres.pool import Pool
from server.jobs.postgres.store import PostgresStore
from server.jobs.times import QueueTimes
from server.nodes.documents import Documents
from server.nodes.index import SharedIndex
from server.nodes.refresh import Refresh
from server.nodes.row import Node, Nodes, all_nodes
from server.settings import ClusterSettings, SettingsError

LOG = logging.getLogger(__name__)

T = TypeVar("T")

ASK_S = 0.05  # between two claims of a server with room: nothing tells it that another has accepted a job
ASK_IN_LULL_S = 0.08  # the same after ten seconds without a job: a cold look costs the database 0.2 ms (AVX2)
LEFT_S = 5.0  # until a server that is busy with calls takes a job all the same: then all others are, too
BEATS_IN_A_LEASE = 5
QUOTA_S = 2.0  # between looks at what the queues of all servers take
MEMBER_S = 1.0  # between renewals of the server's row, and looks for changed keys
OFFSET_S = 30.0  # of a clock, from which on it is wrong: /health says so, and the database's counts


async def join(settings: ClusterSettings, make: Callable[[], None]) -> None:
    """Bring the database's schema up to date, and this server's keys and secrets in step with all servers'.

    `make` makes those that this server lacks. Raises `SettingsError` where the database can't be used.
    """
    async with opened(settings) as pool:
        await Documents(pool, settings.data_dir).join(make)


async def found(settings: ClusterSettings) -> list[Node]:
    """Return every server of the database. Raises `SettingsError` where it can't be used."""
    async with opened(settings) as pool:
        return await all_nodes(pool)


async def edit(settings: ClusterSettings, name: str, act: Callable[[], T]) -> T:
    """Return what `act` returns, which changes this machine's copy of a document, for all servers.

    Raises `SettingsError` where the database can't be used.
    """
    async with opened(settings) as pool, Documents(pool, settings.data_dir).editing(name):
        return act()


@contextlib.asynccontextmanager
async def opened(settings: ClusterSettings) -> AsyncIterator[Pool]:
    """Context of a command's work on the database. Raises `SettingsError` where it can't be used."""
    await migrate(settings.database, patience_s=settings.database_patience)
    pool = Pool(settings.database, patience_s=settings.database_patience)
    try:
        yield pool
    except DatabaseError as error:
        raise SettingsError(f"database: PostgreSQL can't be used ({error}). Hint: {error.hint}") from error
    finally:
        await pool.close()


class Cluster:
    """The parts that take the place of those of a server that is alone."""

    def __init__(
        self, settings: ClusterSettings, payloads: PayloadStore, observe: Callable[[str, float], None]
    ) -> None:
        self.id = uuid.uuid4().hex
        self.name = settings.node or socket.gethostname()
        self.pool = Pool(settings.database, patience_s=settings.database_patience, observe=observe)
        self.store = PostgresStore(
            self.pool, payloads, node=self.id, lease_s=settings.lease, inline_bytes=settings.inline_bytes
        )
        self.outbox = PostgresOutbox(self.pool, node=self.id)
        self.index = SharedIndex()
        self.follower = Refresh(self.store, self.index)
        self.times = QueueTimes(
            ask=ASK_S,
            ask_in_lull=ASK_IN_LULL_S,
            left=LEFT_S,
            heartbeat=settings.lease / BEATS_IN_A_LEASE,
            quota=QUOTA_S,
        )
        self._folder = settings.data_dir
        self._nodes: Nodes | None = None

    @contextlib.asynccontextmanager
    async def member(self, describe: Callable[[], Node]) -> AsyncIterator[None]:
        """Context in which this server is one of all: they see its row, as `describe` has it, and it has their keys."""
        self._nodes = nodes = Nodes(self.pool, describe)
        documents = Documents(self.pool, self._folder)
        keeping = asyncio.create_task(self._keep(nodes, documents), name="nodes")
        try:
            yield
        finally:
            keeping.cancel()
            await asyncio.gather(keeping, return_exceptions=True)
            with contextlib.suppress(DatabaseError):  # then it is told by its silence
                await nodes.leave()

    async def _keep(self, nodes: Nodes, documents: Documents) -> None:
        away = False
        while True:
            try:
                await nodes.beat()
                if nodes.documents != documents.version:
                    await documents.pull()
            except DatabaseError as error:
                if not away:
                    LOG.warning("the database can't be used: %s. Hint: %s", error, error.hint)
                away = True
            else:
                if away:
                    LOG.warning("the database is back")
                away = False
            await asyncio.sleep(MEMBER_S)

    def now(self) -> float:
        """Return Unix time: this machine's, or the database's where the machine's clock is wrong."""
        return time.time() - self._offset_s

    def elsewhere(self, what: str, owner: str) -> int:
        """Return how many `calls` or `sessions` of a limited key are in flight at other servers."""
        return sum(node.counts.get(owner, {}).get(what, 0) for node in self._heard_of())

    def room_elsewhere(self) -> int:
        """Return how many jobs the engines of other running servers do at once."""
        return sum(node.room for node in self._heard_of() if not node.draining)

    def samples(self) -> Mapping[str, Any]:
        """Return what metrics say of the database and of all servers."""
        others = self._nodes.others if self._nodes else ()
        heard_of = self._heard_of()
        leaving = sum(node.draining for node in heard_of)
        nodes = {"running": 1 + len(heard_of) - leaving, "leaving": leaving, "silent": len(others) - len(heard_of)}
        return {"up": self.pool.up, "nodes": nodes, "claims": self.store.claims, "fenced": self.store.fenced}

    @property
    def _offset_s(self) -> float:
        """By how much this machine's clock is wrong; 0 where it is right but for what a slow answer may feign."""
        offset_s = self._nodes.offset_s if self._nodes else 0.0
        return offset_s if abs(offset_s) > OFFSET_S else 0.0

    def _heard_of(self) -> list[Node]:
        """Return the other servers that have shown signs of life of late."""
        return [node for node in (self._nodes.others if self._nodes else ()) if not node.silent]

    def health(self) -> Mapping[str, Any]:
        """Return what `/health` says of the database and of this server's clock."""
        said: dict[str, Any] = {"node": self.name, "database": "up" if self.pool.up else "away"}
        if self.pool.down_since is not None:
            said["database_away_s"] = round(time.time() - self.pool.down_since, 1)
        if self._nodes is not None:
            said |= {"nodes": 1 + len(self._heard_of()), "room_elsewhere": self.room_elsewhere()}
        if self._offset_s:
            said["clock_offset_s"] = round(self._offset_s, 1)
        return said
