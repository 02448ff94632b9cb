"""What the files of all servers take, by owner, in the database: the rules of `server.storage.ledger`, exact for all.

    files        one row per file or part: counted before it is put, until it is deleted
    files_used   what each owner's rows sum up to, and ('') all together

Who counts, or counts no more, begins with the lock on the row of all together, so two servers never take the same room.
These commits don't wait for the disk: what a database that dies has forgotten of them, the next recount finds. So it
does what was stored while the database was away: files and pictures don't wait for it.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from typing import Any, Final

from typing_extensions import override

from server.jobs.errors import DatabaseError, log_database_error
from server.jobs.postgres.connection import Rows, Statement
from server.jobs.postgres.pool import Pool
from server.jobs.postgres.statements import NOW
from server.storage.disk import FRESH_S
from server.storage.full import StorageFull
from server.storage.ledger import NOTHING, Quota, Size, Victim, named_in
from server.storage.names import COMMON
from server.storage.usage import RECOUNT_S, Item, MakeUsage, Usage

LOG = logging.getLogger(__name__)

WAIT_S = 0.5  # for the database: a picture does not wait longer to be stored
TURNS = 2  # statements at once: a slow database's few connections are for jobs
# An item that has been counted for longer, and is not there, is none that is being put: its server has died.
PUT_WITHIN_S = 3600.0
_AT_ONCE = 1000

_BEGIN: Final = "SELECT set_config('synchronous_commit', 'off', true) FROM files_used WHERE owner = '' FOR UPDATE"


def _summed(change: str) -> str:
    """Return the SQL that adds the rows of `change` (owner, bytes, files) to the sums."""
    return f"""
    INSERT INTO files_used AS used (owner, bytes, files)
    SELECT who, sum(bytes), sum(files) FROM (
        SELECT owner AS who, bytes, files FROM {change} UNION ALL SELECT '', bytes, files FROM {change}
    ) AS each GROUP BY who
    ON CONFLICT (owner) DO UPDATE SET bytes = used.bytes + excluded.bytes, files = used.files + excluded.files
    RETURNING owner, bytes, files
"""


# Arguments: name, part, owner, bytes, files; bytes and files of the quota. The row: what all together take, if the item
# was counted now; its size, if it was before. Of two servers that count the same at once, one's statement fails and is
# executed again.
_RESERVE: Final = Statement(
    "files_reserve",
    f"""
WITH begun AS MATERIALIZED (SELECT set_config('synchronous_commit', 'off', true)),
known AS MATERIALIZED (SELECT bytes, files FROM files WHERE name = $1 AND part = $2),
room AS (
    UPDATE files_used AS used SET bytes = used.bytes + $4, files = used.files + $5 FROM begun
    WHERE owner = '' AND NOT EXISTS (SELECT FROM known) AND used.bytes + $4 <= $6 AND used.files + $5 <= $7
    RETURNING used.bytes, used.files
), item AS (
    INSERT INTO files (name, part, owner, bytes, files, created_at) SELECT $1, $2, $3, $4, $5, {NOW} FROM room
), mine AS (
    INSERT INTO files_used AS used (owner, bytes, files) SELECT $3, $4, $5 FROM room
    ON CONFLICT (owner) DO UPDATE SET bytes = used.bytes + excluded.bytes, files = used.files + excluded.files
)
SELECT room.bytes, room.files, known.bytes, known.files
FROM (SELECT 1) AS one LEFT JOIN room ON true LEFT JOIN known ON true
""",
)
# Arguments: names and parts; without a part, all of that name. Rows: the sums that have changed.
_FORGET: Final = Statement(
    "files_forget",
    f"""
WITH begun AS MATERIALIZED ({_BEGIN}), gone AS (
    DELETE FROM files USING begun, unnest($1::text[], $2::text[]) AS given (name, part)
    WHERE files.name = given.name AND given.part IN ('', files.part)
    RETURNING owner, -bytes AS bytes, -files AS files
)
{_summed("gone")}
""",
)
# Arguments: names, parts, owners, bytes, files, times of creation. Rows: as above.
_ADD: Final = Statement(
    "files_add",
    f"""
WITH begun AS MATERIALIZED ({_BEGIN}), added AS (
    INSERT INTO files (name, part, owner, bytes, files, created_at)
    SELECT given.* FROM begun, unnest($1::text[], $2::text[], $3::text[], $4::bigint[], $5::integer[], $6::float8[])
        AS given
    ON CONFLICT DO NOTHING RETURNING owner, bytes, files
)
{_summed("added")}
""",
)
# Argument: owner. Rows: which, owner, bytes, files; of all together, of this owner, of who has most bytes, most files.
_SUMS: Final = Statement(
    "files_used",
    """
SELECT 'all', * FROM files_used WHERE owner = '' UNION ALL SELECT 'own', * FROM files_used WHERE owner = $1
UNION ALL (SELECT 'bytes', * FROM files_used WHERE owner <> '' ORDER BY bytes DESC, owner COLLATE "C" DESC LIMIT 1)
UNION ALL (SELECT 'files', * FROM files_used WHERE owner <> '' ORDER BY files DESC, owner COLLATE "C" DESC LIMIT 1)
""",
)
# Arguments: owner, whether unfinished uploads may go. The row: name and age of what goes first.
_OLDEST: Final = Statement(
    "files_used",
    f"""
SELECT name, {NOW} - created_at FROM files WHERE owner = $1 AND ($2 OR part = '')
ORDER BY part <> '', created_at LIMIT 1
""",
)
# The row: the seconds since the last recount, and the time.
_COUNTED: Final = Statement("files_counted", f"SELECT {NOW} - files_counted_at, {NOW} FROM fleet WHERE id = 1")
_HAS_COUNTED: Final = Statement("files_counted", f"UPDATE fleet SET files_counted_at = {NOW} WHERE id = 1")
# Arguments: time before which they were counted; name and part after which to go on, how many.
_OLD: Final = Statement(
    "files_counted",
    """
SELECT name, part FROM files WHERE (name, part) > ($2, $3) AND created_at < $1 ORDER BY name, part LIMIT $4
""",
)


def shared(pool: Pool) -> MakeUsage:
    """Return what makes the usage of all servers on a database."""
    return lambda quota, account: SharedUsage(pool, quota, account)


class SharedUsage(Usage):
    """See the module. `wait_s`: for the database."""

    def __init__(self, pool: Pool, quota: Quota, account: Callable[[str], bytes], *, wait_s: float = WAIT_S) -> None:
        self._pool = pool
        self._quota = quota
        self._account = account
        self._wait_s = wait_s
        self._turns = asyncio.Semaphore(TURNS)
        self._used = NOTHING
        self._missed = False  # something was stored or deleted while the database was away

    @property
    @override
    def used(self) -> Size:
        return self._used

    @override
    async def check(self, key: str, size: Size) -> None:
        await self._victim(key, size, newest=False)

    @override
    async def reserve(self, key: str, size: Size, *, newest: bool = False) -> list[str]:
        item = (*_split(key), self._owner(key), *size)
        while rows := await self._ask(_RESERVE, *item, *self._quota.size):
            ((*used, known_bytes, known_files),) = rows
            if used[0] is not None:
                self._used = Size(*used)
                return []
            if known_bytes is None:
                victim = await self._victim(key, size, newest=newest)
                if victim is not None:
                    await self.forget([victim])
                    return [victim]
            elif (known_bytes, known_files) == size:
                return []
            else:  # of a server that died while it put it
                await self.forget([key])
        return []

    async def _victim(self, key: str, more: Size, *, newest: bool) -> str | None:
        """Return what must go for an item, None if there is room. Raises `StorageFull`."""
        owner = self._owner(key)
        victim, age_s = await self._oldest(owner, more, unfinished=newest)
        if victim is None:
            return None
        spared = victim.key is None or (victim.own and not newest and 0 <= age_s < FRESH_S)
        if spared or self._quota.short(more) is not None:
            raise StorageFull(by_key=bytes.fromhex(owner) != COMMON)
        return victim.key

    async def _oldest(self, owner: str | None, more: Size, *, unfinished: bool) -> tuple[Victim | None, float]:
        """Return what goes first for `more` of this owner's, or to keep the quota, and its age; None without need."""
        rows = await self._ask(_SUMS, owner)
        if rows is None:
            return None, 0.0
        sums = {which: (who, Size(*size)) for which, who, *size in rows}
        self._used = sums["all"][1]
        short = self._quota.short(self._used.plus(more))
        if short is None:
            return None, 0.0
        heaviest, theirs = sums.get(("bytes", "files")[short], ("", NOTHING))
        own = sums.get("own", ("", NOTHING))[1] if owner is not None else theirs
        payer = heaviest if owner is None else owner
        mine = own[short] + more[short]
        gives_own = self._quota.gives_own(short, bytes.fromhex(payer), mine, theirs[short])
        rows = await self._ask(_OLDEST, payer if gives_own else heaviest, unfinished or not gives_own)
        ((name, age_s),) = rows or [(None, 0.0)]
        return Victim(name, own=gives_own), age_s

    @override
    async def forget(self, keys: Collection[str]) -> None:
        if keys:
            names, parts = zip(*map(_split, keys), strict=True)
            self._see(await self._ask(_FORGET, names, parts))

    @override
    async def excess(self) -> list[str]:
        gone: list[str] = []
        while True:
            victim, age_s = await self._oldest(None, NOTHING, unfinished=False)
            if victim is None or victim.key is None or 0 <= age_s < FRESH_S:
                return gone
            gone.append(victim.key)
            await self.forget(gone[-1:])

    # --- counting anew

    @override
    async def recount_is_due(self) -> bool:
        rows = await self._ask(_COUNTED)
        return rows is not None and (self._missed or rows[0][0] >= RECOUNT_S)

    @override
    async def recount(self, pages: AsyncIterator[Sequence[Item]], writing: Callable[[], Collection[str]]) -> None:
        self._missed = False
        try:
            await self._recount(pages)
        except DatabaseError as error:
            self._missed = True
            log_database_error(LOG, "stored files could not be counted anew, and will be later", error)

    async def _recount(self, pages: AsyncIterator[Sequence[Item]]) -> None:
        ((_, began),) = await self._pool.read(self._pool.fetch(_COUNTED))
        found: set[tuple[str, str]] = set()
        async for page in pages:
            keys = [_split(item.key) for item in page]
            found.update(keys)
            columns: list[Sequence[Any]] = [
                [name for name, _ in keys],
                [part for _, part in keys],
                [self._owner(item.key) for item in page],
                [item.size.bytes for item in page],
                [item.size.files for item in page],
                [item.created for item in page],
            ]
            self._see(await self._pool.read(self._pool.fetch(_ADD, *columns)))
        last = ("", "")
        while rows := await self._pool.read(self._pool.fetch(_OLD, began - PUT_WITHIN_S, *last, _AT_ONCE)):
            old = [(name, part) for name, part in rows]
            last = old[-1]
            if lost := [key for key in old if key not in found]:
                names, parts = zip(*lost, strict=True)
                self._see(await self._pool.read(self._pool.fetch(_FORGET, names, parts)))
        await self._pool.read(self._pool.fetch(_HAS_COUNTED))

    # --- the database

    def _owner(self, key: str) -> str:
        return self._account(named_in(key)).hex()

    def _see(self, sums: Rows | None) -> None:
        """Take over what all together take, if it has changed."""
        for owner, *size in sums or ():
            if not owner:
                self._used = Size(*size)

    async def _ask(self, statement: Statement, *arguments: Any) -> Rows | None:
        """Return the rows; None while the database is away: then nothing is refused, and a recount is due."""
        if self._pool.up:
            try:
                async with asyncio.timeout(self._wait_s):
                    await self._turns.acquire()
                    return await self._pool.read(self._take_turn(statement, *arguments))
            except (DatabaseError, TimeoutError) as error:
                if not self._missed:
                    LOG.warning(
                        "files are stored uncounted until the database answers (%s)", str(error) or "it is slow"
                    )
        self._missed = True
        return None

    async def _take_turn(self, statement: Statement, *arguments: Any) -> Rows:
        try:
            return await self._pool.fetch(statement, *arguments)
        finally:
            self._turns.release()


def _split(key: str) -> tuple[str, str]:
    """Return the name and part in a key; "" for the part of what has none."""
    folder, _, rest = key.partition("/")
    name, _, part = rest.partition("/")
    return (f"{folder}/{name}", part) if rest else (key, "")
