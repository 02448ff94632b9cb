"""ASGI middleware that refuses callers from other machines and web pages while the server has no keys.

A server without keys trusts everyone who reaches it, so a web page elsewhere must not reach it. Without keys, else 403,
websockets included:

    `Host`                 loopback's or one of fal's names, which prevents DNS rebinding; any with `allow_anonymous`,
                           since then other machines are meant to call
    an `Origin`            loopback's, the server's own, that of its public URL, or allowed by the operator
    no `Origin`            what pages load (`<img>`, scripts, frames, links) and what other programs send:
      `Sec-Fetch-Site`     neither `cross-site` nor `same-site` (another port of this machine): browsers add it wherever
                           a server is on loopback or speaks https
      a browser's GET run  has a `Sec-Fetch-Site`: a browser that adds none can't be told from a page elsewhere

The last two rules don't hold for what makes no picture and reads no job: the page and its files, probes, metrics,
documents, and stored files, whose names are secrets; nor where the operator allows any origin. With keys: any host and
origin.
"""

import ipaddress

from starlette.types import ASGIApp, Receive, Scope, Send

from server.access.auth import Auth
from server.fal.errors import FalError, PlainError
from server.fal.hosts import Host, canonical, header, parse_host
from server.settings import AccessSettings
from server.web.origins import Origins, origin_of
from server.web.responses import error_response

_READS = frozenset({"GET", "HEAD"})
# What any page may load: canonical paths, and prefixes of them.
_OPEN_PATHS = frozenset(
    {"/", "/docs", "/openapi.json", "/trust", "/health", "/ready", "/metrics", "/favicon.ico", "/robots.txt"}
)
_OPEN_PREFIXES = (
    "/static/",
    "/trust/",
    "/cdn/files/",
    "/api/openapi/",
    "/api/v1/",
    "/models/",
    "/.well-known/",
    "/rest/.well-known/",
)
_ELSEWHERE = frozenset({"cross-site", "same-site"})


class OriginGuard:
    """Answers 403 to callers that the rules exclude. Raises `SettingsError` for a malformed allowed origin."""

    def __init__(self, app: ASGIApp, auth: Auth, settings: AccessSettings, public_url: str = "") -> None:
        self._app = app
        self._auth = auth
        self._any_host = settings.allow_anonymous
        self._origins = Origins(settings.allow_origin)
        self._public_origin = origin_of(public_url) if public_url else None

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
        if origin is None and not self._origins.any and _is_loaded_by_a_page(scope, host):
            return PlainError(
                403, "This server has no API keys; web pages reach it by scripts only, of an origin in --allow-origin"
            )
        if origin is not None and not self._may_call(origin, host):
            return PlainError(403, "This server has no API keys; allow this web origin with --allow-origin")
        return None

    def _may_call(self, origin: str, host: Host) -> bool:
        if origin in self._origins or origin.lower() == self._public_origin:
            return True
        page = parse_host(origin.partition("://")[2])
        return page is not None and (page == host or is_loopback(page.name))


def _is_loaded_by_a_page(scope: Scope, host: Host) -> bool:
    """Return whether a request without `Origin` comes, or may come, from a page of another origin."""
    site = header(scope, b"sec-fetch-site")
    is_browser = (header(scope, b"user-agent") or "").startswith("Mozilla/")
    if not (is_browser if site is None else site.lower() in _ELSEWHERE):
        return False
    method = str(scope.get("method", "GET")).upper()
    path = canonical(host.name, method, scope["path"])
    if site is None:
        return method in _READS and path.startswith("/run/")
    return not (method in _READS and (path in _OPEN_PATHS or path.startswith(_OPEN_PREFIXES)))


def is_loopback(name: str) -> bool:
    """Return whether a host name or address (no brackets) means this machine."""
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False
