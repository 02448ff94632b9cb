"""Realtime sockets: /run/{app}, /run/{app}/realtime, /run/{app}/ws, and the operator's own path.

What fal does with a bad token is not documented. Here the socket is accepted, told `Unauthorized` in the words that
make the JavaScript clients fetch a new token at their next send, and closed with 1000; a refused handshake would reach
the page as two errors. The end of a token closes no open socket. Unknown apps and paths fail the handshake with 404.
"""

from starlette.routing import BaseRoute, WebSocketRoute
from starlette.websockets import WebSocket

from server.api.realtime_session import MAX_BUFFERING, Session
from server.context import context
from server.fal import endpoints
from server.fal.endpoints import REALTIME_PATHS
from server.fal.errors import PlainError

_UNAUTHORIZED = '{"status":"error","error":"Unauthorized"}'


async def realtime(socket: WebSocket) -> None:
    """Serve one socket to its end."""
    ctx = context(socket)
    target = endpoints.resolve(socket.path_params["app"])
    if target.path not in REALTIME_PATHS | {ctx.settings.realtime_path.strip("/")}:
        raise endpoints.no_such_path(target)
    try:
        caller = ctx.auth.caller(socket, target.app)
    except PlainError:
        await socket.accept()
        await socket.send_text(_UNAUTHORIZED)
        await socket.close(1000)
        return
    ctx.limits.session(socket, caller)
    await socket.accept()
    ctx.metrics.session_opened()
    try:
        await Session(ctx, socket, caller, max_buffering(socket)).serve()
    finally:
        ctx.metrics.session_closed()


def max_buffering(socket: WebSocket) -> int | None:
    """How many inputs may wait, as the client asks; clients check its bounds, so others are brought within them."""
    written = socket.query_params.get("max_buffering", "")
    if not (written.isascii() and written.isdigit()):
        return None
    return min(max(int(written[:4]), 1), MAX_BUFFERING)


ROUTES: list[BaseRoute] = [WebSocketRoute("/run/{app:path}", realtime)]
