"""Access log and request ids.

Every answer carries `x-fal-request-id`. A line has method, path, status, route, key, outcome, seconds and that id.
Of the path it has the words which are the server's own and ids of jobs; whatever else may be a file's name or a token.
"""

import logging
import re
import time
import uuid

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.fal.endpoints import ENDPOINTS
from server.fal.hosts import SPACES
from server.logs import call, fault
from server.metrics import Metrics

_KEY = "fourstep.key"
_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_MAX_SEGMENTS = 12

_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH", "WS"})

# What routes have in their paths, beside parameters.
WORDS = SPACES.union(
    *({owner, each.alias, f"{owner}-{each.alias}"} for each in ENDPOINTS for owner in each.owners),
    {".well-known", "api", "auth", "bundle.pem", "ca.pem", "cancel", "complete", "docs", "fal", "files", "health"},
    {"initiate", "initiate-multipart"},
    {"jwks.json", "llms.txt", "metrics", "models", "multipart", "openapi", "openapi.json", "payloads", "pricing"},
    {"proxy", "ready", "realtime", "requests", "response", "static", "status", "storage", "stream", "token", "tokens"},
    {"trust", "upload", "v1"},
)

# Probes and scrapes: they come every few seconds, and the state that they are answered with is logged when it changes.
_PROBES = frozenset({"health", "ready", "metrics"})

_REQUEST_ID = b"x-fal-request-id"


def request_id(scope: Scope) -> str:
    """Return the id that `AccessLog` gave to this request."""
    found: str = scope["fourstep.request_id"]
    return found


def note_key(scope: Scope, key: str) -> None:
    """Note the id of the key which this request has shown."""
    scope[_KEY] = key


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
        scope["fourstep.request_id"] = identity = answered_id = str(uuid.uuid4())
        status = 101 if scope["type"] == "websocket" else 499  # the client left before an answer
        started = time.perf_counter()

        async def send_named(message: Message) -> None:
            nonlocal status, answered_id
            if message["type"] in {"http.response.start", "websocket.http.response.start"}:
                status = message["status"]
                headers = message["headers"]
                own = next((value for name, value in headers if name == _REQUEST_ID), None)
                if own is not None:
                    answered_id = own.decode("latin-1")
                else:
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
            handler = _handler(scope)
            self._metrics.answered(handler, status, seconds)
            quiet = handler in _PROBES or (method in {"GET", "HEAD", "OPTIONS"} and status < 500)
            call(
                logging.DEBUG if quiet else logging.INFO,
                f"{_method(method)} {_path(scope)} {status}",
                route=getattr(scope.get("endpoint"), "__module__", "none").rpartition(".")[2],
                handler=handler,
                key=scope.get(_KEY, ""),
                outcome=_outcome(status),
                seconds=round(seconds, 4),
                request_id=answered_id,
            )


def _handler(scope: Scope) -> str:
    """Return the name of the handler function: a label with few values."""
    return getattr(scope.get("endpoint"), "__name__", "none")


def _outcome(status: int) -> str:
    if status == 499:
        return "left"
    return "ok" if status < 400 else "refused" if status < 500 else "failed"


def _method(method: str) -> str:
    """Return the method; what is none of HTTP's may be anything."""
    return method if method in _METHODS else "…"


def _path(scope: Scope) -> str:
    """Return the path with … for each segment that is no word of ours, nor the id of a job."""
    segments = scope["path"].split("/")
    shown = [
        each if not each or each in WORDS or (before == "requests" and _UUID.fullmatch(each)) else "…"
        for before, each in zip(["", *segments], segments, strict=False)
    ]
    return "/".join(shown[:_MAX_SEGMENTS]) + ("/…" if len(shown) > _MAX_SEGMENTS else "")
