"""How many stored files are sent at once: to all, to one key, to one address."""

import asyncio

import pytest

from server.storage.files import Files
from tests.support import app_client, asgi_client
from tests.support.stores import object_store

pytestmark = pytest.mark.anyio


@pytest.fixture(autouse=True)
def everywhere(place, monkeypatch):
    """Each test runs wherever files may lie."""
    monkeypatch.setitem(app_client.CHOSEN, "files", place)


def pytest_generate_tests(metafunc):
    """Name the places."""
    metafunc.parametrize("place", object_store.PLACES, indirect=True)


JPEG = b"\xff\xd8\xff\xe0 a picture"
ALICE = {"authorization": "Key alice:secret"}
HIDDEN = {**ALICE, "x-fal-object-lifecycle": '{"initial_acl": {"default": "hide"}}'}


class Readers:
    """Clients of which none takes more than the head of its answer until `release` is set."""

    def __init__(self, app):
        self._app = app
        self.release = asyncio.Event()
        self._tasks = []

    async def upload(self, headers=None):
        """The URL of a new file."""
        answer = await asgi_client.call(self._app, "POST", "/cdn/files/upload", body=JPEG, headers=headers or ALICE)
        return answer.json()["access_url"]

    async def status(self, url, address="192.0.2.1", headers=None):
        """The status of a download that has begun."""
        scope = asgi_client.scope_of("http", "GET", url, headers, "localhost:8000") | {"client": (address, 1)}
        begun = asyncio.get_running_loop().create_future()

        async def send(message):
            if not begun.done():
                begun.set_result(message["status"])
            await self.release.wait()

        self._tasks.append(asyncio.create_task(self._app(scope, asyncio.Event().wait, send)))
        return await asyncio.wait_for(begun, 5)

    async def end(self):
        """Let all take what waits for them; return when they have."""
        self.release.set()
        await asyncio.gather(*self._tasks)


@pytest.fixture
async def readers(tmp_path):
    """Clients of a server with few downloads."""
    async with app_client.serving(tmp_path, files=Files, keys="alice:secret", max_downloads=4) as web:
        clients = Readers(web.app)
        yield clients
        await clients.end()


async def test_a_file_that_has_just_had_to_go_is_404(tmp_path, monkeypatch):
    async with app_client.serving(tmp_path, files=Files, keys="alice:secret") as web:
        url = await Readers(web.app).upload()
        find = web.ctx.files.find

        async def find_and_drop(name):
            stored = await find(name)
            await web.ctx.files.delete(url)
            return stored

        monkeypatch.setattr(web.ctx.files, "find", find_and_drop)

        assert (await web.call("GET", url)).status == 404


async def test_one_address_leaves_downloads_to_others(readers):
    url = await readers.upload()

    same = [await readers.status(url) for _ in range(3)]
    other = await readers.status(url, "192.0.2.2")

    assert (same, other) == ([200, 200, 429], 200)


async def test_a_network_that_one_machine_may_fill_is_one_address(readers):
    url = await readers.upload()

    same = [await readers.status(url, f"2001:db8::{host}") for host in range(1, 4)]
    other = await readers.status(url, "2001:db8:0:1::1")

    assert (same, other) == ([200, 200, 429], 200)


async def test_downloads_which_need_a_key_are_counted_for_it(readers):
    public, hidden = await readers.upload(), await readers.upload(HIDDEN)

    statuses = [await readers.status(public) for _ in range(2)]
    statuses += [await readers.status(hidden, headers=ALICE) for _ in range(2)]

    assert statuses == [200] * 4
    assert await readers.status(hidden, "192.0.2.2", headers=ALICE) == 429


async def test_all_together_are_bounded(readers):
    url = await readers.upload()

    statuses = [await readers.status(url, f"192.0.2.{host}") for host in range(1, 6)]

    assert statuses == [200] * 4 + [429]


async def test_a_download_that_has_ended_makes_room(readers):
    url = await readers.upload()
    for _ in range(2):
        await readers.status(url)
    await readers.end()

    assert await readers.status(url) == 200
