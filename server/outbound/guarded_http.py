"""HTTP requests to outside hosts, with a guard in the network backend that no connection bypasses.

The network backend is the one place where httpcore opens a socket. It resolves the name once, requires each of its
addresses to be allowed, and connects to those very addresses: a name server that answers differently the next time is
not asked. httpcore then speaks TLS (SNI and certificate for the name) and HTTP/1.1 over it, follows no
redirect, unpacks nothing, reads no environment and keeps no connection.

httpcore and not httpx, whose URLs, redirects, cookies and decoders are unwanted here. Importing it takes
a tenth of a second, so `server.outbound.fetch` does so at first use.
"""

import asyncio
import contextlib
import ipaddress
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import certifi
import httpcore
from typing_extensions import override

from server.outbound.addresses import Network, may_reach
from server.outbound.urls import FetchError, Target, failed

Resolve: TypeAlias = Callable[[str, int], Awaitable[Sequence[str]]]
Dial: TypeAlias = Callable[[str, int, float], Awaitable[httpcore.AsyncNetworkStream]]

# A name may have a dozen addresses; when these don't answer the others won't either.
_ADDRESSES_TRIED = 3
_AGENT = "fourstep"


async def resolve(host: str, port: int) -> Sequence[str]:
    """Return every address of a host name, the best first. Raises `OSError`."""
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))


async def dial(address: str, port: int, timeout: float) -> httpcore.AsyncNetworkStream:  # noqa: ASYNC109 — httpcore's
    """Connect to an IP address. Raises httpcore's `ConnectError` and `ConnectTimeout`."""
    return await httpcore.AnyIOBackend().connect_tcp(address, port, timeout)


class _Guard(httpcore.AsyncNetworkBackend):
    """Connects to allowed addresses only. Raises `FetchError` for a host that may not be reached."""

    def __init__(self, allowed: Sequence[Network], resolver: Resolve, dialer: Dial) -> None:
        self._allowed = allowed
        self._resolve = resolver
        self._dial = dialer

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
        failure: Exception = failed("its host name has no address")
        async with asyncio.timeout(timeout):
            addresses = await self._addresses(host, port)
        for address in addresses[:_ADDRESSES_TRIED]:
            try:
                return await self._dial(address, port, timeout)
            except (httpcore.ConnectError, httpcore.ConnectTimeout) as error:
                failure = error
        raise failure

    async def _addresses(self, host: str, port: int) -> list[str]:
        """Return the addresses of a name, or the address that it is. Raises `FetchError` unless all are allowed."""
        try:
            texts = [host] if _is_address(host) else await self._resolve(host, port)
            addresses = [ipaddress.ip_address(text) for text in texts]
        except (OSError, ValueError):
            raise failed("its host name can't be resolved") from None
        if not all(may_reach(address, self._allowed) for address in addresses):
            raise failed("its host is not on the public internet, and not among the operator's --allow-net")
        return [str(address) for address in addresses]


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


class Egress:
    """Guarded requests. `allowed`: networks inside that may be reached; `resolver` and `dialer` stand in for the
    system's in tests."""

    def __init__(
        self,
        allowed: Sequence[Network],
        *,
        connect_timeout: float,
        resolver: Resolve = resolve,
        dialer: Dial = dial,
        context: ssl.SSLContext | None = None,
    ) -> None:
        self._connect_timeout = connect_timeout
        self._pool = httpcore.AsyncConnectionPool(
            ssl_context=context or _trust(),
            max_connections=None,
            max_keepalive_connections=0,
            network_backend=_Guard(allowed, resolver, dialer),
        )

    async def close(self) -> None:
        """Abort what is in progress."""
        await self._pool.aclose()

    @contextlib.asynccontextmanager
    async def exchange(
        self, method: str, target: Target, headers: Mapping[str, str] | None = None, body: bytes | None = None
    ) -> AsyncIterator[httpcore.Response]:
        """Send one request; yield the answer, whose body `read` reads. Raises `FetchError`."""
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
        with _told_as_fetch_errors():
            async with self._pool.stream(
                method, url, headers=list(fields.items()), content=body, extensions=timeouts
            ) as response:
                yield response

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
    except httpcore.ConnectError:
        raise failed("its server can't be reached") from None
    except (httpcore.NetworkError, httpcore.ProtocolError, OSError):
        raise failed("its server broke off, or does not speak HTTP") from None
