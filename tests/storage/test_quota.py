"""The disk quota among owners: whose files go, who is refused, and what is counted."""

import asyncio
import contextlib
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from server.fal.errors import RequestError
from server.fal.lifecycle import Lifecycle
from server.settings import Settings
from server.storage.disk import FRESH_S, DiskStore
from server.storage.files import Files
from server.storage.full import StorageFull
from server.storage.layout import Layout, Meta
from server.storage.ledger import BLOCK_BYTES as BLOCK
from server.storage.ledger import Size
from server.storage.multipart import Parts
from server.storage.names import COMMON, Names

pytestmark = pytest.mark.anyio

NAMES = Names(b"secret")
PICTURE = Meta("image/jpeg", inline=True)
OLD = FRESH_S + 1


class Clock:
    """The time, which can be put forward."""

    ahead = 0.0

    def __call__(self):
        return time.time() + self.ahead


class Shop:
    """A store of twenty blocks, of which a key may have half when others want them."""

    def __init__(self, folder, blocks=20, files=1000, share=0.5):
        self.clock = Clock()
        quota = Size(blocks * BLOCK, files)
        self.disk = DiskStore(folder, names=NAMES, ttl_s=1e6, quota=quota, share=share, clock=self.clock)
        self.disk.prepare()

    def store(self, owner, blocks, *, newest=False, meta=PICTURE, seconds=None):
        """Upload a file, or store a result (`newest`); return its name."""
        name = NAMES.new(owner, "image/jpeg")
        draft = self.disk.draft(name, newest=newest)
        try:
            self.disk.take(draft, blocks * BLOCK)
            draft.write_bytes(bytes(blocks * BLOCK))
            self.disk.put(draft, name, meta, seconds=seconds, durable=False)
        finally:
            self.disk.drop(draft)
        return name

    def upload(self, owner, blocks):
        """Begin an upload; return its draft."""
        draft = self.disk.draft(NAMES.new(owner, ""))
        self.disk.take(draft, blocks * BLOCK)
        draft.write_bytes(bytes(blocks * BLOCK))
        return draft

    def has(self, *names):
        return [self.disk.find(name) is not None for name in names]


@pytest.fixture
def shop(tmp_path):
    return Shop(tmp_path)


# --- whose files go, and who is refused: the table of `server/storage/ledger.py`


def test_a_key_may_have_more_than_its_share_while_there_is_room(shop):
    assert shop.has(*[shop.store("bad", 6) for _ in range(3)]) == [True] * 3


def test_a_key_above_its_share_is_refused_while_its_files_are_fresh(shop):
    names = [shop.store("bad", 6) for _ in range(3)]

    with pytest.raises(StorageFull) as caught:
        shop.store("bad", 6)

    assert caught.value.by_key
    assert shop.has(*names) == [True] * 3


def test_its_own_old_files_go_for_its_next(shop):
    names = [shop.store("bad", 6) for _ in range(3)]
    theirs = shop.store("good", 2)

    shop.clock.ahead = OLD
    names.append(shop.store("bad", 6))

    assert shop.has(*names, theirs) == [False, True, True, True, True]


def test_a_file_of_the_future_is_not_taken_for_a_fresh_one(shop):
    names = [shop.store("bad", 9) for _ in range(2)]

    shop.clock.ahead = -60.0
    names.append(shop.store("bad", 9))

    assert shop.has(*names) == [False, True, True]


def test_a_key_above_its_share_takes_nothing_from_a_heavier_one(shop):
    heavy = [shop.store("bad", 6), shop.store("bad", 5)]
    shop.store("good", 9)

    with pytest.raises(StorageFull):
        shop.store("good", 2)

    assert shop.has(*heavy) == [True, True]


@pytest.mark.parametrize("ahead", [0.0, OLD], ids=["fresh", "old"])
def test_for_a_key_with_less_the_oldest_of_the_heaviest_go(shop, ahead):
    names = [shop.store("bad", 4) for _ in range(5)]

    shop.clock.ahead = ahead
    theirs = [shop.store("good", 1) for _ in range(5)]

    assert shop.has(*names) == [False, False, True, True, True]
    assert shop.has(*theirs) == [True] * 5


def test_a_third_key_finds_room_between_two_which_have_their_shares(shop):
    names = [shop.store(owner, 5) for owner in ("one", "one", "two", "two")]

    third = shop.store("three", 5)

    assert shop.has(third) == [True]
    assert sum(shop.has(*names)) == 3


def test_of_a_key_without_stored_files_the_unfinished_uploads_go(shop):
    draft = shop.upload("bad", 18)

    theirs = shop.store("good", 3)

    assert (shop.has(theirs), draft.exists()) == ([True], False)
    with pytest.raises(StorageFull):
        shop.disk.take(draft, BLOCK)
    with pytest.raises(StorageFull):
        shop.disk.put(draft, NAMES.new("bad", ""), PICTURE, durable=False)


def test_of_a_key_without_stored_files_the_parts_go(shop, tmp_path):
    parts, name = Parts(shop.disk), NAMES.new("bad", "")
    for number in (1, 2):
        assert parts.keep(name, number, shop.upload("bad", 8), 10**9)

    theirs = shop.store("good", 4)
    again = parts.keep(name, 1, shop.upload("bad", 1), 10**9)

    assert (shop.has(theirs), again) == ([True], True)
    assert [path.name for path in (tmp_path / "parts" / name).iterdir()] == ["1"]
    assert shop.disk.used == Size(6 * BLOCK, 3)


def test_a_key_that_owns_uploads_only_is_refused_and_not_interrupted(shop):
    drafts = [shop.upload("bad", 9) for _ in range(2)]

    with pytest.raises(StorageFull):
        shop.upload("bad", 3)

    assert [draft.exists() for draft in drafts] == [True, True]


def test_a_result_takes_the_place_of_its_owners_fresh_files(shop):
    theirs = shop.store("good", 3)
    names = [shop.store("bad", 4, newest=True) for _ in range(6)]

    assert shop.has(*names, theirs) == [False, False, True, True, True, True, True]


@pytest.mark.parametrize("owner", ["bad", "anonymous"])
def test_a_result_takes_the_place_of_its_owners_unfinished_uploads_once_nothing_is_stored(shop, owner):
    stored = shop.store(owner, 2)
    oldest, newer = shop.upload(owner, 8), shop.upload(owner, 8)

    result = shop.store(owner, 5, newest=True)

    assert shop.has(stored, result) == [False, True]
    assert [oldest.exists(), newer.exists()] == [False, True]


def test_a_result_takes_the_place_of_its_owners_parts(shop):
    parts, name = Parts(shop.disk), NAMES.new("bad", "")
    for number in (1, 2):
        assert parts.keep(name, number, shop.upload("bad", 9), 10**9)

    result = shop.store("bad", 3, newest=True)

    assert (shop.has(result), shop.disk.used) == ([True], Size(3 * BLOCK, 1))


def test_more_than_the_whole_quota_is_refused_and_nothing_goes_for_it(shop):
    name = shop.store("bad", 6)

    shop.clock.ahead = OLD
    with pytest.raises(StorageFull):
        shop.store("bad", 21)

    assert shop.has(name) == [True]


def test_without_keys_there_is_one_owner_and_no_share(shop):
    names = [shop.store("anonymous", 6) for _ in range(3)]

    with pytest.raises(StorageFull) as caught:
        shop.store("anonymous", 6)

    assert not caught.value.by_key
    assert shop.has(*names) == [True] * 3


def test_expired_files_go_before_anybody_is_refused(shop):
    shop.store("bad", 18, seconds=60)

    shop.clock.ahead = 61

    assert shop.has(shop.store("bad", 18)) == [True]


def test_what_is_announced_is_refused_before_it_comes_and_takes_nothing_away(shop):
    names = [shop.store("bad", 9), shop.store("bad", 9)]
    of_bad, of_good = (shop.disk.draft(NAMES.new(owner, "")) for owner in ("bad", "good"))

    shop.disk.check(of_good, 5 * BLOCK)
    with pytest.raises(StorageFull):
        shop.disk.check(of_bad, 5 * BLOCK)

    assert shop.has(*names) == [True, True]


# --- what is counted


def test_a_file_counts_as_many_blocks_and_inodes_as_it_takes(shop):
    private = Meta("text/plain", owner="bad")
    name = NAMES.new("bad", "text/plain")
    draft = shop.disk.draft(name)
    draft.write_bytes(b"1")
    shop.disk.put(draft, name, private, durable=False)

    counted = shop.disk.used
    shop.disk.sweep()

    assert (counted, shop.disk.used) == (Size(2 * BLOCK, 2), counted)


def test_the_number_of_files_has_a_quota_too(tmp_path):
    shop = Shop(tmp_path, blocks=1000, files=10)
    names = [shop.store("bad", 1) for _ in range(10)]

    with pytest.raises(StorageFull):
        shop.store("bad", 1)
    theirs = [shop.store("good", 1) for _ in range(3)]

    assert shop.has(*names) == [False] * 3 + [True] * 7
    assert shop.has(*theirs) == [True] * 3


def test_owners_are_known_again_after_a_restart(tmp_path):
    before = Shop(tmp_path)
    names = [before.store("bad", 6) for _ in range(3)]
    after = Shop(tmp_path)
    after.disk.sweep()

    with pytest.raises(StorageFull) as caught:
        after.store("bad", 6)
    theirs = after.store("good", 6)

    assert caught.value.by_key
    assert after.has(*names, theirs) == [False, True, True, True]


def test_the_parts_of_an_owner_are_known_again_after_a_restart(tmp_path):
    before = Shop(tmp_path)
    Parts(before.disk).keep(NAMES.new("bad", ""), 1, before.upload("bad", 17), 10**9)
    after = Shop(tmp_path)
    after.disk.sweep()

    with pytest.raises(StorageFull):
        after.store("bad", 4)
    theirs = after.store("good", 4)

    assert (after.has(theirs), after.disk.used) == ([True], Size(4 * BLOCK, 1))


def test_files_of_unknown_owner_are_one_owners(shop):
    old = [f"{digit * 32}.jpg" for digit in "abc"]
    for name in old:
        draft = shop.disk.draft(name)
        draft.write_bytes(bytes(6 * BLOCK))
        shop.disk.put(draft, name, PICTURE, durable=False)

    theirs = shop.store("good", 6)

    assert shop.has(*old, theirs) == [False, True, True, True]


def test_many_at_once_never_exceed_the_quota(tmp_path):
    shop = Shop(tmp_path, blocks=50)
    seen = []

    def store(number):
        with contextlib.suppress(StorageFull):
            shop.store(f"key{number % 5}", 1 + number % 7, newest=number % 3 == 0)
        seen.append(shop.disk.used.bytes)

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(store, range(300)))
    counted = shop.disk.used
    shop.disk.sweep()

    assert max(seen) <= 50 * BLOCK
    assert shop.disk.used == counted


class Slow(Layout):
    """Deletes late: what `meanwhile` does comes between the choice of a victim and its end."""

    def __init__(self, root, meanwhile):
        super().__init__(root)
        self.meanwhile = meanwhile

    def delete(self, key):
        self.meanwhile()
        super().delete(key)


def test_an_upload_that_has_to_go_while_its_metadata_is_written_is_not_stored(shop, tmp_path):
    draft, name = shop.upload("bad", 17), NAMES.new("bad", "")
    chosen, ended = threading.Event(), threading.Event()

    class Slower(Slow):
        def write_meta(self, path, meta):
            super().write_meta(path, meta)
            theirs.append(threads.submit(shop.store, "good", 3))
            assert chosen.wait(10)

    shop.disk._layout, theirs = Slower(tmp_path, lambda: chosen.set() or ended.wait(10)), []
    with ThreadPoolExecutor(1) as threads:
        with pytest.raises(StorageFull):
            shop.disk.put(draft, name, Meta("text/plain"), durable=False)
        ended.set()

    assert (shop.has(theirs[0].result(), name), shop.disk.used) == ([True, False], Size(3 * BLOCK, 1))


def test_a_part_that_comes_while_those_before_it_go_is_kept(shop, tmp_path):
    parts, name, kept = Parts(shop.disk), NAMES.new("bad", ""), []
    assert parts.keep(name, 1, shop.upload("bad", 17), 10**9)
    draft = shop.disk.draft(name)
    draft.write_bytes(b"part")

    shop.disk._layout = Slow(tmp_path, lambda: kept.append(parts.keep(name, 2, draft, 10**9)))
    shop.store("good", 3)

    assert kept == [True]
    assert [path.name for path in (tmp_path / "parts" / name).iterdir()] == ["2"]
    assert shop.disk.used == Size(5 * BLOCK, 3)


def test_a_part_that_had_to_go_is_refused_as_where_there_is_no_room(shop):
    draft = shop.upload("bad", 18)
    shop.store("good", 3)

    with pytest.raises(StorageFull):
        Parts(shop.disk).keep(NAMES.new("bad", ""), 1, draft, 10**9)


def test_nothing_is_known_of_uploads_whose_parts_are_gone(shop):
    parts = Parts(shop.disk)
    names = [NAMES.new(owner, "") for owner in ("bad", "good")]
    assert parts.keep(names[0], 1, shop.upload("bad", 16), 10**9)
    assert parts.keep(names[1], 1, shop.upload("good", 5), 10**9)

    parts.drop_before(0.0)

    assert list(parts._totals) == names[1:]


def test_a_sweep_goes_on_although_parts_are_gone_before_it_looks_at_them(shop, tmp_path):
    (tmp_path / "parts" / "gone").symlink_to(tmp_path / "nowhere")  # listed, and not there

    Parts(shop.disk).drop_before(time.time())
    shop.disk.sweep()

    assert shop.disk.used == Size(BLOCK, 1)


# --- names


def test_a_name_tells_its_owner_to_those_who_have_the_secret():
    one, again, other = (NAMES.new(owner, "image/jpeg") for owner in ("bad", "bad", "good"))

    assert NAMES.account(one) == NAMES.account(again) != NAMES.account(other)
    assert NAMES.account(f"{one}-0123") == NAMES.account(one)
    assert one[32:44] != again[32:44]


@pytest.mark.parametrize(
    "name",
    ["a" * 32, f"{'a' * 32}.jpg", f"{'a' * 32}-0123456789abcdef", Names(b"other").new("bad", ""), "", "x.meta"],
    ids=["old", "with ending", "longer", "of another server", "none", "metadata"],
)
def test_a_name_without_a_tag_of_ours_is_of_unknown_owner(name):
    assert NAMES.account(name) == COMMON


# --- through `Files`


async def chunks(data):
    yield data


async def upload(files, owner, size):
    wanted = files.permit("application/zip", "a.zip", owner, Lifecycle())
    await files.receive(wanted, chunks(bytes(size)), size)


async def test_the_heaviest_key_is_told_and_the_others_store_results_and_uploads(tmp_path):
    files = Files(Settings(data_dir=tmp_path, files_quota_bytes=16 << 20), key_share=0.5)
    await files.start()
    for _ in range(3):
        await upload(files, "bad", 4 << 20)

    with pytest.raises(RequestError) as caught:
        await upload(files, "bad", 4 << 20)
    await upload(files, "good", 4 << 20)
    result = await files.save(b"\xff\xd8\xff", "image/jpeg", owner="good")
    await files.close()

    assert (caught.value.status, str(caught.value)) == (
        429,
        "This key's stored files are at its share; try again later",
    )
    assert files.disk.find(result)


async def test_an_upload_that_had_to_go_after_its_parts_were_joined_is_429(tmp_path):
    files = Files(Settings(data_dir=tmp_path))
    files.disk.prepare()
    wanted = files.permit("application/zip", "a.zip", "bad", Lifecycle())
    etag = await files.receive_part(wanted, 1, chunks(b"part"), None)
    join = files._store._parts.join

    def join_then_lose(name, etags, draft):
        head = join(name, etags, draft)
        files.disk.drop(draft)
        return head

    files._store._parts.join = join_then_lose
    with pytest.raises(RequestError) as caught:
        await files.complete(wanted, {1: etag})

    assert caught.value.status == 429


async def test_an_empty_upload_counts(tmp_path):
    files = Files(Settings(data_dir=tmp_path))
    files.disk.prepare()

    await asyncio.gather(*[upload(files, "bad", 0) for _ in range(3)])

    assert files.disk.used == Size(6 * BLOCK, 6)
