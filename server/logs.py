"""Request ids, and a log that tells what happened without telling what was said.

Every answer carries `x-fal-request-id`. A line names method, path, status, time and that id; never a query string
(tokens), a body (prompts, pictures), a header (keys) or a stored file's name (whoever knows it can read the file).
"""

import logging
import time
import traceback
import uuid

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.metrics import Metrics

_LOG = logging.getLogger("fourstep.access")
_FORMAT = "%(asctime)s %(levelname)-7s %(name)s: %(message)s"

# These write URLs with their query strings at INFO.
_TOO_TALKATIVE = ("uvicorn.access", "uvicorn.error", "httpx", "httpcore", "websockets")

REQUEST_ID = b"x-fal-request-id"

_FAULTS = logging.getLogger("fourstep.faults")


def configure(level: int = logging.INFO) -> None:
    """Log to stderr."""
    logging.basicConfig(level=level, format=_FORMAT)
    for name in _TOO_TALKATIVE:
        logging.getLogger(name).setLevel(logging.WARNING)


def fault(where: str, error: BaseException) -> None:
    """Log a fault of ours: its kind and its stack, without its message, which may have a prompt in it."""
    stack = "".join(traceback.format_tb(error.__traceback__))
    _FAULTS.error("%s: %s\n%s", where, type(error).__name__, stack)


def request_id(scope: Scope) -> str:
    """The id of this request, as `AccessLog` gave it."""
    found: str = scope["fourstep.request_id"]
    return found


class AccessLog:
    """ASGI middleware, the outermost: gives an id, counts, times and logs."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection."""
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
                if not any(name == REQUEST_ID for name, _ in headers):
                    message["headers"] = [*headers, (REQUEST_ID, identity.encode())]
            await send(message)

        try:
            await self._app(scope, receive, send_named)
        except Exception as error:  # noqa: BLE001 — the last one who could; the client has been answered
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
    """The name of the function that answered: a label with few values."""
    return getattr(scope.get("endpoint"), "__name__", "none")


def _path(scope: Scope) -> str:
    """The path as it may be logged: on one line, short, and without the names of files."""
    path: str = scope["path"]
    if path.startswith("/cdn/"):
        return "/cdn/…"
    return path[:200].encode("unicode_escape").decode("ascii")
