"""The small files that servers on one database share: keys and secrets. The table has them, each server a copy.

A server reads its own copies, in its data folder, as one without a database does; so while the database is away they
stay as they were last read. Whoever changes one changes its own copy under a lock, and puts it into the table.
"""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable
from pathlib import Path

from server.data_dir import write_whole
from server.jobs.postgres.connection import Statement
from server.jobs.postgres.pool import Pool
from server.settings import SettingsError

LOG = logging.getLogger(__name__)

# Relative to the data folder.
KEYS = "keys.json"
WEBHOOK_KEYS = "webhook-keys.json"
SECRETS = ("token.secret", "files/upload.secret")
NAMES = (KEYS, WEBHOOK_KEYS, *SECRETS)

LOCK_TRY_S = 0.05

_NEWER = Statement(
    "documents",
    """
SELECT name, version, body FROM documents
WHERE version > coalesce((SELECT v FROM unnest($1::text[], $2::bigint[]) AS known (n, v) WHERE n = name), 0)
""",
)
_FIRST = Statement(
    "document_made", "INSERT INTO documents (name, version, body) VALUES ($1, 1, $2) ON CONFLICT (name) DO NOTHING"
)
_CHANGE = Statement(
    "document_changed",
    """
INSERT INTO documents (name, version, body) VALUES ($1, 1, $2)
ON CONFLICT (name) DO UPDATE SET version = documents.version + 1, body = $2 WHERE documents.body <> $2
""",
)


class Documents:
    """This server's copies, in `folder`."""

    def __init__(self, pool: Pool, folder: Path) -> None:
        self._pool = pool
        self._folder = folder
        self._known: dict[str, int] = {}

    @property
    def version(self) -> int:
        """The sum of the versions of the copies."""
        return sum(self._known.values())

    async def join(self, make: Callable[[], None]) -> None:
        """Take the shared documents over, and put those of this server into the table which are not there yet.

        `make` makes what is missing of them. A file of this server's own that the table has otherwise stays beside the
        copy, as `NAME.before`.
        """
        await self.pull(joining=True)
        await asyncio.to_thread(make)
        for name in NAMES:
            if (file := self._folder / name).exists():
                await self._pool.write(self._pool.fetch(_FIRST, name, file.read_bytes()))
        await self.pull()

    async def give(self) -> None:
        """Put this folder's documents into the table. Raises `SettingsError` where the table has other secrets.

        Keys come first: a table that has this folder's secrets has had its keys, and may have newer ones.
        """
        theirs = {row["name"]: row["body"] for row in await self._pool.fetch(_NEWER, [], [])}
        mine = {name: (self._folder / name).read_bytes() for name in NAMES if (self._folder / name).exists()}
        if other := next((name for name in SECRETS if mine.get(name) != theirs.get(name, mine.get(name))), None):
            raise SettingsError(
                f"database: it has another {other} than {self._folder}, whose tokens and upload URLs would not hold."
                " Hint: name a database on which no server has been started yet, or another schema:"
                " ?search_path=fourstep"
            )
        for name, body in mine.items():
            await self._pool.write(self._pool.fetch(_FIRST, name, body))

    async def count(self) -> int:
        """Return how many documents are in the table."""
        return len([row for row in await self._pool.fetch(_NEWER, [], []) if row["name"] in NAMES])

    async def pull(self, *, joining: bool = False) -> None:
        """Bring the copies up to date. Raises `DatabaseError`, and leaves them as they are."""
        known = self._known
        rows = await self._pool.read(self._pool.fetch(_NEWER, list(known), list(known.values())))
        for name, version, body in rows:
            if name in NAMES:  # a newer release may have others
                await asyncio.to_thread(self._write, self._folder / name, body, joining=joining)
            self._known[name] = version

    @contextlib.asynccontextmanager
    async def editing(self, name: str) -> AsyncIterator[None]:
        """Context in which the copy of one document is changed, by one process of all servers at a time."""
        while True:
            async with self._pool.chore(f"document {name}") as mine:
                if mine:
                    await self.pull()
                    yield
                    if (file := self._folder / name).exists():
                        await self._pool.write(self._pool.fetch(_CHANGE, name, file.read_bytes()))
                        await self.pull()
                    return
            await asyncio.sleep(LOCK_TRY_S)

    def _write(self, file: Path, body: bytes, *, joining: bool) -> None:
        if file.exists():
            own = file.read_bytes()
            if own == body:
                return
            before = file.with_name(f"{file.name}.before")
            if joining and not before.exists():
                write_whole(before, own)
                LOG.warning("%s is now that of all servers; what it was is kept in %s", file, before.name)
        file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        write_whole(file, body)
