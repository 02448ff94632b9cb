"""The two forms of a server: alone, with its jobs in the data folder; or one of several, with theirs in PostgreSQL.

What the second one needs is imported only where it is asked for: it is an extra, and one machine does without.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import functools
import importlib.util
import logging
from typing import TYPE_CHECKING, Any, TypeVar

from server.environment import s3_endpoint
from server.jobs.errors import DatabaseError
from server.jobs.index import JobIndex
from server.jobs.sqlite.database import Database, usable
from server.jobs.sqlite.mirror import Mirror
from server.jobs.sqlite.outbox import SQLiteOutbox
from server.settings import Settings, SettingsError
from server.storage import location

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from server.jobs.queue import Follower
    from server.jobs.sqlite.store import SQLiteStore
    from server.jobs.store import JobStore, Outbox
    from server.nodes.cluster import Cluster
    from server.storage.files import MakeStore

LOG = logging.getLogger(__name__)

T = TypeVar("T")

LOOK_S = 5.0  # between two looks for webhooks that a server which has died left behind

_EXTRA = "Hint: pip install 'fourstep[cluster]'"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Form:
    """What the queue and webhooks are made of. `cluster`: None for a server that is alone."""

    store: JobStore
    outbox: Outbox
    index: JobIndex
    follower: Follower
    queue_options: Mapping[str, Any]
    deliverer_options: Mapping[str, Any]
    cluster: Cluster | None = None


def check(settings: Settings) -> None:
    """Raise `SettingsError` for settings of several servers that don't go together."""
    if settings.database and not settings.files:
        raise SettingsError(
            "database: needs files that all servers reach."
            " Hint: --files s3://bucket/prefix, or --files file:///folder on a shared mount"
        )
    if settings.database:
        check_extra()


def alone(settings: Settings, make: Callable[[Database], SQLiteStore]) -> Form:
    """Return the form of a server that is alone. Raises `SettingsError`."""
    _warn_of_lost_jobs(settings)
    with usable(settings.jobs_path):
        store = make(Database(settings.jobs_path))
    index = JobIndex()
    return Form(
        store=store,
        outbox=SQLiteOutbox(store.database, store.clock),
        index=index,
        follower=Mirror(store, index),
        queue_options={},
        deliverer_options={},
    )


def shared(cluster: Cluster) -> Form:
    """Return the form of one of several servers."""
    return Form(
        store=cluster.store,
        outbox=cluster.outbox,
        index=cluster.index,
        follower=cluster.follower,
        queue_options={"times": cluster.times},
        deliverer_options={"longest_sleep_s": LOOK_S, "clock": cluster.now},
        cluster=cluster,
    )


@contextlib.contextmanager
def startable(settings: Settings, form: Form) -> Iterator[None]:
    """Context of the queue's start. Turns a database's errors into `SettingsError`."""
    if form.cluster is None:
        with usable(settings.jobs_path):
            yield
        return
    try:
        yield
    except DatabaseError as error:
        raise SettingsError(f"database: PostgreSQL can't be used ({error}). Hint: {error.hint}") from error


def cluster(settings: Settings, observe: Callable[[str, float], None]) -> Cluster:
    """Return the parts of one of several servers. Raises `SettingsError`."""
    from server.nodes.cluster import Cluster  # noqa: PLC0415
    from server.nodes.payloads import ObjectPayloads  # noqa: PLC0415
    from server.storage.bucket import opening  # noqa: PLC0415

    objects = opening.opened(location.parse(settings.files), endpoint=s3_endpoint())
    return Cluster(settings, ObjectPayloads(objects), observe)


def file_store(settings: Settings, cluster: Cluster | None = None) -> dict[str, MakeStore]:
    """Return what makes the store that `--files` names, as an option of `Files`; none for the data folder.

    Raises `SettingsError`.
    """
    if not settings.files:
        return {}
    where = location.parse(settings.files)
    try:
        from server.storage.bucket import opening  # noqa: PLC0415
    except ModuleNotFoundError as error:
        raise SettingsError(f"files: {where.text} needs {error.name}, which is not installed. {_EXTRA}") from error
    make = functools.partial(opening.bucket, where, settings, key_share=settings.key_share, endpoint=s3_endpoint())
    if cluster is None:
        return {"store": make()}
    from server.nodes import usage  # noqa: PLC0415

    lock = functools.partial(cluster.pool.chore, "files")
    return {"store": make(lock=lock, usage=usage.shared(cluster.pool), clock=cluster.now)}


def check_extra() -> None:
    """Raise `SettingsError` where what a database needs is not installed."""
    for name in ("asyncpg", "obstore"):
        if importlib.util.find_spec(name) is None:
            raise SettingsError(f"database: needs {name}, which is not installed. {_EXTRA}")


def edited(settings: Settings, name: str, act: Callable[[], T]) -> T:
    """Return what `act` returns, which changes keys in the data folder: those of all servers, if there are others."""
    if not settings.database:
        return act()
    check_extra()
    from server.nodes.cluster import edit  # noqa: PLC0415

    return asyncio.run(edit(settings, name, act))


def _warn_of_lost_jobs(settings: Settings) -> None:
    """Say that the job database is empty although there are files: then it is not the first start."""
    path, stored = settings.jobs_path, settings.files_dir / "stored"
    if not (path.exists() and path.stat().st_size) and any(any(folder.iterdir()) for folder in stored.iterdir()):
        LOG.warning(
            "%s is empty although files are stored: queue jobs and their results are gone. Hint: if that was no"
            " intention, stop the server and restore it from a backup",
            path,
        )
