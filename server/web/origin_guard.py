"""ASGI middleware that refuses callers from other machines and web pages while the server has no keys.

A server without keys trusts everyone who reaches it, so a web page must not reach it.

Without keys: `Host` is loopback's or one of fal's names (which prevents DNS rebinding), and `Origin` is absent,
loopback's, the server's own, or allowed by the operator (a page elsewhere can't use someone's localhost). Else 403,
websockets included. `allow_anonymous` allows any `Host`, since then other machines are meant to call. With keys: any
host and origin.
"""

import ipaddress

from starlette.types import ASGIApp, Receive, Scope, Send

from server.access.auth import Auth
from server.fal.errors import FalError, PlainError
from server.fal.hosts import Host, header, parse_host
from server.settings import AccessSettings, SettingsError
from server.web.responses import error_response


class OriginGuard:
    """Answers 403 to callers that the rules exclude. Raises `SettingsError` for a malformed allowed origin."""

    def __init__(self, app: ASGIApp, auth: Auth, settings: AccessSettings) -> None:
        self._app = app
        self._auth = auth
        self._any_host = settings.allow_anonymous
        self._origins = frozenset(part.strip().rstrip("/") for part in settings.allow_origin.split(",") if part.strip())
        for origin in self._origins - {"*", "null"}:
            if "://" not in origin:
                raise SettingsError(f"allow-origin: {origin!r} is no web origin; one looks like https://{origin}")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request or websocket."""
        if scope["type"] in {"http", "websocket"} and (refusal := self._refusal(scope)):
            await error_response(refusal)(scope, receive, send)
            return
        await self._app(scope, receive, send)

    def _refusal(self, scope: Scope) -> FalError | None:
        name = header(scope, b"host")
        host = parse_host(name) if name else None
        if host is None:
            return PlainError(400, "Missing or malformed Host header")
        if not self._auth.open:
            return None
        if not (self._any_host or host.is_fal or is_loopback(host.name)):
            return PlainError(403, "This server has no API keys and serves this machine only; Host must be localhost")
        origin = header(scope, b"origin")
        if origin is not None and not self._may_call(origin, host):
            return PlainError(403, "This server has no API keys; allow this web origin with --allow-origin")
        return None

    def _may_call(self, origin: str, host: Host) -> bool:
        if origin in self._origins or "*" in self._origins:
            return True
        page = parse_host(origin.partition("://")[2])
        return page is not None and (page == host or is_loopback(page.name))


def is_loopback(name: str) -> bool:
    """Return whether a host name or address (no brackets) means this machine."""
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False
