"""Stored files: what is kept and for how long, who may upload and read, and what a kill or a full disk leaves."""

import asyncio
import errno
import os
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from server.fal import lifecycle
from server.fal.errors import FalError, InvalidInput, PlainError, RequestError
from server.fal.lifecycle import Acl, Lifecycle, Rule
from server.settings import Settings
from server.storage import upload_tokens
from server.storage.disk import FRESH_S, DiskStore
from server.storage.files import Files
from server.storage.full import StorageFull
from server.storage.layout import Layout, Meta
from server.storage.ledger import BLOCK_BYTES, NOTHING, Size
from server.storage.multipart import Parts
from server.storage.names import Names
from server.storage.store import Stored
from server.storage.upload_tokens import Upload, UploadTokens
from tests.support.stores import object_store
from tests.support.stores.object_store import PLACES

NAMES = Names(b"secret")
JPEG = b"\xff\xd8\xff\xe0 a picture"
BLOCK = BLOCK_BYTES
NAME = "0123456789abcdef0123456789abcdef.jpg"
DAY_S = 86400.0


class Clock:
    """The time, which can be put forward."""

    def __init__(self):
        import time

        self._time = time.time
        self.ahead = 0.0

    def __call__(self):
        return self._time() + self.ahead


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def disk(tmp_path, clock):
    return disk_at(tmp_path, clock)


def disk_at(folder, clock, blocks=10):
    """A store in this folder, as a server makes one at its start."""
    disk = DiskStore(folder, names=Names(b"secret"), ttl_s=DAY_S, quota=Size(blocks * BLOCK, 10_000), clock=clock)
    disk.prepare()
    return disk


def put(disk, name=NAME, data=JPEG, meta=None, seconds=None):
    """Store a file: a public picture if nothing is said."""
    draft = disk.draft(name)
    draft.write_bytes(data)
    disk.put(draft, name, meta or Meta("image/jpeg", inline=True), seconds=seconds, durable=False)


def on_disk(folder: Path) -> set[str]:
    return {path.name for path in folder.rglob("*") if path.is_file()}


# --- the disk ----------------------------------------------------------------------------------------------------


def test_a_file_is_found_again_after_a_restart(tmp_path, clock, disk):
    meta = Meta("text/plain", file_name="hello.txt", owner="alice", acl=Acl("hide", (Rule("bob", "allow"),)))
    put(disk, meta=meta)

    found = disk_at(tmp_path, clock).find(NAME)

    assert (found.path.read_bytes(), found.size, found.meta) == (JPEG, len(JPEG), meta)


def test_a_public_picture_is_one_file_on_disk(tmp_path, disk):
    put(disk)

    assert on_disk(tmp_path) == {NAME}
    assert disk.find(NAME).meta == Meta("image/jpeg", inline=True)


@pytest.mark.parametrize(("seconds", "life"), [(None, DAY_S), (60, 60), (40 * 365 * 86400, 40 * 365 * 86400)])
def test_a_file_lives_as_long_as_was_asked_and_not_a_second_longer(tmp_path, clock, disk, seconds, life):
    put(disk, seconds=seconds)

    clock.ahead = life - 1
    before = disk.find(NAME)
    clock.ahead = life + 1
    after = disk.find(NAME)

    assert (before is None, after is None) == (False, True)


def test_what_has_outlived_its_time_is_swept_with_what_was_said_of_it(tmp_path, clock, disk):
    put(disk, meta=Meta("text/plain"), seconds=60)
    other = NAME.replace("0", "f")
    put(disk, other)

    clock.ahead = 61
    disk.sweep()

    assert on_disk(tmp_path) == {other}


def test_beyond_the_quota_the_oldest_go(tmp_path, clock, disk):
    for digit in "abc":
        put(disk, digit * 32, bytes(3 * BLOCK), Meta("application/octet-stream"))

    clock.ahead = FRESH_S + 1
    disk.take(disk.draft(NAME), 2 * BLOCK)

    assert [disk.find(digit * 32) is not None for digit in "abc"] == [False, True, True]
    assert disk.used == Size(8 * BLOCK, 3)


def test_an_expired_file_that_cannot_be_deleted_keeps_no_other(tmp_path, clock, disk, caplog):
    other = NAME.replace("0", "f")
    put(disk)
    put(disk, name=other)
    stuck = disk.find(NAME).path
    stuck.unlink()
    stuck.mkdir()  # no `unlink` deletes a folder
    clock.ahead = 1e6
    disk.sweep()

    assert list((tmp_path / "stored").glob("*/*")) == [stuck]
    [warning] = caplog.messages
    assert NAME not in warning


def test_a_smaller_quota_counts_from_the_first_sweep(tmp_path, clock, disk):
    for digit in "abc":
        put(disk, digit * 32, bytes(3 * BLOCK), Meta("application/octet-stream"))

    clock.ahead = FRESH_S + 1
    smaller = disk_at(tmp_path, clock, blocks=7)
    smaller.sweep()

    assert [smaller.find(digit * 32) is not None for digit in "abc"] == [False, True, True]


def test_fresh_files_are_not_dropped_for_new_ones(disk):
    put(disk, data=bytes(9 * BLOCK))

    with pytest.raises(StorageFull):
        disk.take(disk.draft(NAME), 2 * BLOCK)

    assert disk.find(NAME)


def test_unfinished_files_count_as_used(disk):
    disk.take(disk.draft(NAME), 3 * BLOCK)
    (disk.parts / "x").mkdir()
    (disk.parts / "x" / "1").write_bytes(bytes(2 * BLOCK))

    disk.sweep()

    assert disk.used == Size(6 * BLOCK, 3)


def test_what_comes_or_goes_during_a_sweep_is_counted(disk):
    class Busy(Layout):
        def scan(self, now):
            yield from super().scan(now)
            put(disk, data=bytes(3 * BLOCK))
            disk.drop_parts("x")

    (disk.parts / "x").mkdir()
    disk.sweep()
    disk._layout = Busy(disk.parts.parent)
    disk.sweep()

    assert disk.used == Size(3 * BLOCK, 1)


def test_what_goes_during_the_first_sweep_of_a_server_is_not_counted(tmp_path, clock, disk):
    class Busy(Layout):
        def scan(self, now):
            yield from super().scan(now)
            after.delete(NAME)
            after.drop_parts("x")

    put(disk)
    (disk.parts / "x").mkdir()
    after = disk_at(tmp_path, clock)
    after._layout = Busy(disk.parts.parent)
    after.sweep()

    assert (on_disk(tmp_path), after.used) == (set(), NOTHING)


def test_a_name_that_is_taken_keeps_its_file(disk):
    put(disk, data=b"first")
    put(disk, data=b"second")

    assert disk.find(NAME).path.read_bytes() == b"first"


def test_what_was_half_written_is_gone_after_a_restart(tmp_path, clock, disk):
    disk.draft(NAME).write_bytes(b"half")

    disk_at(tmp_path, clock)

    assert on_disk(tmp_path) == set()


def test_the_word_on_a_file_that_never_came_is_swept(tmp_path, clock, disk):
    put(disk, meta=Meta("text/plain"))
    disk.find(NAME).path.unlink()

    disk.sweep()
    fresh = on_disk(tmp_path)
    clock.ahead = FRESH_S + 1
    disk.sweep()

    assert (fresh, on_disk(tmp_path)) == ({f"{NAME}.meta.json"}, set())


def test_a_private_file_is_never_there_without_the_word_that_it_is(tmp_path, disk, monkeypatch):
    def killed(_, target):
        if not target.name.endswith(".meta.json"):
            raise KeyboardInterrupt

    monkeypatch.setattr(Path, "rename", killed)

    with pytest.raises(KeyboardInterrupt):
        put(disk, meta=Meta("image/jpeg", inline=True, acl=Acl("hide")))

    assert disk.find(NAME) is None


@pytest.mark.parametrize(
    "name",
    [
        "",
        ".",
        "..",
        "../upload.secret",
        "/etc/passwd",
        NAME.upper(),
        f"{NAME}.meta.json",
        f"{NAME}/x",
        "a" * 31,
        "a" * 33,
    ],
)
def test_what_is_no_name_of_ours_is_not_looked_for(disk, name):
    put(disk, meta=Meta("text/plain"))

    assert disk.find(name) is None


# --- permission to upload ----------------------------------------------------------------------------------------


def test_a_token_says_all_there_is_to_know_of_an_upload():
    upload = upload_tokens.permit(
        NAMES, "image/png", "a.png", "alice", Lifecycle(60, Acl("forbid", (Rule("bob", "allow"),)))
    )
    tokens = UploadTokens(b"secret")

    assert tokens.redeem(tokens.issue(upload), upload.name) == upload


@pytest.mark.parametrize(
    "change", [lambda t: t[:-1], lambda t: "x" + t, lambda t: "", lambda t: "ä.b", lambda t: t + "."]
)
def test_a_changed_token_is_refused(change):
    upload = upload_tokens.permit(NAMES, "image/png", "", "alice", Lifecycle())
    tokens = UploadTokens(b"secret")

    with pytest.raises(PlainError) as caught:
        tokens.redeem(change(tokens.issue(upload)), upload.name)

    assert caught.value.status == 403


def test_a_token_is_for_one_name_one_secret_and_some_time():
    upload = upload_tokens.permit(NAMES, "image/png", "", "alice", Lifecycle())
    late = Upload(upload.name, "image/png", "", "alice", Lifecycle(), until=1)
    tokens = UploadTokens(b"secret")

    for token, name in [
        (tokens.issue(upload), NAME),
        (UploadTokens(b"other").issue(upload), upload.name),
        (tokens.issue(late), late.name),
    ]:
        with pytest.raises(PlainError):
            tokens.redeem(token, name)


@pytest.mark.parametrize(
    ("content_type", "file_name", "ending"),
    [
        ("image/jpeg", "a.png", ".jpg"),
        ("image/webp", "", ".webp"),
        ("text/plain", "hello.TXT", ".txt"),
        ("text/plain", "../../etc/passwd", ""),
        ("application/zip", "a.tar.gz", ".gz"),
        ("text/plain", "a.meta.json/../x.ä", ""),
        ("", "noending", ""),
    ],
)
def test_names_are_random_with_an_ending_for_people(content_type, file_name, ending):
    names = {upload_tokens.permit(NAMES, content_type, file_name, "", Lifecycle()).name for _ in range(100)}

    assert len(names) == 100
    assert {name[44:] for name in names} == {ending}


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("hello.txt", "hello.txt"),
        ("../../etc/passwd", "passwd"),
        ("C:\\Users\\me\\a.png", "a.png"),
        ("a\r\nSet-Cookie: b.png", "aSet-Cookie: b.png"),
        ("ä 🎉.png", "ä 🎉.png"),
        ("\ud800.png", "png"),
        ("..", ""),
        ("x" * 500, "x" * 200),
    ],
)
def test_a_file_name_is_the_printable_end_of_a_path(given, kept):
    assert upload_tokens.clean_name(given) == kept


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("image/svg+xml", "image/svg+xml"),
        ("text/plain; charset=utf-8", "text/plain; charset=utf-8"),
        ("", "application/octet-stream"),
        ("text", "application/octet-stream"),
        ("text/html\r\nX: y", "application/octet-stream"),
        ("text/" + "x" * 300, "application/octet-stream"),
        ("*/*", "application/octet-stream"),
    ],
)
def test_a_content_type_is_one_or_says_nothing(given, kept):
    assert upload_tokens.clean_type(given) == kept


# --- lifecycles --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("header", "wish"),
    [
        (None, Lifecycle()),
        ("", Lifecycle()),
        ("{}", Lifecycle()),
        ('{"expiration_duration_seconds": 3600}', Lifecycle(3600)),
        ('{"expiration_duration_seconds": 3600.0}', Lifecycle(3600)),
        ('{"expiration_duration_seconds": null, "allow_io_storage": false}', Lifecycle()),
        ('{"expiration_duration_seconds": 0}', Lifecycle()),
        ('{"initial_acl": {"default": "hide"}}', Lifecycle(acl=Acl("hide"))),
        (
            '{"initial_acl": {"default": "forbid", "rules": [{"user": "bob", "decision": "allow"}]}}',
            Lifecycle(acl=Acl("forbid", (Rule("bob", "allow"),))),
        ),
        (
            '{"initial_acl": {"rules": [{"user": "bob", "decision": "hide"}]}}',
            Lifecycle(acl=Acl(rules=(Rule("bob", "hide"),))),
        ),
    ],
)
def test_a_lifecycle_is_read_as_the_clients_write_it(header, wish):
    assert lifecycle.parse(header) == wish


@pytest.mark.parametrize(
    "header",
    [
        "1h",
        "[]",
        "{",
        '{"expiration_duration_seconds": "3600"}',
        '{"expiration_duration_seconds": -1}',
        '{"expiration_duration_seconds": 1e300}',
        '{"expiration_duration_seconds": true}',
        '{"initial_acl": "hide"}',
        '{"initial_acl": {"default": "private"}}',
        '{"initial_acl": {"rules": [{"user": "bob"}]}}',
        '{"x": "' + "x" * 5000 + '"}',
    ],
)
def test_a_malformed_lifecycle_is_refused(header):
    with pytest.raises(RequestError) as caught:
        lifecycle.parse(header)

    assert caught.value.status == 400


@pytest.mark.parametrize(
    ("acl", "reader", "decision"),
    [
        (Acl(), None, "allow"),
        (Acl("forbid"), None, "forbid"),
        (Acl("hide"), "bob", "hide"),
        (Acl("hide"), "alice", "allow"),
        (Acl("hide", (Rule("bob", "allow"),)), "bob", "allow"),
        (Acl("allow", (Rule("bob", "forbid"),)), "bob", "forbid"),
        (Acl("allow", (Rule("bob", "forbid"),)), None, "allow"),
        (Acl("allow", (Rule("alice", "forbid"),)), "alice", "allow"),
    ],
)
def test_the_owner_may_read_then_rules_count_then_the_default(acl, reader, decision):
    assert acl.decide(reader, owner="alice") == decision


# --- results and local pictures ----------------------------------------------------------------------------------


@pytest.fixture
async def files(tmp_path, place):
    """Files, wherever they may lie."""
    found = files_in(tmp_path, place)
    await found.start()
    yield found
    await found.close()


@pytest.fixture
async def here(tmp_path):
    """Files on this machine's disk."""
    found = files_in(tmp_path)
    await found.start()
    yield found
    await found.close()


def pytest_generate_tests(metafunc):
    """Name the places."""
    if "place" in metafunc.fixturenames:
        metafunc.parametrize("place", PLACES, indirect=True)


def files_in(folder, place="", **chosen):
    return object_store.files_in(folder, Files, place, **chosen)


async def content(files, name):
    """The bytes of a stored file; None if there is none."""
    stored = await files.find(name)
    return None if stored is None else await files.read(stored)


pytestmark = pytest.mark.anyio

BASES = [
    "http://localhost:8000/cdn/files/",
    "https://box.example/fal/cdn/files/",
    "https://v3.fal.media/files/",
    "https://v3b.fal.media/files/",
    "https://fal.media/files/",
]


@pytest.mark.parametrize("base", BASES)
async def test_a_url_of_ours_is_opened_on_disk(files, base):
    name = await files.save(JPEG, "image/jpeg", owner="alice")

    assert await files.read(await files.local(base + name)) == JPEG


@pytest.mark.parametrize(
    "url",
    ["", "data:,", "https://example.com/a.png", f"https://v3.fal.media/files/{NAME}", "http://[::1", "/cdn/files/../x"],
)
async def test_any_other_url_is_not_ours(files, url):
    assert await files.local(url) is None


async def test_a_file_of_the_public_url_that_is_gone_is_not_fetched_from_ourselves(files):
    with pytest.raises(InvalidInput) as caught:
        await files.local(f"https://box.example/fal/cdn/files/{NAME}")

    assert caught.value.error_type == "file_download_error"


@pytest.mark.parametrize(("reader", "found"), [("alice", True), ("bob", False), (None, False)])
async def test_a_private_picture_is_its_owners_to_use(files, reader, found):
    name = await files.save(JPEG, "image/jpeg", owner="alice", lifecycle='{"initial_acl": {"default": "hide"}}')

    assert (await files.local(f"https://v3.fal.media/files/{name}", reader) is not None) == found


def stored_at(path):
    return Stored(NAME, path, 0, 0.0, 0.0, Meta("image/jpeg"))


@pytest.mark.parametrize("size", [0, 1, 45_000, 1 << 18, (1 << 18) + 1])
@pytest.mark.parametrize("in_memory", [True, False], ids=["in memory", "on disk"])
async def test_a_file_is_read_whole_wherever_it_lies(here, tmp_path, size, in_memory):
    path = tmp_path / "file"
    path.write_bytes(os.urandom(size))
    if not in_memory:
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)

    data = await here.read(stored_at(path))

    assert data == path.read_bytes()


async def test_a_file_that_has_gone_meanwhile_is_not_found(here, tmp_path):
    with pytest.raises(FileNotFoundError):
        await here.read(stored_at(tmp_path / "gone"))


async def test_a_file_larger_than_a_picture_may_be_is_not_read(tmp_path, place):
    small = files_in(tmp_path, place, max_image_bytes=10)
    await small.start()
    name = await small.save(JPEG, "image/jpeg")
    await small.close()

    with pytest.raises(InvalidInput) as caught:
        await small.local(f"https://v3.fal.media/files/{name}")

    assert caught.value.body["detail"][0]["ctx"] == {"max_size": 10}


@pytest.mark.parametrize("durable", [True, False])
async def test_a_result_is_stored_for_as_long_as_its_caller_wished(files, durable):
    header = '{"expiration_duration_seconds": 60}'

    name = await files.save(JPEG, "image/jpeg", lifecycle=header, durable=durable)

    stored = await files.find(name)
    assert await files.read(stored) == JPEG
    assert stored.expires - stored.created == pytest.approx(60, abs=1)


# --- streams -----------------------------------------------------------------------------------------------------


async def stream(*chunks):
    for chunk in chunks:
        if isinstance(chunk, Exception):
            raise chunk
        yield chunk


def an_upload(content_type="application/zip"):
    return upload_tokens.permit(NAMES, content_type, "a.zip", "alice", Lifecycle())


async def test_an_upload_is_never_held_in_memory(files):
    upload, chunk = an_upload(), bytes(65536)
    tracemalloc.start()

    await files.receive(upload, stream(*[chunk] * 320), None)

    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert (await files.find(upload.name)).size == 20 * 1024 * 1024
    assert peak < 7 * 1024 * 1024


@pytest.mark.parametrize(
    ("chunks", "announced", "status"),
    [
        ([bytes(600)], 600, 413),
        ([bytes(300), bytes(300)], None, 413),
        ([bytes(100), RequestError("client_disconnected", "left")], 500, 499),
        ([bytes(100), OSError(errno.ENOSPC, "full")], 500, 429),
    ],
)
async def test_an_upload_that_fails_leaves_nothing(tmp_path, place, chunks, announced, status):
    files = files_in(tmp_path, place, max_upload_bytes=500)
    files.disk.prepare()
    upload = an_upload()

    with pytest.raises(FalError) as caught:
        await files.receive(upload, stream(*chunks), announced)
    await files.close()

    assert caught.value.status == status
    assert (await files.find(upload.name), on_disk(tmp_path)) == (None, {"upload.secret"})


async def test_uploads_beyond_the_quota_are_refused(tmp_path, place):
    files = files_in(tmp_path, place, files_quota_bytes=10 * BLOCK)
    files.disk.prepare()
    await files.receive(an_upload(), stream(bytes(8 * BLOCK)), 8 * BLOCK)

    with pytest.raises(RequestError) as caught:
        await files.receive(an_upload(), stream(bytes(3 * BLOCK)), 3 * BLOCK)
    await files.close()

    assert caught.value.status == 429


async def test_an_upload_of_no_announced_length_is_refused_where_it_passes_the_quota(tmp_path):
    files = files_in(tmp_path, files_quota_bytes=3 << 20)
    files.disk.prepare()

    with pytest.raises(RequestError) as caught:
        await files.receive(an_upload(), stream(*[bytes(1 << 20)] * 8), None)
    await files.close()

    assert (caught.value.status, files.disk.used, on_disk(tmp_path)) == (429, Size(0, 0), {"upload.secret"})


async def test_uploads_at_once_share_the_quota(tmp_path):
    files = files_in(tmp_path, files_quota_bytes=10 * BLOCK)
    files.disk.prepare()
    both = [files.receive(an_upload(), stream(bytes(6 * BLOCK)), 6 * BLOCK) for _ in range(2)]

    ends = await asyncio.gather(*both, return_exceptions=True)
    await files.close()

    assert sum(isinstance(end, RequestError) for end in ends) >= 1
    assert files.disk.used.bytes <= 7 * BLOCK


async def test_an_upload_that_is_cancelled_counts_no_more(files):
    written = asyncio.Event()

    async def endless():
        yield bytes(2 << 20)
        written.set()
        await asyncio.Event().wait()

    receiving = asyncio.create_task(files.receive(an_upload(), endless(), None))
    await written.wait()
    counted = files.disk.used
    receiving.cancel()
    await asyncio.wait({receiving})

    assert (counted, files.disk.used) == (Size(2 << 20, 1), Size(0, 0))


def test_nothing_is_counted_for_a_draft_that_was_dropped(disk):
    draft = disk.draft(NAME)
    disk.drop(draft)

    with pytest.raises(StorageFull):
        disk.take(draft, 100)

    assert disk.used == Size(0, 0)


@pytest.mark.parametrize(("quota", "joined"), [(12, False), (14, True)])
async def test_putting_parts_together_needs_room_for_both(tmp_path, quota, joined):
    files = files_in(tmp_path, files_quota_bytes=quota * BLOCK)
    files.disk.prepare()
    upload = an_upload()
    etags = {number: await files.receive_part(upload, number, stream(bytes(3 * BLOCK)), None) for number in (1, 2)}

    ends = await asyncio.gather(files.complete(upload, etags), return_exceptions=True)
    await files.close()

    assert isinstance(ends[0], RequestError) is not joined
    assert (await files.find(upload.name) is not None, files.disk.used.bytes) == (joined, 7 * BLOCK)


async def test_a_part_that_comes_again_takes_the_place_of_the_one_before(tmp_path):
    files = files_in(tmp_path, max_upload_bytes=500)
    files.disk.prepare()
    upload = an_upload()
    for size in (300, 400, 100):
        await files.receive_part(upload, 1, stream(bytes(size)), size)
    await files.receive_part(upload, 2, stream(bytes(400)), 400)
    used, kept = files.disk.used, on_disk(tmp_path)

    with pytest.raises(PlainError) as caught:
        await files.receive_part(upload, 1, stream(bytes(200)), 200)
    await files.close()

    assert (used, kept) == (Size(3 * BLOCK, 3), {"upload.secret", "1", "2"})
    assert (caught.value.status, files.disk.used) == (413, used)


async def test_the_parts_that_came_before_a_restart_count(tmp_path, place):
    before, after = (files_in(tmp_path, place, max_upload_bytes=500) for _ in range(2))
    await before.start()
    upload = an_upload()
    await before.receive_part(upload, 1, stream(bytes(300)), 300)
    await before.close()
    await after.start()

    with pytest.raises(PlainError) as caught:
        await after.receive_part(upload, 2, stream(bytes(300)), 300)
    await after.close()

    assert caught.value.status == 413


async def test_parts_that_are_together_larger_than_an_upload_may_be_end_in_413_and_leave_nothing(tmp_path, place):
    before, after = (files_in(tmp_path, place, max_upload_bytes=limit) for limit in (600, 500))
    for each in (before, after):
        each.disk.prepare()
    upload = an_upload()
    etags = {number: await before.receive_part(upload, number, stream(bytes(300)), 300) for number in (1, 2)}

    with pytest.raises(PlainError) as caught:
        await after.complete(upload, etags)

    assert (caught.value.status, str(caught.value)) == (413, "The file is larger than 500 bytes")
    assert (after.used, on_disk(tmp_path) - {"upload.secret"}) == (Size(0, 0), set())
    with pytest.raises(PlainError, match="Part 1 was not uploaded"):
        await after.complete(upload, etags)


async def test_parts_are_joined_by_number_in_whatever_order_they_came(files):
    upload = an_upload()
    etags = {number: await files.receive_part(upload, number, stream(b"%d" % number), None) for number in (11, 2, 1)}

    await files.complete(upload, etags)

    assert await content(files, upload.name) == b"1211"


async def test_of_a_part_that_came_twice_the_one_listed_counts(files):
    upload = an_upload()
    await files.receive_part(upload, 1, stream(b"damaged"), None)
    etag = await files.receive_part(upload, 1, stream(b"whole"), None)

    await files.complete(upload, {1: etag})

    assert await content(files, upload.name) == b"whole"


async def test_completing_again_changes_nothing(files):
    upload = an_upload()
    etags = {1: await files.receive_part(upload, 1, stream(b"whole"), None)}

    await files.complete(upload, etags)
    await files.complete(upload, etags)

    assert await content(files, upload.name) == b"whole"


@pytest.mark.parametrize(
    "etags", [{}, {2: "0" * 32}, {1: "0" * 32}, {1: "../../upload.secret"}, {1: ""}, {1: "ä" * 200}]
)
async def test_parts_that_are_not_here_are_an_error(files, etags):
    upload = an_upload()
    await files.receive_part(upload, 1, stream(b"whole"), None)

    with pytest.raises(PlainError) as caught:
        await files.complete(upload, etags)

    assert (caught.value.status, await files.find(upload.name)) == (400, None)


async def test_parts_together_may_not_be_larger_than_an_upload(tmp_path, place):
    files = files_in(tmp_path, place, max_upload_bytes=500)
    await files.start()
    upload = an_upload()
    await files.receive_part(upload, 1, stream(bytes(300)), 300)

    with pytest.raises(PlainError) as caught:
        await files.receive_part(upload, 2, stream(bytes(300)), 300)
    await files.close()

    assert caught.value.status == 413


async def test_the_sweeper_goes_on_after_a_failure_that_it_did_not_foresee(tmp_path, caplog):
    files = Files(Settings(data_dir=tmp_path), sweep_s=0.001)
    sweeps, again = [], asyncio.Event()

    def sweep():
        sweeps.append(1)
        if len(sweeps) == 1:
            raise LookupError
        loop.call_soon_threadsafe(again.set)

    loop, files.disk.sweep = asyncio.get_running_loop(), sweep
    await files.start()
    async with asyncio.timeout(10):
        await again.wait()
    await files.close()

    assert "stored files could not be swept: LookupError" in caplog.text


async def test_the_parts_of_a_finished_upload_are_gone(tmp_path, here):
    upload = an_upload()
    await here.complete(upload, {1: await here.receive_part(upload, 1, stream(b"whole"), None)})

    assert on_disk(tmp_path) == {"upload.secret", upload.name, f"{upload.name}.meta.json"}


def test_parts_may_come_again_while_their_upload_is_dropped(tmp_path, clock):
    disk = disk_at(tmp_path, clock, blocks=10_000)
    parts = Parts(disk)
    kept = []

    def send_again():
        for number in range(1, 300):
            draft = disk.draft("a.jpg")
            draft.write_bytes(b"part")
            kept.append(parts.keep("a.jpg", number, draft, 10**6))

    with ThreadPoolExecutor(2) as threads:
        sending = threads.submit(send_again)
        while not sending.done():
            parts.drop("a.jpg")
        sending.result()

    assert kept == [True] * 299
