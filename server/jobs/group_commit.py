"""One thread that writes, and shares each transaction among all who wait.

A durable commit costs a disk flush however little it writes. So operations that arrive while one flush is under way are
put into the next transaction together, and each caller's future resolves after that COMMIT: alone a write takes one
flush, a hundred at once take one flush too. If a transaction fails, it is rolled back and its operations are run again
one by one, so that each fails or succeeds for reasons of its own.
"""

import asyncio
import queue
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, Generic, NamedTuple, TypeVar

C = TypeVar("C")
T = TypeVar("T")

MAX_GROUP = 256  # operations in one transaction: bounds how long the first of them waits for the last


class Closed(Exception):
    """The writer has been closed; nothing was written."""


class _Entry(NamedTuple, Generic[C]):
    operation: Callable[[C], Any]
    future: asyncio.Future[Any]


class _Settled(NamedTuple):
    future: asyncio.Future[Any]
    value: Any
    error: BaseException | None


class GroupCommit(Generic[C]):
    """`transaction()` opens a transaction on the writer's own connection: commits on leaving, rolls back on an
    exception. Operations must have no effect but on that connection, for they may be run twice."""

    def __init__(self, transaction: Callable[[], AbstractContextManager[C]], name: str) -> None:
        self._transaction = transaction
        self._entries: queue.SimpleQueue[_Entry[C] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._write, name=name, daemon=True)
        self._closed = False
        self._thread.start()

    def submit(self, operation: Callable[[C], T]) -> asyncio.Future[T]:
        """A future with what `operation` returned, resolved after COMMIT. The write happens whether or not anyone still
        waits. Futures of one transaction resolve in the order of submission. Call from the event loop's thread."""
        future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        if self._closed:
            future.set_exception(Closed())
        else:
            self._entries.put(_Entry(operation, future))
        return future

    def close(self) -> None:
        """Writes what was submitted, then ends the thread. Blocks."""
        if not self._closed:
            self._closed = True
            self._entries.put(None)
        self._thread.join()

    def _write(self) -> None:
        while True:
            group, last = self._next_group()
            if group:
                _resolve(self._run(group))
            if last:
                return

    def _next_group(self) -> tuple[list[_Entry[C]], bool]:
        group: list[_Entry[C]] = []
        entry = self._entries.get()
        while entry is not None:
            group.append(entry)
            if len(group) == MAX_GROUP:
                return group, False
            try:
                entry = self._entries.get_nowait()
            except queue.Empty:
                return group, False
        return group, True

    def _run(self, group: list[_Entry[C]]) -> list[_Settled]:
        try:
            with self._transaction() as connection:
                values = [entry.operation(connection) for entry in group]
        except Exception as error:  # noqa: BLE001 - it belongs to whoever waits, of whatever type it is
            if len(group) == 1:
                return [_Settled(group[0].future, None, error)]
            return [settled for entry in group for settled in self._run([entry])]
        return [_Settled(entry.future, value, None) for entry, value in zip(group, values, strict=True)]


def _resolve(settled: list[_Settled]) -> None:
    """Hands results to the event loop in one go; an entry's future knows its loop."""
    loop = settled[0].future.get_loop()
    if not loop.is_closed():
        loop.call_soon_threadsafe(_settle, settled)


def _settle(settled: list[_Settled]) -> None:
    for future, value, error in settled:
        if future.done():  # cancelled by its waiter; what was written stays written
            continue
        if error is None:
            future.set_result(value)
        else:
            future.set_exception(error)
