"""What websocket routes share, and the answer to a websocket's handshake that arrives as a plain request.

A proxy in front passes `Upgrade` and `Connection` on only where its configuration says so (RFC 9110, 7.6.1). Without
them a handshake is a GET that no route knows; its `Sec-WebSocket-Key` tells it from any other.
"""

import logging

from starlette.types import ASGIApp, Receive, Scope, Send

from server.fal.errors import PlainError
from server.fal.hosts import header
from server.web.responses import error_response

LOG = logging.getLogger(__name__)

# Code of the disconnect which a websocket route receives when the server drains. The route may still answer.
DRAINING = 1012

# Seconds until a socket's next input is read after a refused one: a refusal costs the server more than the client.
REFUSAL_PAUSE_S = 0.1

_DROPPED = (
    "This websocket's handshake came without its `Upgrade` and `Connection` headers: the proxy in front must pass them"
    " on. Hint: nginx: `proxy_http_version 1.1; proxy_set_header Upgrade $http_upgrade; proxy_set_header Connection"
    ' "upgrade";`; Apache: `upgrade=websocket` at the end of ProxyPass'
)


class UpgradeRequired:
    """ASGI middleware that answers 426 to a handshake without `Upgrade`.

    Few clients show what a handshake was answered, browsers never do: the first one is logged too.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._said = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request or websocket."""
        if scope["type"] != "http" or header(scope, b"sec-websocket-key") is None:
            await self._app(scope, receive, send)
            return
        if not self._said:
            LOG.warning(_DROPPED)
        self._said = True
        await error_response(PlainError(426, _DROPPED, {"Upgrade": "websocket", "Connection": "Upgrade"}))(
            scope, receive, send
        )
