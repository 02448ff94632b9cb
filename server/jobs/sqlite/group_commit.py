"""Group commit: one writer thread that puts all waiting operations into one transaction.

A durable commit costs a disk flush, however little it writes. Operations that arrive during a flush share the next
transaction, and their futures resolve after its COMMIT: one write takes one flush, and so do a hundred at once. If a
transaction fails, it is rolled back and its operations are run one by one, so that only those at fault fail. One that
can't even be opened fails all of them together: each alone would wait for the same lock, one after the other.
"""

import asyncio
import queue
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, Generic, NamedTuple, TypeVar

from server.memory import end_if_exhausted

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
    """A writer thread. `transaction()` opens a transaction: commits on leaving, rolls back on an exception.

    Operations must have no effect but on that transaction's connection, for they may be run twice.
    """

    def __init__(self, transaction: Callable[[], AbstractContextManager[C]], name: str) -> None:
        self._transaction = transaction
        self._entries: queue.SimpleQueue[_Entry[C] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._write, name=name, daemon=True)
        self._closed = False
        self._thread.start()

    def submit(self, operation: Callable[[C], T]) -> asyncio.Future[T]:
        """Return a future of what `operation` returns, resolved after COMMIT. To be called from the event loop.

        The write happens even if its caller no longer waits. Futures of one transaction resolve in the order of
        submission.
        """
        future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        if self._closed:
            future.set_exception(Closed())
        else:
            self._entries.put(_Entry(operation, future))
        return future

    def close(self) -> None:
        """Write what was submitted, then end the thread. Blocks."""
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
        opened = False
        try:
            with self._transaction() as connection:
                opened = True
                values = [entry.operation(connection) for entry in group]
        except Exception as error:  # noqa: BLE001 - it belongs to whoever waits, of whatever type it is
            end_if_exhausted(error)
            if opened and len(group) > 1:
                return [settled for entry in group for settled in self._run([entry])]
            return [_Settled(entry.future, None, error) for entry in group]
        return [_Settled(entry.future, value, None) for entry, value in zip(group, values, strict=True)]


def _resolve(settled: list[_Settled]) -> None:
    """Pass all results to the event loop in one call; each future knows its loop."""
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
