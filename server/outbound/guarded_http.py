"""HTTP requests to outside hosts, with a guard in the network backend that no connection bypasses.

The network backend is the one place where httpcore opens a socket. It resolves the name once, requires each of its
addresses to be allowed, and connects to those very addresses: a name server that answers differently the next time is
not asked. With a proxy it gives that the name, and what does not resolve here is the proxy's to judge. httpcore then
speaks TLS (SNI and certificate for the name) and HTTP/1.1 over it, follows no redirect, unpacks nothing, reads no
environment and keeps no connection.

httpcore and not httpx, whose URLs, redirects, cookies and decoders are unwanted here. Importing it takes
a tenth of a second, so `server.outbound.fetch` does so at first use.
"""

import asyncio
import contextlib
import ipaddress
import logging
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import certifi
import httpcore
from typing_extensions import override

from server.fal.errors import RequestError, overloaded
from server.outbound.addresses import Address, Network, is_inside, is_own_name, may_reach
from server.outbound.proxy import MAX_HEAD_BYTES, Proxy, ProxyUnusable, check_answer
from server.outbound.slots import Slot
from server.outbound.urls import FetchError, Target, failed

LOG = logging.getLogger(__name__)

Dial: TypeAlias = Callable[[str, int, float], Awaitable[httpcore.AsyncNetworkStream]]

# A name may have a dozen addresses; when these don't answer the others won't either.
_ADDRESSES_TRIED = 3
_AGENT = "fourstep"


async def dial(address: str, port: int, timeout: float) -> httpcore.AsyncNetworkStream:  # noqa: ASYNC109 — httpcore's
    """Connect to an IP address. Raises httpcore's `ConnectError` and `ConnectTimeout`."""
    return await httpcore.AnyIOBackend().connect_tcp(address, port, timeout)


class _Guard(httpcore.AsyncNetworkBackend):
    """Connects to allowed addresses only. Raises `FetchError` for a host that may not be reached."""

    def __init__(self, allowed: Sequence[Network], slot: Slot, dialer: Dial, proxy: Proxy | None) -> None:
        self._allowed = allowed
        self._slot = slot
        self._dial = dialer
        self._proxy = proxy

    @override
    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        assert timeout is not None  # noqa: S101 — every request below has one
        try:
            async with asyncio.timeout(timeout):
                addresses = await self._addresses(host, port)
        except (OSError, ValueError) as error:  # of the former `TimeoutError` is one
            if self._proxy is None:
                raise (error if isinstance(error, TimeoutError) else _unresolved(error)) from None
            addresses = []
        if is_own_name(host):  # whose other address the operator need not allow
            addresses = [address for address in addresses if is_inside(address, self._allowed)] or addresses
        if not all(may_reach(address, self._allowed) for address in addresses):
            raise failed("its host is not on the public internet, and not among the operator's --allow-net")
        if self._proxy is None or any(is_inside(address, self._allowed) for address in addresses):
            return await self._reach([str(address) for address in addresses], port, timeout)
        return await self._tunnel(self._proxy, host, port, timeout)

    async def _addresses(self, host: str, port: int) -> list[Address]:
        """Return the addresses of a name, or the address that it is. Raises `OSError` and `ValueError`."""
        texts = [host] if _is_address(host) else await self._slot.addresses(host, port)
        return [ipaddress.ip_address(text) for text in texts]

    async def _tunnel(self, proxy: Proxy, host: str, port: int, timeout: float) -> httpcore.AsyncNetworkStream:  # noqa: ASYNC109
        """Return a stream to `host` through the proxy.

        Raises `FetchError`; `RequestError` 429 when the proxy can't be used, which is not the caller's fault.
        `TimeoutError` is the target's: a proxy that is there answers once it has reached that.
        """
        try:
            async with asyncio.timeout(timeout):
                addresses = await self._addresses(proxy.host, proxy.port)
                stream = await self._reach([str(address) for address in addresses], proxy.port, timeout)
        except (httpcore.ConnectError, httpcore.ConnectTimeout, OSError, ValueError, FetchError) as error:
            raise _no_way_out(error) from None  # of the last two: a name that can't be encoded, or has no address
        try:
            async with asyncio.timeout(timeout), contextlib.AsyncExitStack() as failing:
                failing.push_async_callback(stream.aclose)
                await stream.write(proxy.request(host, port))
                check_answer(await _head(stream))
                failing.pop_all()
        except (httpcore.NetworkError, ProxyUnusable) as error:
            raise _no_way_out(error) from None
        return stream

    async def _reach(self, addresses: Sequence[str], port: int, timeout: float) -> httpcore.AsyncNetworkStream:  # noqa: ASYNC109
        failure: Exception = failed("its host name has no address")
        for address in addresses[:_ADDRESSES_TRIED]:
            try:
                return await self._dial(address, port, timeout)
            except (httpcore.ConnectError, httpcore.ConnectTimeout) as error:
                failure = error
        raise failure


def _unresolved(error: Exception) -> FetchError:
    """Return the error for a name without an address. That its name server failed, instead of denying it, may pass."""
    if isinstance(error, socket.gaierror) and error.errno == socket.EAI_AGAIN:
        return failed("its host name can't be resolved at present", passing=True)
    return failed("its host name can't be resolved")


def _no_way_out(error: Exception) -> RequestError:
    """Log why the proxy can't be used, for the operator; return what its caller is answered."""
    LOG.error("the outbound proxy can't be used: %s", str(error) or type(error).__name__)
    return overloaded("The server's way out can't be used at present; try again")


async def _head(stream: httpcore.AsyncNetworkStream) -> bytes:
    """Return what a proxy answers, up to the empty line."""
    head = b""
    while b"\r\n\r\n" not in head and len(head) < MAX_HEAD_BYTES:
        received = await stream.read(MAX_HEAD_BYTES)
        if not received:
            raise ProxyUnusable("it closed the connection")
        head += received
    return head


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


class Egress:
    """Guarded requests. `allowed`: networks inside that may be reached; `proxy`: what leads to all others.

    `dialer` stands in for the system's in tests.
    """

    def __init__(
        self,
        allowed: Sequence[Network],
        *,
        connect_timeout: float,
        proxy: Proxy | None = None,
        dialer: Dial = dial,
        context: ssl.SSLContext | None = None,
    ) -> None:
        self._allowed = allowed
        self._connect_timeout = connect_timeout
        self._proxy = proxy
        self._dial = dialer
        self._context = context or _trust()

    @contextlib.asynccontextmanager
    async def exchange(
        self,
        slot: Slot,
        method: str,
        target: Target,
        headers: Mapping[str, str] | None = None,
        body: bytes | None = None,
    ) -> AsyncIterator[httpcore.Response]:
        """Send one request; yield the answer, whose body `read` reads.

        Raises `FetchError`; `RequestError` 429 where the server has no way out at present.
        """
        fields = {
            "User-Agent": _AGENT,
            **(headers or {}),
            "Host": target.authority,
            "Accept-Encoding": "identity",
            "Connection": "close",
            **({} if body is None else {"Content-Length": str(len(body))}),
        }
        url = httpcore.URL(scheme=target.scheme, host=target.host, port=target.port, target=target.path)
        timeouts = {"timeout": {"connect": self._connect_timeout}}
        guard = _Guard(self._allowed, slot, self._dial, self._proxy)
        connection = httpcore.AsyncHTTPConnection(url.origin, self._context, network_backend=guard)
        with _told_as_fetch_errors():
            try:
                async with connection.stream(
                    method, url, headers=list(fields.items()), content=body, extensions=timeouts
                ) as response:
                    yield response
            finally:
                await connection.aclose()

    @staticmethod
    def header(response: httpcore.Response, name: str) -> str:
        """Return the first header of this name (lower-case), or ""."""
        wanted = name.encode()
        value = next((value for key, value in response.headers if key.lower() == wanted), b"")
        return value.decode("utf-8", "replace")

    async def read(self, response: httpcore.Response, max_bytes: int, count: Callable[[int], None]) -> bytes:
        """Return the body. Raises `FetchError` as soon as it is known to be larger than `max_bytes`."""
        if self.header(response, "content-encoding").lower() not in {"", "identity"}:
            raise failed("its server sent it compressed, unasked")
        announced = self.header(response, "content-length")
        if announced.isdecimal() and int(announced[:20]) > max_bytes:
            raise _too_large(max_bytes)
        chunks: list[bytes] = []
        size = 0
        async for chunk in response.aiter_stream():
            size += len(chunk)
            if size > max_bytes:
                raise _too_large(max_bytes)
            count(len(chunk))
            chunks.append(chunk)
        return b"".join(chunks)


def _too_large(max_bytes: int) -> FetchError:
    return FetchError("file_too_large", f"The file is larger than {max_bytes} bytes")


def _trust() -> ssl.SSLContext:
    """Return a TLS context with the system's roots, where it has any, and Mozilla's."""
    context = ssl.create_default_context()
    context.load_verify_locations(certifi.where())
    return context


@contextlib.contextmanager
def _told_as_fetch_errors() -> Iterator[None]:
    """Turn network errors into `FetchError`s that reveal no addresses and no message of this machine."""
    try:
        yield
    except (TimeoutError, httpcore.TimeoutException):
        raise failed("its server took too long") from None
    except httpcore.ConnectError as error:
        untrusted = isinstance(error.__cause__, ssl.SSLCertVerificationError)
        raise failed("its certificate is not trusted" if untrusted else "its server can't be reached") from None
    except (httpcore.NetworkError, httpcore.ProtocolError, OSError):
        raise failed("its server broke off, or does not speak HTTP") from None
