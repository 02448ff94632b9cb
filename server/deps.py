"""What a request handler may reach: one object, made when the server starts, at `request.app.state.ctx`."""

import dataclasses

from starlette.requests import HTTPConnection

from server.auth import Auth
from server.fetch import Fetch
from server.files import Files
from server.metrics import Metrics
from server.queue import Queue
from server.settings import Settings
from server.webhook_keys import SigningKeys
from server.workers import Pool


@dataclasses.dataclass(frozen=True, kw_only=True)
class Context:
    """The rooms below the routes, each made once."""

    settings: Settings
    pool: Pool
    files: Files
    fetch: Fetch
    queue: Queue
    auth: Auth
    metrics: Metrics
    signing_keys: SigningKeys


def context(connection: HTTPConnection) -> Context:
    """The context of the app that this request or websocket belongs to."""
    ctx: Context = connection.app.state.ctx
    return ctx
