"""Places of outbound calls, shared among keys; and look-ups of host names, each of which takes its call's place.

`getaddrinfo` blocks for a minute and more where a name server does not answer, and can't be stopped. So each look-up
has a thread of its own, and its place is taken until the thread has ended, though its caller has left: names that never
resolve use up the share of the key which sends them, not the threads of all. Nor do two calls share the look-up of one
name: it would be a matter of whose place it takes. c-ares could be stopped, but it reads neither nsswitch.conf nor
mDNS, by which machines at home find each other.
"""

import asyncio
import contextlib
import socket
import threading
import weakref
from collections.abc import AsyncIterator, Callable, Sequence
from typing import TypeAlias

from server.access.auth import ANONYMOUS
from server.fal.errors import overloaded

Resolve: TypeAlias = Callable[[str, int], Sequence[str]]


def resolve(host: str, port: int) -> Sequence[str]:
    """Return every address of a host name, the best first. Blocks. Raises `OSError`."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))


class Slot:
    """One call's place. `lookups`: what has not ended; a call behind a proxy may leave one and begin the next."""

    def __init__(self, resolver: Resolve) -> None:
        self._resolve = resolver
        self.lookups: set[asyncio.Future[Sequence[str]]] = set()

    async def addresses(self, host: str, port: int) -> Sequence[str]:
        """Return every address of a host name. Raises `OSError`; `RequestError` 429 when no thread can be had."""
        loop = asyncio.get_running_loop()
        found: asyncio.Future[Sequence[str]] = loop.create_future()

        def run() -> None:
            answer: Sequence[str] | Exception
            try:
                answer = self._resolve(host, port)
            except Exception as error:  # noqa: BLE001 - it is raised where it is waited for
                answer = error
            if not loop.is_closed():
                loop.call_soon_threadsafe(_settle, found, answer)

        try:
            # A daemon, and no executor's: a look-up that does not end does not keep the server from ending.
            threading.Thread(target=run, name="lookup", daemon=True).start()
        except RuntimeError:
            raise overloaded("Too many host names are being looked up; try again") from None
        self.lookups.add(found)
        found.add_done_callback(self.lookups.discard)
        found.add_done_callback(_heard)
        return await asyncio.shield(found)

    def ended(self, then: Callable[[], None]) -> None:
        """Call `then` once no look-up goes on: at once, if none does."""
        if not self.lookups:
            then()
        for found in tuple(self.lookups):
            found.add_done_callback(lambda _: None if self.lookups else then())


def _heard(found: asyncio.Future[Sequence[str]]) -> None:
    """Take note of a failure, of which asyncio would complain where its waiter has left."""
    if not found.cancelled():
        found.exception()


def _settle(found: asyncio.Future[Sequence[str]], answer: Sequence[str] | Exception) -> None:
    if isinstance(answer, Exception):
        found.set_exception(answer)
    else:
        found.set_result(answer)


class Slots:
    """`total` places, and of one key no more than its share: what stalls for one key leaves room for others.

    `patience_s`: how long a call waits for its turn. `abandoned` is called when a call leaves before its look-up ends.
    """

    def __init__(
        self,
        total: int,
        key_share: float,
        *,
        patience_s: float,
        resolver: Resolve = resolve,
        abandoned: Callable[[], None] = lambda: None,
    ) -> None:
        self._patience_s = patience_s
        self._share = max(1, int(total * key_share))
        self._all = asyncio.Semaphore(total)
        self._of_keys: weakref.WeakValueDictionary[str, asyncio.Semaphore] = weakref.WeakValueDictionary()
        self._resolver = resolver
        self._abandoned = abandoned

    @contextlib.asynccontextmanager
    async def one(self, tenant: str) -> AsyncIterator[Slot]:
        """Hold one slot, in the tenant's turn. Raises `RequestError` 429 when that does not come in time."""
        with contextlib.ExitStack() as taken:
            try:
                async with asyncio.timeout(self._patience_s):
                    if tenant != ANONYMOUS.id:
                        await self._take(self._of(tenant), taken)
                    await self._take(self._all, taken)
            except TimeoutError:
                raise overloaded("Too many outbound calls at once; try again") from None
            slot = Slot(self._resolver)
            try:
                yield slot
            finally:
                for _ in slot.lookups:
                    self._abandoned()
                slot.ended(taken.pop_all().close)

    @staticmethod
    async def _take(semaphore: asyncio.Semaphore, taken: contextlib.ExitStack) -> None:
        await semaphore.acquire()
        taken.callback(semaphore.release)

    def _of(self, key: str) -> asyncio.Semaphore:
        return self._of_keys.setdefault(key, asyncio.Semaphore(self._share))
