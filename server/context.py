"""The `Context` of the request handlers: made once when the server starts, at `request.app.state.ctx`."""

import dataclasses
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from starlette.requests import HTTPConnection

from server.access.auth import Auth
from server.generate import Resources, UseCase
from server.jobs.queue import Queue
from server.outbound.addresses import Network
from server.settings import AccessSettings, ListenSettings
from server.webhooks.signing_keys import SigningKeys

if TYPE_CHECKING:  # an extra
    from server.nodes.cluster import Cluster


@dataclasses.dataclass(frozen=True, kw_only=True)
class Context(Resources):
    """The parts of the server that routes use. `generate` is the use case with its resources bound.

    `allowed`: networks inside that webhooks may lead to. `listening`: how the server is reached. `cluster`: the other
    servers, if there are any. `clock`: Unix time in seconds, of all of them.
    """

    settings: AccessSettings
    listening: ListenSettings
    allowed: Sequence[Network]
    generate: UseCase
    queue: Queue
    auth: Auth
    signing_keys: SigningKeys
    cluster: "Cluster | None" = None
    clock: Callable[[], float] = time.time


def context(connection: HTTPConnection) -> Context:
    """Return the context of the app that this request or websocket belongs to."""
    ctx: Context = connection.app.state.ctx
    return ctx
