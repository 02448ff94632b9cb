"""The whole web side in memory: real routes, real queue, and in place of engines and network something to steer.

async with serving(tmp_path) as web:
    answer = await web.call("POST", "/run/fal-ai/lcm-sd15-i2i", body=INPUT)
"""

import asyncio
import contextlib

from pipelines.messages import Generated, Log, Picture, Preview, Started
from server.app import Parts, create_app
from server.outbound.fetch import FetchError
from server.settings import Settings
from server.storage.files import Files
from server.storage.layout import Meta
from server.storage.store import Stored
from server.workers.pool import State
from tests.support import asgi_client

APP = "fal-ai/lcm-sd15-i2i"
RUN = f"/run/{APP}"
QUEUE = f"/queue/{APP}"
DATA_URI = "data:image/jpeg;base64,/9j/4A=="
INPUT = {"prompt": "a canary on a beach", "image_url": DATA_URI, "seed": 7, "sync_mode": True}
JPEG = b"\xff\xd8 a picture \xff\xd9"


class Engines:
    """In place of the pool: holds work while `gate` is shut, started work while `finish` is, then answers with one JPEG
    per image, or `failure`."""

    def __init__(self):
        self.state = State.READY
        self.detail = ""
        self.notice = "a test"
        self.engines = [
            {
                "device": "cpu",
                "pid": 1,
                "state": State.READY,
                "restarts": 2,
                "graphs_failed": False,
                "model": "demo",
                "dtype": "float32",
                "torch": "2.0",
            }
        ]
        self.capacity, self.calls = 1, 0
        self.gate = asyncio.Event()
        self.gate.set()
        self.finish = asyncio.Event()
        self.finish.set()
        self.failure = None
        self.works = []
        self.running = asyncio.Queue()
        self.cancelled = asyncio.Queue()

    async def start(self):
        """They run already."""

    async def close(self, grace_s):
        """There is nothing to end."""

    def check(self):
        """There is always hope."""

    async def run(self, work, on_event=None):
        tell = on_event or (lambda _: None)
        self.works.append(work)
        self.running.put_nowait(work)
        steps = work.params.num_inference_steps
        try:
            await self.gate.wait()
            tell(Started(work.id))
            tell(Log(work.id, "9 tokens, 9 used"))
            await self.finish.wait()
            if self.failure:
                raise self.failure
            for step in range(1, steps) if work.previews else ():
                tell(Preview(work.id, step, steps, Picture(JPEG, 512, 512, nsfw=False)))
                await asyncio.sleep(0)
        except asyncio.CancelledError:
            self.cancelled.put_nowait(work.id)
            raise
        pictures = tuple(Picture(JPEG, 512, 504, nsfw=False) for _ in range(work.params.num_images))
        return Generated(id=work.id, pictures=pictures, timings={"inference": 0.25, "decode": 0.05})


class Net:
    """In place of the network: `pages`, or what fetching them raises, by URL; anything else can't be had."""

    def __init__(self):
        self.pages = {}

    async def post(self, url, body, headers, timeout, *, tenant):  # noqa: ASYNC109 — the real one's
        raise AssertionError("nothing is delivered")

    async def get(self, url, max_bytes, count, *, tenant):
        if url not in self.pages:
            raise FetchError(kind="file_download_error", message="Could not download the file")
        if isinstance(self.pages[url], Exception):
            raise self.pages[url]
        if len(self.pages[url]) > max_bytes:
            raise FetchError(kind="file_too_large", message=f"The file is larger than {max_bytes} bytes")
        count(len(self.pages[url]))
        return self.pages[url]


class Shelf(Files):
    """The files, with results kept in memory."""

    def __init__(self, settings, **options):
        super().__init__(settings, **options)
        self.saved = {}
        self.local_paths = {}
        self.failure = None

    async def save(self, data, content_type, **options):
        if self.failure:
            raise self.failure
        name = f"{len(self.saved)}.jpg"
        self.saved[name] = (data, content_type, options)
        return name

    async def local(self, url, reader=None):
        path = self.local_paths.get(url)
        size = path.stat().st_size if path and path.exists() else 0
        return path and Stored(path.name, path, size, 0.0, 0.0, Meta("image/jpeg"))


class Web:
    """A running web side and what it stands on."""

    def __init__(self, app, ctx, net):
        self.app = app
        self.ctx = ctx
        self.engines = ctx.pool
        self.net = net
        self.shelf = ctx.files

    def call(self, method, url, **options):
        """One request and its whole answer."""
        return asgi_client.call(self.app, method, url, **options)

    def exchange(self, method, url, **options):
        """One request, message by message."""
        return asgi_client.exchange(self.app, method, url, **options)

    def connect(self, url, **options):
        """One websocket."""
        return asgi_client.connect(self.app, url, **options)


class NoDeliveries:
    """In place of webhook delivery: the outbox stays as it is."""

    async def start(self):
        """Deliver nothing."""

    async def close(self):
        """Deliver nothing."""


# Settings of all servers of a test which does not choose others.
CHOSEN = {}


@contextlib.asynccontextmanager
async def serving(tmp_path, *, files=Shelf, capacity=1, **chosen):
    """The web side with these settings; `files` makes what stores files, `capacity` is the engines'."""
    engines, net = Engines(), Net()
    engines.capacity = capacity
    parts = Parts(
        pool=lambda *_, **__: engines,
        fetch=lambda *_, **__: net,
        files=files,
        deliverer=lambda *_, **__: NoDeliveries(),
    )
    app = create_app(Settings(data_dir=tmp_path, **{"drain_timeout": 1, **CHOSEN, **chosen}), parts)
    async with asgi_client.lifespan(app.asgi):
        try:
            yield Web(app.asgi, app.state.ctx, net)
        finally:
            engines.gate.set()
            engines.finish.set()
