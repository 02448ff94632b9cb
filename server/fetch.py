"""The only outbound door: pictures are fetched through it and webhooks sent. Callers choose the URLs, so it is narrow.

http and https only; the name is resolved once, every address that it has must be public (`server.addresses`) or allowed
by the operator, and one of those very addresses is dialled, with the right Host and SNI, so that no second answer of a
hostile name server counts. Each redirect goes through the same door. Time, size and hops are bounded. No proxies,
cookies, credentials or `.netrc`; bodies uncompressed, for a small download that unpacks to a large one is no picture.
"""

import asyncio
import contextlib
import ipaddress
import logging
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TypeAlias

import certifi
import httpx

from server.addresses import Address, Network, may_reach, parse_networks
from server.settings import Settings, SettingsError

LOG = logging.getLogger(__name__)

Resolve: TypeAlias = Callable[[str, int], Awaitable[Sequence[str]]]

# The picture of the endpoint's own example, so that it works where there is no network.
SAMPLES = {
    "https://storage.googleapis.com/falserverless/model_tests/lcm/beach.png": Path(__file__).parent / "static/beach.jpg"
}

_PORTS = {"http": 80, "https": 443}
_AGENT = "fourstep"
_REDIRECTS = frozenset({301, 302, 303, 307, 308})


class FetchError(Exception):
    """The URL came to nothing. `kind` is a model error type of fal's; `message` says nothing of what lies inside."""

    def __init__(self, message: str, kind: str = "file_download_error") -> None:
        super().__init__(message)
        self.kind = kind
        self.message = message


async def resolve(host: str, port: int) -> list[str]:
    """Every address of a host name. Raises `OSError`."""
    loop = asyncio.get_running_loop()
    found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))


class Fetch:
    """Outbound calls within the settings' limits.

    `samples` says whether the endpoint's sample picture is answered from ours. `resolver` stands in for the system's in
    tests.
    """

    def __init__(
        self, settings: Settings, *, samples: Callable[[], bool] = lambda: False, resolver: Resolve = resolve
    ) -> None:
        self._settings = settings
        self._samples = samples
        self._resolve = resolver
        self._allowed = _networks(settings)
        self._files = _url_files(settings)
        self._client: httpx.AsyncClient | None = None

    async def close(self) -> None:
        """Close what is open."""
        if self._client is not None:
            await self._client.aclose()

    async def get(self, url: str, max_bytes: int) -> bytes:
        """The body behind `url`. Raises `FetchError`."""
        file = self._files.get(url) or (SAMPLES.get(url) if self._samples() else None)
        if file:
            LOG.info("%s is answered from %s", url, file)
            return await asyncio.to_thread(file.read_bytes)
        with _told_as_fetch_errors():
            async with asyncio.timeout(self._settings.fetch_timeout):
                return await self._follow(url, max_bytes)

    async def post(self, url: str, body: bytes, headers: Mapping[str, str], timeout: float) -> int:  # noqa: ASYNC109 — part of the contract: the receiver's time
        """Send `body`; the answer's status. Redirects are not followed. Raises `FetchError`."""
        with _told_as_fetch_errors():
            async with asyncio.timeout(timeout), self._send("POST", _parse(url), headers, body) as answer:
                return answer.status_code

    async def _follow(self, url: str, max_bytes: int) -> bytes:
        target = _parse(url)
        for _ in range(self._settings.fetch_redirects + 1):
            async with self._send("GET", target) as answer:
                if answer.status_code not in _REDIRECTS:
                    return await _read(answer, max_bytes)
                target = _parse(str(target.join(answer.headers.get("location", ""))))
        raise FetchError(f"more than {self._settings.fetch_redirects} redirects")

    @contextlib.asynccontextmanager
    async def _send(
        self, method: str, url: httpx.URL, headers: Mapping[str, str] | None = None, body: bytes | None = None
    ) -> AsyncIterator[httpx.Response]:
        """The answer to one request, its body not yet read."""
        port = url.port or _PORTS[url.scheme]
        name = url.raw_host.decode("ascii")
        address = await self._pick(name, port)
        request = httpx.Request(
            method,
            url.copy_with(host=str(address)),
            headers={"User-Agent": _AGENT, **(headers or {}), "Host": _netloc(url), "Accept-Encoding": "identity"},
            content=body,
            extensions={
                "sni_hostname": name,
                "timeout": httpx.Timeout(None, connect=self._settings.fetch_connect_timeout).as_dict(),
            },
        )
        answer = await self._session().send(request, stream=True)
        try:
            yield answer
        finally:
            await answer.aclose()

    async def _pick(self, host: str, port: int) -> Address:
        """An address of `host` to dial, all of them being allowed."""
        try:
            addresses = [ipaddress.ip_address(text) for text in await self._resolve(host, port)]
        except (OSError, ValueError, UnicodeError):
            raise FetchError("its host name can't be resolved") from None
        if not addresses:
            raise FetchError("its host name can't be resolved")
        if not all(may_reach(address, self._allowed) for address in addresses):
            raise FetchError("its address is not a public one")
        return min(addresses, key=lambda address: address.version)  # IPv4 first: a box without IPv6 is more common

    def _session(self) -> httpx.AsyncClient:
        """Made at first use. Connections are not kept: one to this address was verified for another name."""
        if self._client is None:
            self._client = httpx.AsyncClient(
                verify=ssl.create_default_context(cafile=certifi.where()),
                trust_env=False,
                limits=httpx.Limits(max_connections=None, max_keepalive_connections=0),
            )
        return self._client


def _parse(url: str) -> httpx.URL:
    try:
        parsed = httpx.URL(url)
        port = parsed.port
    except (httpx.InvalidURL, ValueError):
        raise FetchError("it is no valid URL") from None
    if parsed.scheme not in _PORTS or not parsed.raw_host:
        raise FetchError("only http, https and data URLs are fetched")
    if parsed.userinfo:
        raise FetchError("URLs with credentials are not fetched")
    if port == 0 or "\\" in url:
        raise FetchError("it is no valid URL")
    return parsed.copy_with(fragment=None)


def _netloc(url: httpx.URL) -> str:
    """The Host header that names what the caller named."""
    return url.netloc.decode("ascii")


async def _read(answer: httpx.Response, max_bytes: int) -> bytes:
    if answer.status_code != 200:
        raise FetchError(f"its server answered {answer.status_code}")
    if answer.headers.get("content-encoding", "identity").lower() != "identity":
        raise FetchError("its server sent it compressed, unasked")
    body = bytearray()
    async for chunk in answer.aiter_raw():
        body += chunk
        if len(body) > max_bytes:
            raise FetchError(f"it is larger than {max_bytes} bytes", "file_too_large")
    return bytes(body)


@contextlib.contextmanager
def _told_as_fetch_errors() -> Iterator[None]:
    """What goes wrong on the network is the URL's fault, and is told without addresses."""
    try:
        yield
    except TimeoutError:
        raise FetchError("its server took too long") from None
    except httpx.ConnectError:
        raise FetchError("its server can't be reached") from None
    except httpx.TimeoutException:
        raise FetchError("its server took too long") from None
    except httpx.HTTPError as error:
        raise FetchError(f"its server broke the connection ({type(error).__name__})") from None


def _networks(settings: Settings) -> tuple[Network, ...]:
    try:
        return parse_networks(settings.allow_net)
    except ValueError as error:
        raise SettingsError(f"allow-net: {error}") from None


def _url_files(settings: Settings) -> dict[str, Path]:
    """The operator's table of URLs that are answered from disk."""
    table: dict[str, Path] = {}
    for entry in filter(None, settings.url_files.split(",")):
        url, _, file = entry.strip().rpartition("=")
        if not url or not Path(file).is_file():
            raise SettingsError(f"url-files: {entry!r} is not URL=FILE with a file that exists")
        table[url] = Path(file)
    return table
