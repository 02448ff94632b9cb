"""Outbound requests: pictures are fetched and webhooks sent here, and nowhere else. Callers choose the URLs.

    urls           parses the URL, strictly, once
    addresses      decides which addresses may be reached
    slots          how many calls at once, shared among tenants; look-ups of host names
    guarded_http   checks every address of the name, connects to one of them, speaks HTTP
    proxy          the way out where the operator names one
    fetch          redirects, each checked again; limits on time and size

No cookies, credentials or `.netrc`, and of the environment only `SSL_CERT_FILE`. Bodies uncompressed: a small download
that unpacks to a large one is no picture.
"""

import asyncio
import functools
import logging
import re
from collections.abc import Awaitable, Callable, Mapping
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

from server.access.auth import ANONYMOUS
from server.outbound import urls
from server.outbound.addresses import Network, parse_networks
from server.outbound.proxy import Proxy
from server.outbound.slots import Resolve, Slot, Slots, resolve
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

    `samples` returns, once that is known, whether the endpoint's sample picture is answered from ours. `key_share`:
    part of `max_fetches` and `max_posts` that one key may take. `resolver` looks names up; `abandoned` is called when a
    caller leaves before its look-up ends. `egress` replaces `Egress` in tests. Raises `SettingsError`.
    """

    def __init__(
        self,
        settings: FetchSettings,
        *,
        key_share: float,
        samples: Callable[[], Awaitable[bool]] | None = None,
        max_posts: int = 128,
        resolver: Resolve = resolve,
        abandoned: Callable[[], None] = lambda: None,
        egress: "Callable[..., Egress] | None" = None,
    ) -> None:
        self._settings = settings
        self._samples = samples
        self._allowed = _networks(settings)
        self._files = _url_files(settings)
        self._proxy = _proxy(settings)
        self._make_egress = egress
        self._opening = asyncio.Lock()
        slots = functools.partial(
            Slots, key_share=key_share, patience_s=settings.fetch_timeout, resolver=resolver, abandoned=abandoned
        )
        self._slots, self._post_slots = slots(settings.max_fetches), slots(max_posts)
        self._egress: Egress | None = None

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
        async with self._slots.one(tenant) as slot:
            try:
                async with asyncio.timeout(self._settings.fetch_timeout):
                    return await self._follow(slot, target, max_bytes, count)
            except TimeoutError:
                raise failed("its server took too long") from None

    async def _sample(self, url: str) -> Path | None:
        """Return our own picture for the endpoint's sample, if `url` is that and ours is wanted."""
        if url in SAMPLES and self._samples is not None and await self._samples():
            return SAMPLES[url]
        return None

    async def post(
        self,
        url: str,
        body: bytes,
        headers: Mapping[str, str],
        timeout: float,  # noqa: ASYNC109 — part of the contract: the receiver's time
        *,
        tenant: str = ANONYMOUS.id,
    ) -> int:
        """Send `body`, for `tenant`, and return the answer's status. Redirects are not followed.

        Raises `FetchError`; `RequestError` 429 when no slot becomes free in time.
        """
        target = urls.parse(url)
        egress = await self._opened()
        async with self._post_slots.one(tenant) as slot:
            try:
                async with asyncio.timeout(timeout), egress.exchange(slot, "POST", target, headers, body) as answer:
                    return answer.status
            except TimeoutError:
                raise failed("its server took too long") from None

    async def _follow(self, slot: Slot, target: urls.Target, max_bytes: int, count: Callable[[int], None]) -> bytes:
        egress = await self._opened()
        for _ in range(self._settings.fetch_redirects + 1):
            async with egress.exchange(slot, "GET", target, {"Accept": "image/*,*/*;q=0.5"}) as answer:
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
        return make(self._allowed, proxy=self._proxy, connect_timeout=self._settings.fetch_connect_timeout)


def _networks(settings: FetchSettings) -> tuple[Network, ...]:
    try:
        return parse_networks(settings.allow_net)
    except ValueError as error:
        raise SettingsError(f"allow-net: {error}") from None


def _proxy(settings: FetchSettings) -> Proxy | None:
    try:
        return Proxy.parse(settings.outbound_proxy) if settings.outbound_proxy else None
    except ValueError as error:
        raise SettingsError(f"outbound-proxy: {error}") from None


def _url_files(settings: FetchSettings) -> dict[str, Path]:
    """Parse the operator's table of URLs that are answered from disk."""
    table: dict[str, Path] = {}
    for entry in filter(None, (part.strip() for part in _NEXT_ENTRY.split(settings.url_files))):
        url, _, file = entry.rpartition("=")
        if not url or not Path(file).is_file():
            raise SettingsError(f"url-files: {entry!r} is not URL=FILE with a file that exists")
        table[url] = Path(file)
    return table
