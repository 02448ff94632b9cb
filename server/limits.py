"""How many calls and sockets are in hand at once. One more is refused with 429, at once.

429 is the one answer to overload that fal's Python and JavaScript clients both try again (a 503 fails in Python). The
queue takes everything up to its own bound and is not counted here.
"""

from starlette.types import ASGIApp, Receive, Scope, Send

from server.errors import RequestError
from server.responses import error_response

# fal's word to its own machinery that the call may be tried again.
_RETRY = {"X-Fal-Needs-Retry": "1", "Retry-After": "1"}


class Limits:
    """ASGI middleware behind `Dispatch`: a permit is taken at the door and given back when the call ends."""

    def __init__(self, app: ASGIApp, max_calls: int, max_sessions: int) -> None:
        self._app = app
        self._free = {"http": max_calls, "websocket": max_sessions}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection."""
        kind = scope["type"]
        if kind not in self._free or not scope["path"].startswith(("/run/", "/ws/", "/api/fal/proxy")):
            await self._app(scope, receive, send)
            return
        if self._free[kind] == 0:
            what = "calls" if kind == "http" else "realtime sessions"
            refusal = RequestError("concurrent_requests_limit", f"Too many {what} at once; try again", _RETRY)
            await error_response(refusal)(scope, receive, send)
            return
        self._free[kind] -= 1
        try:
            await self._app(scope, receive, send)
        finally:
            self._free[kind] += 1
