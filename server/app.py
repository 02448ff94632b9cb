"""Composition root: make every part of the server, start and end them in order, put middleware before the routes."""

import contextlib
import dataclasses
import functools
import time
from collections.abc import AsyncIterator, Callable, Sequence
from typing import TYPE_CHECKING

from fastapi import FastAPI
from starlette.datastructures import Headers, State
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import Response
from starlette.routing import BaseRoute
from starlette.types import ASGIApp
from typing_extensions import override

from server.access.auth import Auth
from server.access.limits import Limits, ReleaseReservations
from server.api import files, ops, platform, playground, proxy, queue, realtime, run, tokens, uploads, ws_run
from server.context import Context
from server.environment import version
from server.generate import Generate, Resources, generate, run_job
from server.inputs import Inputs
from server.jobs.queue import Queue
from server.jobs.sqlite.database import Database
from server.jobs.sqlite.store import SQLiteStore
from server.metrics import Metrics
from server.nodes import forms
from server.outbound.addresses import parse_networks
from server.outbound.fetch import Fetch
from server.settings import Settings
from server.storage.files import Files
from server.transport.room import Room
from server.web.access_log import AccessLog
from server.web.canonical_path import CanonicalPath
from server.web.origin_guard import OriginGuard
from server.web.responses import EXCEPTION_HANDLERS
from server.web.websocket import UpgradeRequired
from server.webhooks.delivery import Deliverer
from server.webhooks.signing_keys import SigningKeys
from server.workers.pool import Pool

if TYPE_CHECKING:  # an extra
    from server.nodes.cluster import Cluster
    from server.nodes.row import Node

ROUTES = [
    *run.ROUTES,
    *ws_run.ROUTES,
    *queue.ROUTES,
    *realtime.ROUTES,
    *tokens.ROUTES,
    *uploads.ROUTES,
    *files.ROUTES,
    *proxy.ROUTES,
    *ops.ROUTES,
    *platform.ROUTES,
    *playground.ROUTES,
]

# The response headers that fal's clients read.
_EXPOSED_HEADERS = [
    "x-fal-request-id",
    "x-fal-request-timeout-type",
    "x-fal-error-type",
    "x-fal-billable-units",
    "x-fal-needs-retry",
    "x-fal-retryable",
    "etag",
]
_PREFLIGHT_MAX_AGE_S = 7200  # Chromium keeps no preflight for longer

# Seconds that engines have to exit. They end last when the server stops: the queue has put its jobs back by then.
_ENGINE_GRACE_S = 2.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Parts:
    """Factories of the server's parts. Tests replace those that need a device, a network or a fault."""

    pool: Callable[..., Pool] = Pool
    fetch: Callable[..., Fetch] = Fetch
    files: Callable[..., Files] = Files
    inputs: Callable[..., Inputs] = Inputs
    limits: Callable[..., Limits] = Limits
    store: Callable[[Database], SQLiteStore] = SQLiteStore
    queue: Callable[..., Queue] = Queue
    deliverer: Callable[..., Deliverer] = Deliverer
    generate: Generate = generate
    routes: Sequence[BaseRoute] = tuple(ROUTES)
    room: Callable[[int], Room] = Room


@dataclasses.dataclass(frozen=True)
class Application:
    """The whole server: `asgi`, whose lifespan starts and ends every part. `state.ctx`: the context, once started."""

    asgi: ASGIApp
    state: State

    def drain(self) -> None:
        """Start no more jobs, and say so by `/ready`; calls and what is in flight go on."""
        self.state.ctx.queue.drain()

    def close(self) -> None:
        """Accept no more jobs; what is in flight goes on."""
        ctx = self.state.ctx
        ctx.queue.shut(ctx.listening.drain_timeout)


_SHIPPED = Parts()


def create_app(settings: Settings, parts: Parts = _SHIPPED) -> Application:
    """Return the server for these settings. Raises `SettingsError` for a setting which can't be used."""
    metrics, signing_keys = Metrics(version()), SigningKeys(settings.webhook_keys_path)
    cluster = forms.cluster(settings, metrics.database) if settings.database else None
    clock = cluster.now if cluster else time.time
    auth = Auth(settings, clock)
    times = {"start_timeout_s": settings.start_timeout, "idle_unload_s": 60 * settings.idle_unload}
    pool = parts.pool(settings.engine, settings.devices, **times)

    async def samples() -> bool:
        model = await pool.loaded_model()
        return model == "demo" or model.startswith("instant")

    elsewhere = forms.file_store(settings, cluster)
    fetch = parts.fetch(settings, key_share=settings.key_share, samples=samples, abandoned=metrics.lookup_abandoned)

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with contextlib.AsyncExitStack() as stack:  # ends what was started, also when a start fails
            files = parts.files(settings, public_url=settings.public_url, key_share=settings.key_share, **elsewhere)
            await files.start()
            stack.push_async_callback(files.close)
            inputs = parts.inputs(files, fetch, max_bytes=settings.max_image_bytes)
            stack.callback(inputs.close)
            form = forms.alone(settings, parts.store) if cluster is None else forms.shared(cluster)
            stack.push_async_callback(form.store.close)
            await pool.start()
            stack.push_async_callback(pool.close, _ENGINE_GRACE_S)

            limits = parts.limits(settings, **({"elsewhere": cluster.elsewhere} if cluster else {}))
            resources = Resources(
                settings=settings, pool=pool, files=files, inputs=inputs, limits=limits, metrics=metrics
            )
            use_case = functools.partial(parts.generate, resources)
            queue = parts.queue(
                form.store,
                form.index,
                form.follower,
                functools.partial(run_job, use_case),
                capacity=lambda: pool.capacity,
                # To others there is none left where none of them has an engine.
                calls=lambda: pool.calls if cluster is None or cluster.room_elsewhere() else 0,
                settings=settings,
                key_share=settings.key_share,
                **form.queue_options,
            )
            with forms.startable(settings, form):
                await queue.start()
            stack.push_async_callback(queue.close, settings.drain_timeout)
            deliverer = parts.deliverer(
                queue,
                form.outbox,
                signing_keys,
                fetch.post,
                key_share=settings.key_share,
                **form.deliverer_options,
            )
            await deliverer.start()
            stack.push_async_callback(deliverer.close)
            if cluster is not None:
                describe = functools.partial(_node, cluster, settings, resources, queue, auth)
                await stack.enter_async_context(cluster.member(describe))
            app.state.ctx = Context(
                **vars(resources),
                listening=settings,
                generate=use_case,
                queue=queue,
                auth=auth,
                signing_keys=signing_keys,
                allowed=parse_networks(settings.allow_net),
                cluster=cluster,
                clock=clock,
            )
            yield

    app = FastAPI(
        title="fourstep",
        openapi_url=None,  # the server has fal's document of the endpoint instead
        redirect_slashes=False,
        routes=list(parts.routes),
        exception_handlers=EXCEPTION_HANDLERS,
        lifespan=lifespan,
        # No environment variable of the framework may make this server send telemetry.
        telemetry={"tracing": False, "metrics": False, "logs": False, "auto_configure": False},
    )
    return Application(_in_front(app, settings, auth, metrics), app.state)


def _node(cluster: "Cluster", settings: Settings, resources: Resources, queue: Queue, auth: Auth) -> "Node":
    """Return what the other servers are told of this one."""
    from server.nodes.row import Node, address  # noqa: PLC0415 (only where there are others)

    pool, limits = resources.pool, resources.limits
    return Node(
        id=cluster.id,
        name=cluster.name,
        address=address(settings.addresses[0], settings.port, cluster.name),
        release=version(),
        devices=[f"{engine['device']} {engine['state']}" for engine in pool.engines],
        model=pool.model,
        room=pool.capacity,
        in_flight=queue.in_flight + limits.calls_running,
        sockets=limits.sessions_open,
        draining=queue.draining,
        counts={key: taken for key in auth.limited() if any((taken := limits.taken(key)).values())},
    )


def _in_front(app: ASGIApp, settings: Settings, auth: Auth, metrics: Metrics) -> ASGIApp:
    """Return `app` with the middleware in front, outside the framework's own error handling.

    So an answer to a crash, too, has a request id, and a page of another origin can read it.
    """
    outermost_first = [
        Middleware(AccessLog, metrics),
        Middleware(OriginGuard, auth, settings, settings.public_url),
        Middleware(Cors),
        Middleware(UpgradeRequired),
        Middleware(CanonicalPath, settings.public_url),
        Middleware(ReleaseReservations),
    ]
    for middleware, args, kwargs in reversed(outermost_first):
        app = middleware(app, *args, **kwargs)
    return app


class Cors(CORSMiddleware):
    """starlette's CORS middleware, with status 204 for every preflight: the browser judges by the methods listed.

    Any origin may call, with credentials, as on fal's own app server: there are no cookies to abuse, and a page must
    know a key to send it. `OriginGuard`, which runs before, decides which origins reach this middleware.
    """

    def __init__(self, app: ASGIApp) -> None:
        super().__init__(
            app,
            allow_origins=["*"],
            allow_credentials=True,
            allow_methods=["GET", "POST", "PUT", "DELETE", "OPTIONS", "HEAD"],
            allow_headers=["*"],
            # A page from the Internet that calls a server on this network asks for this first.
            allow_private_network=True,
            expose_headers=_EXPOSED_HEADERS,
            max_age=_PREFLIGHT_MAX_AGE_S,
        )

    @override
    def preflight_response(self, request_headers: Headers) -> Response:
        allowed = super().preflight_response(request_headers).headers
        return Response(
            status_code=204,
            headers={name: value for name, value in allowed.items() if not name.startswith("content-")},
        )
