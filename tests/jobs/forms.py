"""The forms of the job store under one roof, for tests of what both mean."""

import asyncio
import uuid

from typing_extensions import override

from server.jobs.clock import SteadyClock
from server.jobs.errors import DatabaseError
from server.jobs.postgres.connection import Statement
from server.jobs.postgres.migrations import migrate
from server.jobs.postgres.outbox import PostgresOutbox
from server.jobs.postgres.payloads import PayloadStore
from server.jobs.postgres.pool import Failed, Pool
from server.jobs.postgres.store import PostgresStore
from server.jobs.sqlite.database import Database
from server.jobs.sqlite.store import SQLiteStore
from tests.jobs.queues import outbox_of

LEASE = 60.0


class SQLiteForm:
    """One SQLite database. Its time stands still but for `forward`."""

    def __init__(self, folder) -> None:
        self.path = folder / "jobs.sqlite"
        self.now = 1000.0
        self._clock = SteadyClock(lambda: self.now, lambda: self.now)
        self._open()

    def _open(self):
        self.database = Database(self.path)
        self.store = self.worker()
        self.outbox = outbox_of(self.store)

    def worker(self, kind=SQLiteStore):
        """Return the store as another worker sees it."""
        return kind(self.database, self._clock, lease_s=LEASE)

    async def forward(self, seconds):
        """Let time pass."""
        self.now += seconds

    async def reopen(self):
        """End the server, and open the database in the next one."""
        await self.close()
        self._open()

    async def unfinished(self):
        """Return the ids of the jobs that have not ended, in the order in which they will be claimed."""
        return [snapshot.id for snapshot in await self.store.recover()]

    async def close(self):
        """Let the database go."""
        await self.database.close()


class PostgresForm:
    """One PostgreSQL database of its own. Its time passes, and `forward` moves all that it has stored into the past."""

    def __init__(self, cluster) -> None:
        self.cluster = cluster
        self.outside = MemoryPayloads()

    async def open(self):
        self.name = await self.cluster.new_database(await migrated(self.cluster))
        await self._alive()
        self._connect()
        return self

    def _connect(self):
        self.pool = LosingPool(self.cluster.url(self.name))
        self.store = self.worker()
        self.outbox = self.outbox_of(self.store)

    def outbox_of(self, store):
        """Return the outbox as a worker sees it."""
        return PostgresOutbox(self.pool, node=store.node)

    def worker(self, kind=PostgresStore, **settings):
        """Return the store as another worker sees it."""
        return kind(self.pool, self.outside, node=uuid.uuid4().hex, **{"lease_s": LEASE, "measured_s": 0.0, **settings})

    async def execute(self, *statements):
        """Execute statements in this database."""
        await self.cluster.execute(*statements, database=self.name)

    async def fetch(self, query):
        """Return the rows of a query in this database."""
        return await self.cluster.fetch(self.cluster.url(self.name), query)

    async def everything(self):
        """Return what is left of payloads: of each row what it names, and the number of objects to be deleted."""
        return await self.fetch(
            "SELECT input_object, output_object, (SELECT count(*) FROM objects)"
            " FROM (SELECT 1) AS one LEFT JOIN payloads ON true"
        )

    async def settled(self):
        """Wait for what the store does behind its answers."""
        await asyncio.gather(*self.pool._writes)

    async def _alive(self):
        # There was no gap in the heartbeats: leases lapse in their time.
        await self.execute("UPDATE fleet SET beat = extract(epoch FROM now())")

    async def forward(self, seconds):
        """Let time pass, in which other servers' hearts beat."""
        await self.execute(
            *(
                f"UPDATE {table} SET " + ", ".join(f"{column} = {column} - {seconds}" for column in columns)
                for table, columns in TIMES.items()
            )
        )
        await self._alive()

    async def reopen(self):
        """End the server, let its leases lapse, and start the next one."""
        await self.pool.close()
        await self.forward(LEASE + 1)
        self._connect()
        await self.store.heartbeat(())

    async def unfinished(self):
        """Return the ids of the jobs that have not ended, in the order in which they will be claimed."""
        which = Statement("unfinished", "SELECT id FROM jobs WHERE status <> 'COMPLETED' ORDER BY priority, seq")
        return [row[0] for row in await self.pool.fetch(which)]

    async def close(self):
        """Let the database go."""
        await self.pool.close()
        await self.cluster.drop(self.name)


class LosingPool(Pool):
    """A pool that loses answers: what was asked for has been done."""

    losing = 0

    def lose(self, count):
        """Lose the next answers."""
        self.losing = count

    @override
    async def _fetch_once(self, statement, arguments, until):
        rows = await super()._fetch_once(statement, arguments, until)
        if self.losing:
            self.losing -= 1
            raise Failed(ConnectionResetError("lost"), passing=True)
        return rows


# What is stored of times, but for a job's log.
TIMES = {
    "jobs": ("submitted_at", "start_by", "not_before", "lease_until", "finished_at"),
    "outbox": ("due_at", "leased_until"),
    "objects": ("due_at",),
    "fleet": ("beating_since", "usage_at"),
}


class MemoryPayloads(PayloadStore):
    """Payloads outside the database, in memory. `away`: it fails."""

    def __init__(self) -> None:
        self.objects = {}
        self.away = False

    @override
    async def put(self, name, data):
        self._reach()
        self.objects[name] = data

    @override
    async def get(self, name):
        self._reach()
        return self.objects.get(name)

    @override
    async def delete(self, names):
        self._reach()
        for name in names:
            self.objects.pop(name, None)

    def _reach(self):
        if self.away:
            raise DatabaseError("the object store is away")


async def migrated(cluster):
    """Return the name of a database with all tables, made once in a cluster."""
    if cluster.template is None:
        cluster.template = await cluster.new_database()
        await migrate(cluster.url(cluster.template))
    return cluster.template


FORMS = ("sqlite", "postgres")


async def opened(name, request):
    """Return an open form of the store; `request` is the test's."""
    if name == "sqlite":
        return SQLiteForm(request.getfixturevalue("tmp_path"))
    return await PostgresForm(request.getfixturevalue("postgres")).open()
