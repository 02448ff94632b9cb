"""fal's server-proxy protocol, for the clients' `proxyUrl`: any method on /api/fal/proxy with `x-fal-target-url`.

The same application answers the target; no other server is contacted. Scheme and port of the target are ignored.
400: the header is missing; 412: the target is none of fal's hosts, or no path of its APIs. The caller's own credentials
count, so the proxy grants no access that the caller lacks. Links in the answers have the host under which the proxy was
reached, since the client may be unable to reach fal's names. Every other route ignores the header (stock proxies
forward it).
"""

from urllib.parse import SplitResult, unquote, urlsplit

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route
from starlette.types import ASGIApp, Receive, Scope, Send
from typing_extensions import override

from server.fal.errors import PlainError
from server.fal.hosts import SPACES, canonical, parse_host
from server.web.canonical_path import rewrite

_TARGET = b"x-fal-target-url"
_PLATFORM = "/api/v1/"  # the rest of /api is ours, this route too
_METHODS = ["GET", "POST", "PUT", "DELETE", "PATCH"]

# What routing has stored in the scope about the proxy's own route.
_ROUTING_KEYS = ("endpoint", "path_params", "route", "router")


async def proxy(request: Request) -> Response:
    """Answer with what the application answers to the target."""
    written = request.headers.get(_TARGET.decode())
    if not written:
        raise PlainError(400, "Missing the x-fal-target-url header")
    target = _split(written)
    host = parse_host(target.netloc)
    if host is None or not host.is_fal:
        raise PlainError(412, "Invalid x-fal-target-url: not a host of fal's")
    path = canonical(host.name, request.method, unquote(target.path))
    if path[1:].partition("/")[0] not in SPACES and not path.startswith(_PLATFORM):
        raise PlainError(412, "Invalid x-fal-target-url: not an API path")
    inner = {name: value for name, value in request.scope.items() if name not in _ROUTING_KEYS}
    rewrite(inner, path)
    inner["query_string"] = target.query.encode()
    inner["headers"] = [(name, value) for name, value in inner["headers"] if name != _TARGET]
    return _Forwarded(request.app, inner)


def _split(url: str) -> SplitResult:
    try:
        return urlsplit(url)
    except ValueError:
        raise PlainError(400, "Malformed x-fal-target-url") from None


class _Forwarded(Response):
    """Response which the application gives to another scope."""

    def __init__(self, app: ASGIApp, scope: Scope) -> None:
        super().__init__()
        self._app = app
        self._scope = scope

    @override
    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._app(self._scope, receive, send)


ROUTES: list[BaseRoute] = [Route("/api/fal/proxy", proxy, methods=_METHODS)]
