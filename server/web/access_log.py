"""Access log and request ids.

Every answer carries `x-fal-request-id`. A log line has method, path, status, milliseconds and that id, and of what
a caller sent only the path.
"""

import logging
import time
import uuid

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.logs import fault
from server.metrics import Metrics

_LOG = logging.getLogger("fourstep.access")
_REQUEST_ID = b"x-fal-request-id"


def request_id(scope: Scope) -> str:
    """Return the id that `AccessLog` gave to this request."""
    found: str = scope["fourstep.request_id"]
    return found


class AccessLog:
    """Outermost ASGI middleware, which gives each request an id, counts, times and logs it."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request or websocket."""
        if scope["type"] not in {"http", "websocket"}:
            await self._app(scope, receive, send)
            return
        scope["fourstep.request_id"] = identity = str(uuid.uuid4())
        status = 101 if scope["type"] == "websocket" else 499  # the client left before an answer
        started = time.perf_counter()

        async def send_named(message: Message) -> None:
            nonlocal status
            if message["type"] in {"http.response.start", "websocket.http.response.start"}:
                status = message["status"]
                headers = message["headers"]
                if not any(name == _REQUEST_ID for name, _ in headers):
                    message["headers"] = [*headers, (_REQUEST_ID, identity.encode())]
            await send(message)

        try:
            await self._app(scope, receive, send_named)
        except Exception as error:  # noqa: BLE001 — outermost; the client has been answered
            status = 500
            fault(identity, error)
        finally:
            seconds = time.perf_counter() - started
            method = scope.get("method", "WS") if scope["type"] == "http" else "WS"
            self._metrics.answered(_route(scope), status, seconds)
            level = logging.DEBUG if method in {"GET", "HEAD", "OPTIONS"} and status < 500 else logging.INFO
            if _LOG.isEnabledFor(level):
                _LOG.log(level, "%s %s %d %.1f ms %s", method, _path(scope), status, seconds * 1e3, identity)


def _route(scope: Scope) -> str:
    """Return the name of the handler function: a label with few values."""
    return getattr(scope.get("endpoint"), "__name__", "none")


def _path(scope: Scope) -> str:
    """Return the path as it may be logged: on one line, short, without the names of files."""
    path: str = scope["path"]
    if path.startswith("/cdn/"):
        return "/cdn/…"
    return path[:200].encode("unicode_escape").decode("ascii")
