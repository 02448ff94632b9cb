"""Files in an object store: what two servers share, what a store that is away costs, what is refused at the start."""

import asyncio
import datetime
import functools
import os
import subprocess
import sys
import time

import pytest

import server.storage.bucket
from server.fal.errors import PlainError, RequestError
from server.fal.lifecycle import Acl, Lifecycle
from server.nodes.forms import file_store
from server.settings import Settings, SettingsError
from server.storage.bucket import bucket, expiry, opening
from server.storage.bucket.objects import CHUNK_BYTES, PATIENCE_S
from server.storage.files import Files
from server.storage.ledger import BLOCK_BYTES as BLOCK
from server.storage.ledger import Ledger, Quota, Size
from server.storage.location import parse
from server.storage.names import Names
from server.storage.usage import MemoryUsage
from tests.support import app_client
from tests.support.stores import object_store
from tests.support.stores.fault_proxy import fault_proxy

pytestmark = pytest.mark.anyio

JPEG = b"\xff\xd8\xff\xe0 a picture"
SECRET = bytes(32)
NAMES = Names(SECRET)
DAY_S = 86400.0
QUOTA = 100_000


class Clock:
    """The time, which can be put forward."""

    ahead = 0.0

    def __call__(self):
        return time.time() + self.ahead


class Box:
    """One server's files at a place that others share, and `store`, the bucket behind them."""

    def __init__(
        self, folder, place, *, patience_s=30.0, blocks=QUOTA, share=0.5, lock=expiry.unshared, usage=None, **chosen
    ):
        self.clock = Clock()
        self.folder = folder
        where = parse(place)
        self.objects = opening.opened(where, endpoint=os.environ.get("AWS_ENDPOINT_URL", ""), patience_s=patience_s)
        (folder / "files").mkdir(parents=True)
        (folder / "files" / "upload.secret").write_bytes(SECRET)

        def in_memory(quota, account):
            return MemoryUsage(Ledger(*quota, account), self.clock)

        def make(spool, names):
            self.usage = (usage or in_memory)(Quota(Size(blocks * BLOCK, 1000), share), names.account)
            self.store = bucket.Bucket(
                self.objects,
                spool,
                self.usage,
                ttl_s=30 * DAY_S,
                check=lambda: opening.check(self.objects, where),
                lock=lock,
                clock=self.clock,
            )
            return self.store

        self.files = Files(Settings(data_dir=folder, **chosen), store=make)
        self.files.disk.prepare()

    async def upload(self, data, owner="alice", content_type="image/jpeg", lifecycle=None):
        """Upload a file; return its name."""
        upload = self.permit(owner, content_type, lifecycle)
        await self.files.receive(upload, stream(data), len(data))
        return upload.name

    def permit(self, owner="alice", content_type="image/jpeg", lifecycle=None):
        return self.files.permit(content_type, "a.bin", owner, lifecycle or Lifecycle())

    async def content(self, name):
        """The bytes of a file; None if there is none."""
        stored = await self.files.find(name)
        return None if stored is None else await self.files.read(stored)

    async def everything(self):
        """Paths of all objects."""
        return {found.path async for page in self.objects.pages("") for found in page}

    def spooled(self):
        """What lies on this machine's disk."""
        return {path.name for path in self.folder.rglob("*") if path.is_file()} - {"upload.secret"}


class TogetherUsage(MemoryUsage):
    """Usage of a server which puts a part only when another one is as far."""

    def __init__(self, other, quota, account):
        super().__init__(Ledger(*quota, account))
        self._other = other

    async def reserve(self, key, size, *, newest=False):
        if key.startswith("parts/"):
            await self._other.wait()
        return await super().reserve(key, size, newest=newest)


async def stream(*chunks):
    for chunk in chunks:
        yield chunk


@pytest.fixture(params=["s3", "folder"])
def anywhere(request, tmp_path_factory, monkeypatch):
    """What `--files` says, for the two kinds of shared places."""
    if request.param == "folder":
        return f"file://{tmp_path_factory.mktemp('shared')}"
    return s3_place(request.getfixturevalue("s3"), monkeypatch)


def s3_place(s3, monkeypatch):
    for name, value in {**object_store.VARIABLES, "AWS_ENDPOINT_URL": s3.url}.items():
        monkeypatch.setenv(name, value)
    return s3.bucket()


@pytest.fixture
def boxes(tmp_path, anywhere):
    """Two servers over one place."""
    return Box(tmp_path / "one", anywhere), Box(tmp_path / "two", anywhere)


# --- what servers share ------------------------------------------------------------------------------------------


async def test_what_one_server_got_another_reads_with_all_that_is_said_of_it(boxes):
    one, two = boxes
    acl = Acl("hide")
    name = await one.upload(b"text", content_type="text/plain", lifecycle=Lifecycle(60, acl))

    stored = await two.files.find(name)

    assert (await two.files.read(stored), stored.size) == (b"text", 4)
    assert (stored.meta.owner, stored.meta.acl, stored.meta.file_name) == ("alice", acl, "a.bin")
    assert stored.expires - stored.created == pytest.approx(60, abs=2)
    assert one.spooled() == two.spooled() == set()


async def test_a_result_of_one_server_is_an_input_of_another(boxes):
    one, two = boxes
    name = await one.files.save(JPEG, "image/jpeg", owner="alice", durable=True)

    stored = await two.files.local(f"https://v3.fal.media/files/{name}", "alice")

    assert await two.files.read(stored) == JPEG


async def test_what_one_server_permits_and_links_to_another_takes_and_serves(tmp_path, anywhere, monkeypatch):
    """The servers have one secret between them, as a file that was copied."""
    monkeypatch.setitem(app_client.CHOSEN, "files", anywhere)
    folders = [tmp_path / "one", tmp_path / "two"]
    for folder in folders:
        (folder / "files").mkdir(parents=True)
        (folder / "files" / "upload.secret").write_bytes(SECRET)
    async with (
        app_client.serving(folders[0], files=Files) as one,
        app_client.serving(folders[1], files=Files) as two,
    ):
        urls = (await one.call("POST", "/rest/storage/upload/initiate", body={"content_type": "image/jpeg"})).json()
        put = await two.call("PUT", urls["upload_url"], body=JPEG)
        upload = await one.call("GET", urls["file_url"], headers={"range": "bytes=2-3"})
        answer = await one.call("POST", app_client.RUN, body={**app_client.INPUT, "sync_mode": False})
        result = await two.call("GET", answer.json()["images"][0]["url"])
        again = {**app_client.INPUT, "image_url": urls["file_url"]}
        used = await two.call("POST", app_client.RUN, body=again)

    assert (put.status, upload.status, upload.body) == (200, 206, JPEG[2:4])
    assert (result.body, used.status) == (app_client.JPEG, 200)


@pytest.mark.parametrize("size", [0, 1, bucket._SMALL_BYTES, bucket._SMALL_BYTES + 1, 2 * CHUNK_BYTES + 7])
async def test_a_file_of_any_size_is_whole(boxes, size):
    one, two = boxes
    data = os.urandom(size)

    name = await one.upload(data)

    assert await two.content(name) == data


async def test_parts_may_reach_different_servers(boxes):
    upload, data = boxes[0].permit(), [os.urandom(CHUNK_BYTES + 3), os.urandom(5), os.urandom(CHUNK_BYTES)]
    etags = {
        number: await boxes[number % 2].files.receive_part(upload, number, stream(data[number - 1]), None)
        for number in (3, 1, 2)
    }

    await boxes[0].files.complete(upload, etags)
    await boxes[1].files.complete(upload, etags)

    assert await boxes[1].content(upload.name) == b"".join(data)
    assert not {path for path in await boxes[0].everything() if path.startswith("parts/")}


async def test_parts_that_reach_two_servers_at_once_are_together_no_larger_than_an_upload_may_be(tmp_path, anywhere):
    usage = functools.partial(TogetherUsage, asyncio.Barrier(2))
    boxes = [Box(tmp_path / name, anywhere, usage=usage, max_upload_bytes=500) for name in ("one", "two")]
    upload = boxes[0].permit()
    parts = [box.files.receive_part(upload, at, stream(bytes(300)), None) for at, box in enumerate(boxes, 1)]
    etags = await asyncio.gather(*parts)

    with pytest.raises(PlainError) as whole:
        await boxes[0].files.receive(boxes[0].permit(), stream(bytes(600)), None)
    with pytest.raises(PlainError) as caught:
        await boxes[0].files.complete(upload, dict(enumerate(etags, 1)))

    assert (caught.value.status, caught.value.body) == (413, whole.value.body)
    assert [path.partition("/")[0] for path in await boxes[0].everything()] == ["expires"]
    assert (boxes[0].files.used, boxes[0].spooled()) == (Size(0, 0), set())


async def test_a_part_that_replaces_another_drops_only_what_it_saw(boxes):
    one, two = boxes
    upload = one.permit()
    await one.files.receive_part(upload, 1, stream(b"damaged"), None)
    etags = await asyncio.gather(*[box.files.receive_part(upload, 1, stream(b"whole"), None) for box in boxes])

    await two.files.complete(upload, {1: etags[0]})

    assert await one.content(upload.name) == b"whole"


async def test_a_file_without_its_metadata_is_none(boxes):
    one, two = boxes
    name = await one.upload(JPEG)
    await one.objects.delete(f"stored/{name[:2]}/{name}.meta.json")

    assert await two.content(name) is None


async def test_a_deleted_file_is_gone_everywhere_and_leaves_a_marker_alone(boxes):
    one, two = boxes
    name = await one.upload(JPEG)

    await two.files.delete(f"https://any/files/{name}")

    assert await one.content(name) is None
    assert [path.partition("/")[0] for path in await one.everything()] == ["expires"]


# --- expiry ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("which", [0, 1])
async def test_what_has_expired_is_swept_by_either_server(boxes, which):
    short = await boxes[0].upload(JPEG, lifecycle=Lifecycle(60))
    long = await boxes[0].upload(JPEG)
    for box in boxes:
        box.clock.ahead = 2 * 3600.0

    before = await boxes[1 - which].content(short)
    await boxes[which].store.sweep()

    assert before is None
    assert await boxes[1 - which].content(long) == JPEG
    assert not {path for path in await boxes[0].everything() if short in path}


async def test_two_sweeps_at_once_do_no_harm(boxes):
    names = [await boxes[0].upload(JPEG, lifecycle=Lifecycle(60)) for _ in range(5)]
    for box in boxes:
        box.clock.ahead = 2 * 3600.0

    await asyncio.gather(*[box.store.sweep() for box in boxes])

    assert await boxes[0].everything() == set()
    assert [await boxes[1].content(name) for name in names] == [None] * 5


async def test_who_has_not_the_lock_sweeps_nothing(tmp_path, anywhere):
    @expiry.asynccontextmanager
    async def taken():
        yield False

    box = Box(tmp_path, anywhere, lock=taken)
    await box.upload(JPEG, lifecycle=Lifecycle(60))
    before = await box.everything()
    box.clock.ahead = 2 * 3600.0

    await box.store.sweep()

    assert await box.everything() == before


async def test_parts_of_an_upload_that_was_never_completed_go_after_a_day(boxes):
    one, two = boxes
    await one.files.receive_part(one.permit(), 1, stream(b"part"), None)

    two.clock.ahead = DAY_S - 3600
    await two.store.sweep()
    kept = {path.partition("/")[0] for path in await one.everything()}
    two.clock.ahead = DAY_S + 3600
    await two.store.sweep()

    assert (kept, await one.everything()) == ({"parts", "expires"}, set())


async def test_a_marker_of_an_earlier_try_ends_nothing_that_lives(boxes):
    one, _ = boxes
    upload = one.permit(lifecycle=Lifecycle(60))
    await one.files.receive(upload, stream(JPEG), None)
    one.clock.ahead = 3 * 3600.0  # expired, and stored again before a sweep
    await one.files.receive(upload, stream(JPEG), None)

    await one.store.sweep()

    assert await one.content(upload.name) == JPEG


async def test_what_a_kill_left_half_written_in_a_folder_goes_with_its_marker(tmp_path, tmp_path_factory):
    folder = tmp_path_factory.mktemp("shared")
    box = Box(tmp_path, f"file://{folder}")
    name = await box.upload(JPEG, lifecycle=Lifecycle(60))
    (folder / "stored" / name[:2] / name).rename(folder / "stored" / name[:2] / f"{name}#1")
    box.clock.ahead = 2 * 3600.0

    await box.store.sweep()

    assert [path for path in folder.rglob("*") if path.is_file()] == []


def test_a_marker_is_in_the_hour_after_the_end():
    end = datetime.datetime(2026, 11, 28, 6, 59, 59, tzinfo=datetime.UTC).timestamp()

    assert expiry.marker("a.jpg", end) == "expires/2026-11-28T07/a.jpg"
    assert expiry.marker("a.jpg", 1e18) == "expires/9999-12-31T23/a.jpg"


# --- quota -------------------------------------------------------------------------------------------------------


async def test_a_key_beyond_its_share_is_refused_and_leaves_nothing(tmp_path, anywhere):
    box = Box(tmp_path, anywhere, blocks=20)
    names = [await box.upload(bytes(6 * BLOCK), "bad") for _ in range(3)]
    before = await box.everything()

    with pytest.raises(RequestError) as caught:
        await box.upload(bytes(6 * BLOCK), "bad")

    assert (caught.value.status, str(caught.value)) == (
        429,
        "This key's stored files are at its share; try again later",
    )
    assert (await box.everything(), box.spooled()) == (before, set())
    assert all([await box.content(name) for name in names])


async def test_for_a_key_with_less_the_oldest_of_the_heaviest_go(tmp_path, anywhere):
    box = Box(tmp_path, anywhere, blocks=20)
    names = [await box.upload(bytes(6 * BLOCK), "bad") for _ in range(3)]

    await box.upload(bytes(5 * BLOCK), "good")

    assert [await box.content(name) is not None for name in names] == [False, True, True]
    assert box.files.used == Size(17 * BLOCK, 3)


async def test_what_others_have_stored_counts_after_a_sweep(tmp_path, anywhere):
    one, two = Box(tmp_path / "one", anywhere), Box(tmp_path / "two", anywhere)
    await one.upload(bytes(6 * BLOCK))
    await one.files.receive_part(one.permit(), 1, stream(bytes(3 * BLOCK)), None)

    await two.store.sweep()

    assert two.files.used == one.files.used == Size(9 * BLOCK, 2)


async def test_parts_that_come_together_all_count(tmp_path, anywhere):
    box = Box(tmp_path, anywhere)
    upload = box.permit()

    await asyncio.gather(*[box.files.receive_part(upload, 1 + at, stream(bytes(BLOCK)), None) for at in range(3)])

    assert box.files.used == Size(3 * BLOCK, 3)


async def test_beyond_a_smaller_quota_the_oldest_go(tmp_path, anywhere):
    one, two = Box(tmp_path / "one", anywhere), Box(tmp_path / "two", anywhere, blocks=10)
    names = []
    for _ in range(3):
        names.append(await one.upload(bytes(4 * BLOCK)))
        await asyncio.sleep(1.1)  # a store's times are whole seconds
    two.clock.ahead = 2 * 3600.0

    await two.store.sweep()

    assert [await two.content(name) is not None for name in names] == [False, True, True]


# --- a store that is away ----------------------------------------------------------------------------------------


FAULTS = ["refuse", "hang", 500, 503, 507]


@pytest.fixture
async def proxy(s3, monkeypatch):
    """What stands between servers and the S3 server."""
    async with fault_proxy(s3.port) as found:
        for name, value in {**object_store.VARIABLES, "AWS_ENDPOINT_URL": found.url}.items():
            monkeypatch.setenv(name, value)
        yield found


@pytest.fixture
def behind(tmp_path, s3, proxy):
    """A server whose store is behind the proxy."""
    return Box(tmp_path, s3.bucket(), patience_s=PATIENCE_S)


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("what", ["upload", "result", "part", "join", "read"])
async def test_within_three_seconds_callers_are_told_to_try_again(behind, proxy, fault, what):
    upload = behind.permit()
    etag = await behind.files.receive_part(upload, 1, stream(JPEG), None)
    before = behind.files.used
    acts = {
        "upload": lambda: behind.upload(JPEG),
        "result": lambda: behind.files.save(JPEG, "image/jpeg", durable=True),
        "part": lambda: behind.files.receive_part(upload, 2, stream(JPEG), None),
        "join": lambda: behind.files.complete(upload, {1: etag}),
        "read": lambda: behind.files.find(upload.name),
    }
    proxy.fault = fault
    began = time.monotonic()

    with pytest.raises(RequestError) as caught:
        await acts[what]()

    assert time.monotonic() - began < 3.0
    assert (caught.value.status, caught.value.error_type) == (429, "concurrent_requests_limit")
    assert (behind.spooled(), behind.files.used) == (set(), before)


@pytest.mark.parametrize("fault", ["hang", 503])
async def test_a_large_upload_whose_store_fails_half_way_does_not_hang(behind, proxy, fault):
    proxy.matches = lambda line: "partNumber=2" in line
    proxy.fault = fault
    began = time.monotonic()

    with pytest.raises(RequestError) as caught:
        await behind.upload(bytes(3 * CHUNK_BYTES))

    assert time.monotonic() - began < 8.0
    assert (caught.value.status, behind.spooled(), behind.files.used) == (429, set(), Size(0, 0))


async def test_a_slow_store_is_waited_for_and_no_longer_than_its_time(behind, proxy):
    proxy.delay = 0.3
    name = await behind.upload(JPEG)
    proxy.delay = 1.5
    began = time.monotonic()

    with pytest.raises(RequestError):
        await behind.files.save(JPEG, "image/jpeg")

    assert time.monotonic() - began < 3.0
    proxy.delay = 0.0
    assert await behind.content(name) == JPEG


async def test_what_is_said_of_it_is_once_and_names_no_file(behind, proxy, caplog):
    proxy.fault = 503
    for _ in range(2):
        with pytest.raises(RequestError):
            await behind.upload(JPEG)
    since = behind.objects.away_since
    proxy.fault = None
    await behind.upload(JPEG)

    assert [message.partition(":")[0].partition(",")[0] for message in caplog.messages] == [
        "the file store is away",
        "the file store is back",
    ]
    assert "503" in caplog.messages[0]
    assert "stored/" not in caplog.text
    assert since == pytest.approx(time.time(), abs=30)
    assert behind.objects.away_since is None


async def test_the_whole_server_answers_while_its_store_is_away(tmp_path, s3, proxy, monkeypatch):
    monkeypatch.setitem(app_client.CHOSEN, "files", s3.bucket())
    async with app_client.serving(tmp_path, files=Files) as web:
        proxy.fault = "refuse"
        inline = await web.call("POST", app_client.RUN, body=app_client.INPUT)
        stored = await web.call("POST", app_client.RUN, body={**app_client.INPUT, "sync_mode": False})
        upload = await web.call("POST", "/cdn/files/upload", body=JPEG)

    assert [answer.status for answer in (inline, stored, upload)] == [200, 429, 429]
    assert stored.json()["error_type"] == upload.json()["error_type"] == "concurrent_requests_limit"
    assert upload.headers["retry-after"] == "1"


async def test_a_job_whose_result_can_not_be_stored_goes_back_and_ends_well(tmp_path, s3, proxy, monkeypatch):
    monkeypatch.setitem(app_client.CHOSEN, "files", s3.bucket())
    async with app_client.serving(tmp_path, files=Files) as web:
        proxy.fault = 503
        body = {**app_client.INPUT, "sync_mode": False}
        job = (await web.call("POST", app_client.QUEUE, body=body)).json()["request_id"]
        for _ in range(2):
            await asyncio.wait_for(web.engines.running.get(), 20)
        away = (await web.call("GET", f"{app_client.QUEUE}/requests/{job}/status")).json()["status"]
        proxy.fault = None
        await asyncio.wait_for(web.call("GET", f"{app_client.QUEUE}/requests/{job}/status/stream"), 20)
        result = (await web.call("GET", f"{app_client.QUEUE}/requests/{job}")).json()
        picture = await web.call("GET", result["images"][0]["url"])

    assert away != "COMPLETED"
    assert picture.body == app_client.JPEG


# --- refused at the start ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("ftp://host/x", "files: 'ftp://host/x' is no place for files. Hint: s3://bucket/prefix, file:///folder on a"),
        ("/mnt/shared", "files: '/mnt/shared' is no place for files. Hint: s3://"),
        ("s3://", "files: '' is no name of a bucket. Hint: s3://bucket/prefix"),
        ("s3://Big_Bucket", "files: 'Big_Bucket' is no name of a bucket"),
        ("s3://key:secret@bucket/x", "files: s3://… may hold no password"),
        ("s3://bucket/x?region=y", "files: s3://bucket/x?region=y has more than a bucket and a prefix"),
        ("s3://bucket/a//b", "files: 'a//b' is no prefix"),
        ("s3://bucket/a/../b", "files: 'a/../b' is no prefix"),
        ("file://mnt/shared", "files: file://mnt/shared names no folder. Hint: file:///mnt/shared, three slashes"),
        ("file:///", "files: file:/// names no folder"),
        ("file:///no/such/mount", "files: there is no folder /no/such/mount. Hint: mount it"),
        ("s3://[", "files: Invalid IPv6 URL. Hint: s3://bucket/prefix"),
    ],
)
def test_what_is_no_place_is_refused(tmp_path, text, message):
    with pytest.raises(SettingsError) as caught:
        file_store(Settings(data_dir=tmp_path, files=text))

    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)
    assert "secret" not in str(caught.value)


def test_without_the_extra_a_hint_says_what_to_install(tmp_path, monkeypatch):
    for name in [name for name in sys.modules if name.startswith("server.storage.bucket.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delattr(server.storage.bucket, "opening")
    monkeypatch.setitem(sys.modules, "obstore", None)

    with pytest.raises(SettingsError, match=r"s3://bucket needs obstore.*Hint: pip install 'fourstep\[cluster\]'"):
        file_store(Settings(data_dir=tmp_path, files="s3://bucket"))


async def started(tmp_path, place):
    """What the start of a server says."""
    files = object_store.files_in(tmp_path, Files, place)
    with pytest.raises(SettingsError) as caught:
        await files.start()
    await files.close()
    assert "\n" not in str(caught.value)
    return str(caught.value)


async def test_a_bucket_that_is_not_there_is_said_at_the_start(tmp_path, s3, proxy):
    said = await started(tmp_path, "s3://no-such-bucket/x")

    assert said == (
        "files: there is no bucket no-such-bucket. Hint: make it, or correct --files, AWS_ENDPOINT_URL or AWS_REGION"
    )


@pytest.mark.parametrize(
    ("method", "right"), [("PUT /", "store"), ("GET /bucket", "read"), ("list-type", "list"), ("POST /", "delete")]
)
async def test_a_right_that_is_missing_is_named_at_the_start(tmp_path, s3, proxy, method, right):
    place = s3.bucket()
    proxy.fault = 403
    proxy.matches = lambda line: method in line and ("list-type" in line) == (right == "list")

    said = await started(tmp_path, place)

    assert said == (
        f"files: no right to {right} in {place}. Hint: let whoever has AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
        " store, read, list and delete there"
    )


async def test_a_folder_that_can_not_be_written_is_said_at_the_start(tmp_path):
    said = await started(tmp_path, "file:///proc/self")

    assert said == (
        "files: /proc/self can't be used (No such file or directory)."
        " Hint: let this user write there, or mount it again"
    )


@pytest.mark.parametrize("keys", [(), ("AWS_ACCESS_KEY_ID",)])
async def test_missing_credentials_are_said(tmp_path, s3, proxy, keys, monkeypatch):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    for name in keys:
        monkeypatch.setenv(name, "key")
    monkeypatch.setenv("AWS_METADATA_ENDPOINT", "http://127.0.0.1:1")

    with pytest.raises(SettingsError) as caught:
        await object_store.files_in(tmp_path, Files, s3.bucket()).start()

    assert str(caught.value).endswith("Hint: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY")


@pytest.mark.parametrize(
    ("endpoint", "message"),
    [
        ("http://192.0.2.1:9000", "is http, which shows everything. Hint: https://, or AWS_ALLOW_HTTP=true"),
        ("minio:9000", "files: the endpoint minio:9000 is no URL. Hint: AWS_ENDPOINT_URL=https://host:port"),
    ],
)
async def test_an_endpoint_that_will_not_do_is_said(tmp_path, proxy, monkeypatch, endpoint, message):
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)

    with pytest.raises(SettingsError) as caught:
        await object_store.files_in(tmp_path, Files, "s3://bucket-one").start()

    assert message in str(caught.value)


async def test_a_store_that_does_not_answer_keeps_no_server_from_its_start(tmp_path, s3, proxy, caplog):
    place = s3.bucket()
    proxy.fault = 503
    files = object_store.files_in(tmp_path, Files, place)

    await files.start()
    await files.close()

    assert "the file store is away: it answered 503" in caplog.text


# --- one machine -------------------------------------------------------------------------------------------------


def test_a_server_with_its_files_on_disk_loads_nothing_of_this():
    program = "import sys, server.app; print(*{'obstore', 'asyncpg', 'server.storage.bucket'} & {*sys.modules})"

    assert subprocess.run([sys.executable, "-c", program], capture_output=True, check=True).stdout == b"\n"
