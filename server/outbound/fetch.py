"""Outbound requests: pictures are fetched and webhooks sent here, and nowhere else. Callers choose the URLs.

    urls           parses the URL, strictly, once
    addresses      decides which addresses may be reached
    guarded_http   resolves the name, checks every address, connects to one of them, speaks HTTP
    fetch          redirects, each checked again; limits on time, size and number, shared among tenants

No proxies, cookies, credentials or `.netrc`. Bodies uncompressed: a small download that unpacks to a large one is no
picture.
"""

import asyncio
import contextlib
import logging
import re
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

from server.access.auth import ANONYMOUS
from server.fal.errors import overloaded
from server.outbound import urls
from server.outbound.addresses import Network, parse_networks
from server.outbound.urls import FetchError, failed
from server.settings import FetchSettings, SettingsError

if TYPE_CHECKING:
    from server.outbound.guarded_http import Egress

__all__ = ["Fetch", "FetchError"]

LOG = logging.getLogger(__name__)

# The picture of the endpoint's own example, so that it works where there is no network.
SAMPLES = {
    "https://storage.googleapis.com/falserverless/model_tests/lcm/beach.png": Path(str(resources.files("server")))
    / "static/beach.jpg"
}

_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_NEXT_ENTRY = re.compile(r",(?=\s*https?://)", re.IGNORECASE)


class Fetch:
    """Outbound calls within the settings' limits.

    `samples` returns, once that is known, whether the endpoint's sample picture is answered from ours. `egress`
    replaces `Egress` in tests. `key_share`: part of `max_fetches` that one key may take. Raises `SettingsError`.
    """

    def __init__(
        self,
        settings: FetchSettings,
        *,
        key_share: float,
        samples: Callable[[], Awaitable[bool]] | None = None,
        egress: "Callable[..., Egress] | None" = None,
    ) -> None:
        self._settings = settings
        self._samples = samples
        self._allowed = _networks(settings)
        self._files = _url_files(settings)
        self._make_egress = egress
        self._opening = asyncio.Lock()
        self._slots = Slots(settings, key_share)
        self._egress: Egress | None = None

    async def close(self) -> None:
        """Abort what is in progress."""
        if self._egress is not None:
            await self._egress.close()

    async def get(
        self, url: str, max_bytes: int, count: Callable[[int], None] = lambda _: None, *, tenant: str = ANONYMOUS.id
    ) -> bytes:
        """Return the body behind `url`, for `tenant`. `count` is called with the size of each chunk, and may refuse.

        Raises `FetchError`; `RequestError` 429 when no slot becomes free in time.
        """
        file = self._files.get(url) or await self._sample(url)
        if file:
            LOG.info("%s is answered from %s", url, file)
            try:
                return await asyncio.to_thread(file.read_bytes)
            except OSError:
                LOG.exception("%s can't be read", file)
                raise failed("its stand-in on this server can't be read") from None
        target = urls.parse(url)
        async with self._slots.one(tenant):
            try:
                async with asyncio.timeout(self._settings.fetch_timeout):
                    return await self._follow(target, max_bytes, count)
            except TimeoutError:
                raise failed("its server took too long") from None

    async def _sample(self, url: str) -> Path | None:
        """Return our own picture for the endpoint's sample, if `url` is that and ours is wanted."""
        if url in SAMPLES and self._samples is not None and await self._samples():
            return SAMPLES[url]
        return None

    async def post(self, url: str, body: bytes, headers: Mapping[str, str], timeout: float) -> int:  # noqa: ASYNC109 — part of the contract: the receiver's time
        """Send `body` and return the answer's status. Redirects are not followed. Raises `FetchError`."""
        target = urls.parse(url)
        egress = await self._opened()
        try:
            async with asyncio.timeout(timeout), egress.exchange("POST", target, headers, body) as answer:
                return answer.status
        except TimeoutError:
            raise failed("its server took too long") from None

    async def _follow(self, target: urls.Target, max_bytes: int, count: Callable[[int], None]) -> bytes:
        egress = await self._opened()
        for _ in range(self._settings.fetch_redirects + 1):
            async with egress.exchange("GET", target, {"Accept": "image/*,*/*;q=0.5"}) as answer:
                if answer.status == 200:
                    return await egress.read(answer, max_bytes, count)
                location = egress.header(answer, "location") if answer.status in _REDIRECTS else ""
                if not location:
                    raise failed(f"its server answered {answer.status}")
                target = target.join(location)
        raise failed(f"it is redirected more than {self._settings.fetch_redirects} times")

    async def _opened(self) -> "Egress":
        """Return the client, made at first use in a thread: loading the library and the roots takes a while."""
        async with self._opening:
            if self._egress is None:
                self._egress = await asyncio.to_thread(self._open)
            return self._egress

    def _open(self) -> "Egress":
        from server.outbound.guarded_http import Egress  # noqa: PLC0415 — see there

        make = self._make_egress or Egress
        return make(self._allowed, connect_timeout=self._settings.fetch_connect_timeout)


class Slots:
    """`max_fetches` at once, and of one key no more than its share: URLs that stall leave room for other keys."""

    def __init__(self, settings: FetchSettings, key_share: float) -> None:
        self._patience_s = settings.fetch_timeout
        self._share = max(1, int(settings.max_fetches * key_share))
        self._all = asyncio.Semaphore(settings.max_fetches)
        self._of_keys: weakref.WeakValueDictionary[str, asyncio.Semaphore] = weakref.WeakValueDictionary()

    @contextlib.asynccontextmanager
    async def one(self, tenant: str) -> AsyncIterator[None]:
        """Hold one slot, in the tenant's turn. Raises `RequestError` 429 when that does not come in time."""
        async with contextlib.AsyncExitStack() as held:
            try:
                async with asyncio.timeout(self._patience_s):
                    if tenant != ANONYMOUS.id:
                        await held.enter_async_context(self._of(tenant))
                    await held.enter_async_context(self._all)
            except TimeoutError:
                raise overloaded("Too many pictures are being fetched; try again") from None
            yield

    def _of(self, key: str) -> asyncio.Semaphore:
        return self._of_keys.setdefault(key, asyncio.Semaphore(self._share))


def _networks(settings: FetchSettings) -> tuple[Network, ...]:
    try:
        return parse_networks(settings.allow_net)
    except ValueError as error:
        raise SettingsError(f"allow-net: {error}") from None


def _url_files(settings: FetchSettings) -> dict[str, Path]:
    """Parse the operator's table of URLs that are answered from disk."""
    table: dict[str, Path] = {}
    for entry in filter(None, (part.strip() for part in _NEXT_ENTRY.split(settings.url_files))):
        url, _, file = entry.rpartition("=")
        if not url or not Path(file).is_file():
            raise SettingsError(f"url-files: {entry!r} is not URL=FILE with a file that exists")
        table[url] = Path(file)
    return table
