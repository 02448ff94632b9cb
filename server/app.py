"""The application: its rooms made and ended in order, its routes in tables, every error in fal's shape."""

import contextlib
import dataclasses
import functools
from collections.abc import AsyncIterator, Callable

from fastapi import FastAPI
from starlette.types import ASGIApp

from server.access.auth import Auth
from server.access.limits import Limits
from server.api import files, ops, playground, proxy, queue, realtime, run, tokens, uploads, ws_run
from server.context import Context
from server.generate import Resources, run_job
from server.jobs.queue import Queue
from server.jobs.store import JobStore
from server.metrics import Metrics
from server.outbound.fetch import Fetch
from server.settings import Settings
from server.storage.files import Files
from server.web.front import front
from server.web.responses import EXCEPTION_HANDLERS
from server.webhooks.delivery import Deliverer
from server.webhooks.signing_keys import SigningKeys
from server.workers.pool import Pool

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
    *playground.ROUTES,
]

# Engines go last when the server stops: the queue has given its jobs back by then.
_ENGINE_GRACE_S = 2.0


@dataclasses.dataclass(frozen=True)
class Application:
    """The whole server: `asgi`, whose lifespan starts and ends everything, and `drain`, to begin nothing new."""

    asgi: ASGIApp
    drain: Callable[[], None]


def create_app(settings: Settings) -> Application:
    """The server for these settings. Raises `SettingsError` for one that can't be used."""
    auth, metrics, signing_keys = Auth(settings), Metrics(), SigningKeys(settings.webhook_keys_path)
    pool = Pool(settings.engine, settings.devices, start_timeout_s=settings.start_timeout)

    async def samples() -> bool:
        model = await pool.loaded_model()
        return model == "demo" or model.startswith("instant")

    fetch = Fetch(settings, key_share=settings.key_share, samples=samples)

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        rooms = _rooms(settings, auth=auth, metrics=metrics, pool=pool, fetch=fetch, signing_keys=signing_keys)
        async with rooms as app.state.ctx:
            yield

    app = FastAPI(
        title="fourstep",
        openapi_url=None,  # ours is fal's document of the endpoint: see server.fal.openapi
        redirect_slashes=False,
        routes=ROUTES,
        exception_handlers=EXCEPTION_HANDLERS,
        lifespan=lifespan,
        # No environment variable of the framework's may make this server report anything to anyone.
        telemetry={"tracing": False, "metrics": False, "logs": False, "auto_configure": False},
    )

    def drain() -> None:
        app.state.ctx.queue.drain()

    return Application(front(app, settings, auth, metrics), drain)


@contextlib.asynccontextmanager
async def _rooms(
    settings: Settings, *, auth: Auth, metrics: Metrics, pool: Pool, fetch: Fetch, signing_keys: SigningKeys
) -> AsyncIterator[Context]:
    """Everything below the routes. Whatever was started is ended, in the opposite order, also when a start fails."""
    async with contextlib.AsyncExitStack() as stack:
        await pool.start()
        stack.push_async_callback(pool.close, _ENGINE_GRACE_S)
        stack.push_async_callback(fetch.close)
        stored = Files(settings, public_url=settings.public_url)
        await stored.start()
        stack.push_async_callback(stored.close)
        store = JobStore(settings.jobs_path)
        stack.push_async_callback(store.close)

        resources = Resources(
            settings=settings, pool=pool, files=stored, fetch=fetch, limits=Limits(settings), metrics=metrics
        )
        jobs = Queue(
            store,
            functools.partial(run_job, resources),
            capacity=lambda: pool.capacity,
            settings=settings,
            key_share=settings.key_share,
        )
        await jobs.start()
        stack.push_async_callback(jobs.close, settings.drain_timeout)
        deliverer = Deliverer(jobs, store.outbox, signing_keys, fetch.post)
        await deliverer.start()
        stack.push_async_callback(deliverer.close)
        yield Context(**vars(resources), queue=jobs, auth=auth, signing_keys=signing_keys)
