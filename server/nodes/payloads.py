"""Large inputs and results of jobs, and those that are not to be stored: in the object store, beside the files."""

import contextlib
from collections.abc import Collection, Iterator

from typing_extensions import override

from server.fal.errors import RequestError
from server.jobs.errors import DatabaseError
from server.jobs.postgres.payloads import PayloadStore
from server.storage.bucket.objects import Objects

_HINT = "see whether the store that --files names can be reached, and has room"


class ObjectPayloads(PayloadStore):
    """See `PayloadStore`."""

    def __init__(self, objects: Objects) -> None:
        self._objects = objects

    @override
    async def put(self, name: str, data: bytes) -> None:
        with _database_errors():
            await self._objects.put(name, data)

    @override
    async def get(self, name: str) -> bytes | None:
        with _database_errors():
            try:
                return await self._objects.get(name)
            except FileNotFoundError:
                return None

    @override
    async def delete(self, names: Collection[str]) -> None:
        with _database_errors():
            for name in names:
                await self._objects.delete(name)


@contextlib.contextmanager
def _database_errors() -> Iterator[None]:
    """Turn the error of a store that is away into that of a database: a job is then accepted, or ended, later."""
    try:
        yield
    except RequestError as error:
        raise DatabaseError("the object store can't be reached", hint=_HINT) from error
