"""Parser of the URLs that callers give: once and strictly, so that what is checked is what is connected to. Pure.

Guards are bypassed where two parsers disagree about a URL, so there is only this one: the parts of a `Target` go to the
connection as they are. What browsers and libraries read differently (backslashes, credentials, percent signs
in the host, numbers that are no dotted quad) is refused rather than understood.
"""

import dataclasses
import ipaddress
import re
from urllib.parse import quote, urljoin

_MAX_CHARS = 8192
_PORTS = {"http": 80, "https": 443}
# Below 1024 lie the services that would take an HTTP request for their own protocol (SMTP and the like).
_LOWEST_OTHER_PORT = 1024

_URL = re.compile(r"(https?)://([^/?#]*)([^#]*)(?:#.*)?", re.IGNORECASE)
_AUTHORITY = re.compile(r"(?:\[([0-9a-f:.]+)\]|([^\[\]:@%\\]+))(?::([0-9]{1,5}))?", re.IGNORECASE)
_NAME = re.compile(r"(?!-)[a-z0-9_-]{1,63}(?<!-)(\.(?!-)[a-z0-9_-]{1,63}(?<!-))*")
_NUMBER = re.compile(r"[0-9]+|0x[0-9a-f]*")
_CONTROL = re.compile("[\x00-\x1f\x7f\ud800-\udfff]")
_NOT_IN_TARGET = re.compile(r"[^\x21-\x7e]+")


class FetchError(Exception):
    """The URL can't be had. `kind` is one of fal's model error types; `message` tells the caller what is wrong and
    nothing of the internal network. `passing`: the same URL may well be had in a moment."""

    def __init__(self, kind: str, message: str, *, passing: bool = False) -> None:
        super().__init__(message)
        self.kind = kind
        self.message = message
        self.passing = passing


def failed(reason: str, *, passing: bool = False) -> FetchError:
    """Return the error for a file that can't be downloaded."""
    return FetchError("file_download_error", f"Could not download the file: {reason}", passing=passing)


@dataclasses.dataclass(frozen=True, slots=True)
class Target:
    """Destination of a request: `host` is a lower-case ASCII name or an unbracketed address, `path` has the query."""

    scheme: str
    host: str
    port: int
    path: str

    @property
    def authority(self) -> str:
        """The Host header."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == _PORTS[self.scheme] else f"{host}:{self.port}"

    def join(self, location: str) -> "Target":
        """Return the target of a redirect from here. Raises `FetchError`."""
        if _CONTROL.search(location):
            raise failed("it is redirected to something that is no URL")
        try:
            return parse(urljoin(f"{self.scheme}://{self.authority}{self.path}", location))
        except ValueError:
            raise failed("it is redirected to something that is no URL") from None


def is_http(url: str) -> bool:
    """Return whether `url` is an http or https URL, which `parse` may still refuse."""
    return _split(url) is not None


def parse(url: str) -> Target:
    """Return the target of an http or https URL. Raises `FetchError`."""
    match = _split(url)
    if match is None:
        raise failed("only http, https and data URLs are accepted")
    scheme, authority = match[1].lower(), match[2]
    if "@" in authority:
        raise failed("URLs with credentials are not accepted")
    parts = _AUTHORITY.fullmatch(authority)
    if parts is None:
        raise failed("it is no valid URL")
    port = int(parts[3]) if parts[3] else _PORTS[scheme]
    if port > 65535 or (port < _LOWEST_OTHER_PORT and port not in _PORTS.values()):
        raise failed(f"port {port} is not accepted")
    host = _address(parts[1]) if parts[1] else _name(parts[2])
    path = _NOT_IN_TARGET.sub(lambda found: quote(found[0]), match[3])
    return Target(scheme, host, port, path if path.startswith("/") else f"/{path}")


def _split(url: str) -> re.Match[str] | None:
    url = url.strip()
    return _URL.fullmatch(url) if len(url) <= _MAX_CHARS and not _CONTROL.search(url) else None


def _address(text: str) -> str:
    try:
        return str(ipaddress.IPv6Address(text))
    except ValueError:
        raise failed("it is no valid URL") from None


def _name(text: str) -> str:
    """Return a host name as it is resolved, or an IPv4 address. Raises `FetchError`."""
    name = (text if text.isascii() else _to_ascii(text)).lower().removesuffix(".")
    if len(name) > 253 or not _NAME.fullmatch(name):
        raise failed("it is no valid URL")
    if _NUMBER.fullmatch(name.rpartition(".")[2]):
        try:
            return str(ipaddress.IPv4Address(name))  # strict: no octal, no hexadecimal, no missing parts
        except ValueError:
            raise failed("it is no valid URL") from None
    return name


def _to_ascii(text: str) -> str:
    import idna  # noqa: PLC0415 — large tables, seldom needed

    try:
        return idna.encode(text, uts46=True).decode("ascii")
    except idna.IDNAError:
        raise failed("it is no valid URL") from None
