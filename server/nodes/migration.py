"""Moves all that one server has to the database and files of several, or back. Nothing of the source is changed.

The order is keys and secrets, files, jobs. Each step may be cut off anywhere, and the whole be made again.
"""

from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from server.fal.errors import RequestError
from server.jobs.moving import postgres, sqlite
from server.jobs.moving.moved import Count, Moved
from server.jobs.postgres.payloads import Payloads
from server.jobs.postgres.pool import Pool
from server.jobs.sqlite.database import Database, usable
from server.nodes.cluster import opened
from server.nodes.documents import NAMES, Documents
from server.nodes.payloads import ObjectPayloads
from server.nodes.row import all_nodes
from server.settings import Settings, SettingsError
from server.storage import location
from server.storage.bucket import moving, opening
from server.storage.bucket.moving import FilesMove
from server.storage.bucket.objects import Objects

# For the files' place, which may be slow or busy: no caller waits.
PATIENCE_S = 15.0

# Told how far a step is: its name, how many items are done, how many there are.
Tell = Callable[[str, int, int], None]


class Compared(NamedTuple):
    """How many of a kind there were to move, and how many are there now."""

    what: str
    source: int
    moved: int


class _Sides(NamedTuple):
    """Both sides of a move, and whom to tell how far it is."""

    settings: Settings
    pool: Pool
    objects: Objects
    payloads: Payloads
    tell: Tell

    @property
    def documents(self) -> Documents:
        return Documents(self.pool, self.settings.data_dir)

    @property
    def files(self) -> FilesMove:
        return FilesMove(self.settings.files_dir, self.objects)


async def move(settings: Settings, endpoint: str, tell: Tell, *, back: bool) -> list[Compared]:
    """Move everything, and compare. To be called with the data folder's lock held. `endpoint`: as `s3_endpoint`.

    Raises `SettingsError` for what the operator has to change first.
    """
    where = location.parse(settings.files)
    objects = opening.opened(where, endpoint=endpoint, patience_s=PATIENCE_S)
    await opening.check(objects, where)
    try:
        async with opened(settings) as pool:
            payloads = Payloads(pool, ObjectPayloads(objects), settings.inline_bytes)
            sides = _Sides(settings, pool, objects, payloads, tell)
            return await (_back(sides) if back else _over(sides))
    except RequestError as error:
        raise SettingsError(
            f"files: {where.text} can't be reached, or is full. Hint: see to it, and run this again: it goes on"
        ) from error


async def _over(sides: _Sides) -> list[Compared]:
    settings = sides.settings
    if not settings.jobs_path.exists():
        raise SettingsError(f"data-dir: {settings.data_dir} has no jobs.sqlite. Hint: name the server's --data-dir")
    await sides.documents.give()
    mine = sum((settings.data_dir / name).exists() for name in NAMES)
    documents = Compared("keys and secrets", mine, min(mine, await sides.documents.count()))

    files = sides.files
    found = files.on_disk()
    await files.put(found, _Steps("files", len(found), sides.tell).done)
    lost = moving.missing(found, await files.in_store())

    database = _opened(settings.jobs_path)
    try:
        there = [0] * len(Count._fields)
        before = await sqlite.counted(database)

        async def store(jobs: list[Moved]) -> None:
            await postgres.add(sides.pool, sides.payloads, jobs)
            count = await postgres.counted(sides.pool, [job.id for job in jobs])
            there[:] = [one + more for one, more in zip(there, count, strict=True)]

        await _each(lambda seq: sqlite.after(database, seq), store, _Steps("jobs", before.jobs, sides.tell))
    finally:
        await database.close()
    return [documents, _files(len(found), lost), *_jobs(before, Count(*there))]


async def _back(sides: _Sides) -> list[Compared]:
    settings = sides.settings
    if running := [node.name for node in await all_nodes(sides.pool) if not node.silent]:
        raise SettingsError(f"database: {', '.join(running)} still use it. Hint: stop every server first")
    if settings.jobs_path.exists():
        await _check_no_jobs(settings.jobs_path)
    await sides.documents.pull(joining=True)
    shared = await sides.documents.count()
    documents = Compared("keys and secrets", shared, sum((settings.data_dir / name).exists() for name in NAMES))

    files = sides.files
    found = await files.in_store()
    wanted = await files.get(found, _Steps("files", len(found), sides.tell).done)
    lost = moving.missing(wanted, files.on_disk())

    # Made anew each time, and given its name at the end: servers may have gone on since a move that was cut off.
    draft = settings.jobs_path.with_name("jobs.sqlite.part")
    for path in (draft, draft.with_name(f"{draft.name}-wal"), draft.with_name(f"{draft.name}-shm")):
        path.unlink(missing_ok=True)
    database = _opened(draft)
    try:
        before = await postgres.counted(sides.pool)
        await _each(
            lambda seq: postgres.after(sides.pool, sides.payloads, seq),
            lambda jobs: sqlite.add(database, jobs),
            _Steps("jobs", before.jobs, sides.tell),
        )
        after = await sqlite.counted(database)
    finally:
        await database.close()
    for left in ("jobs.sqlite-wal", "jobs.sqlite-shm"):
        draft.with_name(left).unlink(missing_ok=True)
    draft.replace(settings.jobs_path)
    return [documents, _files(len(wanted), lost), *_jobs(before, after)]


async def _each(
    after: Callable[[int], Awaitable[list[Moved]]], store: Callable[[list[Moved]], Awaitable[None]], steps: "_Steps"
) -> None:
    """Store all jobs that `after` gives, in their order."""
    seq = 0
    while jobs := await after(seq):
        await store(jobs)
        seq = jobs[-1].seq
        steps.done(len(jobs))


async def _check_no_jobs(path: Path) -> None:
    """Raise `SettingsError` for a data folder with jobs of its own."""
    database = _opened(path)
    try:
        jobs = (await sqlite.counted(database)).jobs
    finally:
        await database.close()
    if jobs:
        raise SettingsError(
            f"data-dir: {path} has {jobs} jobs of its own. Hint: move that file away, or name an empty --data-dir"
        )


def _opened(path: Path) -> Database:
    with usable(path):
        return Database(path)


def _files(wanted: int, lost: Sequence[str]) -> Compared:
    return Compared("files and parts", wanted, wanted - len(lost))


def _jobs(before: Count, after: Count) -> list[Compared]:
    names = ("jobs", "of these not ended", "log lines", "webhooks to deliver")
    return [Compared(*row) for row in zip(names, before, after, strict=True)]


class _Steps:
    """Tells how far one step is."""

    def __init__(self, what: str, total: int, tell: Tell) -> None:
        self._what = what
        self._total = total
        self._tell = tell
        self._count = 0
        tell(what, 0, total)

    def done(self, count: int = 1) -> None:
        """Note that `count` more items are done."""
        self._count += count
        self._tell(self._what, self._count, self._total)
