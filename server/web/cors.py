"""Cross-origin calls from web pages: preflights are answered here, every answer says who may read it.

As fal's own app server: any origin, with credentials (there are no cookies to abuse, a key is sent on purpose). Which
origins reach this point at all is for `server.web.origin_guard` to say.
"""

from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.fal.hosts import header

# What fal's clients send and read across origins; a preflight that asks for other headers gets those as well.
_METHODS = "GET, POST, PUT, DELETE, OPTIONS, HEAD"
_REQUEST_HEADERS = (
    "authorization, content-type, x-fal-queue-priority, x-fal-runner-hint, x-fal-request-timeout, "
    "x-fal-object-lifecycle-preference, x-fal-object-lifecycle, x-fal-target-url, x-fal-store-io, x-fal-no-retry"
)
_EXPOSED = (
    b"x-fal-request-id, x-fal-request-timeout-type, x-fal-error-type, x-fal-billable-units, x-fal-needs-retry, "
    b"x-fal-retryable, etag"
)
_MAX_AGE_S = "7200"  # Chromium keeps no preflight for longer


class Cors:
    """ASGI middleware for the `Origin` header."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection."""
        origin = header(scope, b"origin") if scope["type"] == "http" else None
        if origin is None:
            await self._app(scope, receive, send)
            return
        allowed = [
            (b"access-control-allow-origin", origin.encode("latin-1")),
            (b"access-control-allow-credentials", b"true"),
            (b"access-control-expose-headers", _EXPOSED),
            (b"vary", b"Origin"),
        ]

        async def send_allowed(message: Message) -> None:
            if message["type"] == "http.response.start":
                present = {name for name, _ in message["headers"]}
                if b"access-control-allow-origin" not in present:
                    message["headers"] = [*message["headers"], *allowed]
            await send(message)

        if scope["method"] == "OPTIONS" and header(scope, b"access-control-request-method"):
            await _preflight(scope)(scope, receive, send_allowed)
        else:
            await self._app(scope, receive, send_allowed)


def _preflight(scope: Scope) -> Response:
    headers = {
        "access-control-allow-methods": _METHODS,
        "access-control-allow-headers": header(scope, b"access-control-request-headers") or _REQUEST_HEADERS,
        "access-control-max-age": _MAX_AGE_S,
    }
    # A page from the Internet that may call a server on this network says so first.
    if header(scope, b"access-control-request-private-network"):
        headers["access-control-allow-private-network"] = "true"
    return Response(status_code=204, headers=headers)
