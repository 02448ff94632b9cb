"""ASGI middleware that maps fal's host names and paths to the paths of the routes, by `server.fal.hosts`."""

from starlette.types import ASGIApp, Receive, Scope, Send

from server.fal.hosts import External, Host, canonical, request_host


class CanonicalPath:
    """Replaces every path by its canonical one and stores in the scope how, and at which path, the client asked.

    The scheme is the connection's, or what a proxy says which uvicorn's list of trusted proxies names; `public_url`, if
    set, says how clients reach the server behind any other proxy.
    """

    def __init__(self, app: ASGIApp, public_url: str = "") -> None:
        self._app = app
        self._public_url = public_url.rstrip("/")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request or websocket."""
        if scope["type"] in {"http", "websocket"} and "fourstep.external" not in scope:
            host = request_host(scope) or Host("localhost")
            scheme = "https" if scope["scheme"] in {"https", "wss"} else "http"
            scope["fourstep.external"] = External(scheme, host, self._public_url)
            scope["method"] = method = str(scope.get("method", "GET")).upper()
            scope["fourstep.asked_path"] = scope["path"]
            rewrite(scope, canonical(host.name, method, scope["path"]))
        await self._app(scope, receive, send)


def rewrite(scope: Scope, path: str) -> None:
    """Set the path of this scope."""
    scope["path"] = path
    scope["raw_path"] = path.encode()
