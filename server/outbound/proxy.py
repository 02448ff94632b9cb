"""The operator's outbound proxy, and HTTP CONNECT (RFC 9110, 9.3.6), for http and https alike. Pure."""

import base64
import dataclasses
import re
from urllib.parse import unquote, urlsplit

from server.outbound.urls import failed

MAX_HEAD_BYTES = 16 * 1024
_STATUS = re.compile(rb"HTTP/1\.[01] ([0-9]{3})")
# The target can't be reached from the proxy either, or may not be: the URL is at fault, not the proxy.
_UNREACHABLE = frozenset({404, 500, 502, 503, 504})
_REFUSED = frozenset({400, 403, 451})


class ProxyUnusable(Exception):
    """The proxy does not do its work. The message is for the operator."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Proxy:
    """An HTTP proxy. `credentials`: of `Proxy-Authorization`, "" for none; they are in no message."""

    host: str
    port: int
    credentials: str = dataclasses.field(default="", repr=False)

    @staticmethod
    def parse(url: str) -> "Proxy":
        """Return the proxy of `http://user:password@host:port`. Raises `ValueError`, whose message lacks the URL."""
        try:
            parts = urlsplit(url)
            port = parts.port or 80
        except ValueError:
            parts, port = urlsplit(""), 0
        if parts.scheme != "http" or not parts.hostname or parts.path not in {"", "/"} or parts.query:
            raise ValueError("a proxy looks like http://host:port or http://user:password@host:port")
        credentials = ""
        if parts.username is not None:
            pair = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
            credentials = base64.b64encode(pair.encode()).decode("ascii")
        return Proxy(host=parts.hostname, port=port, credentials=credentials)

    def request(self, host: str, port: int) -> bytes:
        """Return the request for a tunnel to `host`, a name or an unbracketed address."""
        authority = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        lines = [f"CONNECT {authority} HTTP/1.1", f"Host: {authority}", "User-Agent: fourstep"]
        if self.credentials:
            lines.append(f"Proxy-Authorization: Basic {self.credentials}")
        return "\r\n".join([*lines, "", ""]).encode("ascii")


def check_answer(head: bytes) -> None:
    """Return if the proxy's answer, received up to its empty line or beyond, opens the tunnel.

    Raises `FetchError` when the proxy refuses the target or can't reach it, `ProxyUnusable` otherwise.
    """
    found = _STATUS.match(head)
    if found is None:
        raise ProxyUnusable("it does not speak HTTP")
    status = int(found[1])
    if status in _UNREACHABLE:
        raise failed("its server can't be reached")
    if status in _REFUSED:
        raise failed("the operator's proxy refuses it")
    if not 200 <= status < 300:
        raise ProxyUnusable(f"it answered {status}")
    if not head.endswith(b"\r\n\r\n"):  # what is behind the tunnel speaks second
        raise ProxyUnusable("it sent more than its answer")
