"""The forms of the job store under one roof, for tests of what both mean."""

from server.jobs.clock import SteadyClock
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


FORMS = {"sqlite": SQLiteForm}
