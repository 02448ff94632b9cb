"""The web origins that the operator allows. Pure.

    https://app.example      this one; 443 may be written, although browsers leave a scheme's own port out
    https://*.app.example    every host below that name
    chrome-extension://*     every host, of any scheme
    null                     pages without an origin: files, sandboxed frames
    *                        every page

What no browser would send as an `Origin` can match nothing, and is refused when the server starts.
"""

import ipaddress
import re

from server.settings import SettingsError

_ENTRY = re.compile(
    r"(?P<scheme>[a-z][a-z0-9+.-]*)://"
    r"(?P<host>\*|\[[0-9a-f:.]+\]|(?:\*\.)?(?:(?![/?#@:*\[\]])[!-~])*)"
    r"(?::(?P<port>[0-9]{1,5}))?/?"
)
# Hosts of other schemes are opaque: apps choose them freely, and may leave them empty.
_WEB_HOST = re.compile(r"(?:\*\.)?[a-z0-9_-]+(?:\.[a-z0-9_-]+)*\.?")
_NUMBER = re.compile(r"[0-9]+|0x[0-9a-f]*")
_OWN_PORTS = {"http": 80, "https": 443}
# Pages of these have the origin of the page that opened them, or "null".
_NO_PAGES = frozenset({"ws", "wss", "data", "blob", "about", "javascript"})
_ANY_HOST = r"(?:[^/:\[\]]+|\[[^\]]+\])"


class Origins:
    """A comma-separated list of origins and patterns. Raises `SettingsError` for one that can't match.

    `any`: every page is allowed.
    """

    def __init__(self, text: str) -> None:
        entries = [part.strip().lower() for part in text.split(",") if part.strip()]
        self.any = "*" in entries
        self._patterns = [_pattern(entry) for entry in entries if entry != "*"]

    def __contains__(self, origin: str) -> bool:
        """Return whether a page of this origin, as a browser writes it, is allowed."""
        return self.any or any(pattern.fullmatch(origin.lower()) for pattern in self._patterns)


def origin_of(url: str) -> str:
    """Return the origin of an http(s) URL as a browser writes it: in lower case, without the scheme's own port."""
    scheme, _, rest = url.lower().partition("://")
    return f"{scheme}://{rest.partition('/')[0].removesuffix(f':{_OWN_PORTS[scheme]}')}"


def _pattern(entry: str) -> re.Pattern[str]:
    if entry == "null":
        return re.compile(entry)
    parts = _ENTRY.fullmatch(entry)
    if parts is None or parts["scheme"] in _NO_PAGES or int(parts["port"] or 0) > 65535:
        raise _no_origin(entry)
    host = parts["host"]
    if host == "*":
        host = _ANY_HOST
    elif host.startswith("["):
        try:
            host = re.escape(f"[{ipaddress.IPv6Address(host[1:-1])}]")
        except ValueError:
            raise _no_origin(entry) from None
    elif parts["scheme"] in _OWN_PORTS and not _is_web_host(host):
        raise _no_origin(entry)
    else:
        host = re.escape(host).replace(r"\*", _ANY_HOST)
    has_port = parts["port"] is not None and int(parts["port"]) != _OWN_PORTS.get(parts["scheme"])
    port = f":{int(parts['port'])}" if has_port else ""
    return re.compile(f"{re.escape(parts['scheme'])}://{host}{port}")


def _is_web_host(host: str) -> bool:
    """Return whether a browser writes a name, or an IPv4 address, in this form: four plain decimal numbers."""
    if not _NUMBER.fullmatch(host.removesuffix(".").rpartition(".")[2]):
        return _WEB_HOST.fullmatch(host) is not None
    try:
        ipaddress.IPv4Address(host)
    except ValueError:
        return False
    return True


def _no_origin(entry: str) -> SettingsError:
    return SettingsError(
        f"allow-origin: {entry!r} is no web origin, and would match none. Hint: those are like https://app.example,"
        " https://*.app.example:8443 or chrome-extension://*"
    )
