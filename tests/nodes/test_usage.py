"""What files take, counted in the database for all servers: never more than the quota, by the rules of one server."""

import asyncio
import collections
import contextlib
import random
import time

import asyncpg
import pytest

from server.fal.errors import PlainError, RequestError
from server.jobs.errors import DatabaseError
from server.jobs.postgres.connection import Statement
from server.nodes.usage import PUT_WITHIN_S, SharedUsage, shared
from server.storage.disk import FRESH_S
from server.storage.full import StorageFull
from server.storage.ledger import BLOCK_BYTES as BLOCK
from server.storage.ledger import Ledger, Quota, Size, named_in, on_disk
from server.storage.names import Names
from server.storage.usage import RECOUNT_S, Item, MemoryUsage
from tests.jobs.forms import LosingPool, migrated
from tests.storage.test_bucket import SECRET, Box, Clock, stream

pytestmark = pytest.mark.anyio

NAMES = Names(SECRET)
QUOTA = Quota(Size(20 * BLOCK, 1000), 0.5)
OLD = FRESH_S + 1


class Database:
    """A database, and pools on it as several servers have them."""

    def __init__(self, cluster, name):
        self.cluster = cluster
        self.name = name
        self.url = cluster.url(name)
        self.pools = []

    def pool(self, **settings):
        self.pools.append(LosingPool(self.url, **settings))
        return self.pools[-1]

    @contextlib.asynccontextmanager
    async def held(self):
        """Context in which nobody else counts."""
        connection = await asyncpg.connect(self.url)
        async with connection.transaction():
            await connection.execute("SELECT FROM files_used WHERE owner = '' FOR UPDATE")
            yield
        await connection.close()

    async def waiting(self, count):
        """Wait until so many wait for a lock."""
        query = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
        async with asyncio.timeout(30):
            while await self.cluster.fetch(self.url, query) < [(count,)]:  # noqa: ASYNC110 - of other connections
                await asyncio.sleep(0.02)

    async def forward(self, seconds):
        await self.cluster.execute(f"UPDATE files SET created_at = created_at - {seconds}", database=self.name)

    async def sums(self):
        """Return the sums, and what the rows sum up to, by owner."""
        sums = await self.cluster.fetch(self.url, "SELECT owner, bytes, files FROM files_used WHERE files > 0")
        rows = await self.cluster.fetch(
            self.url,
            "SELECT owner, sum(bytes)::bigint, sum(files)::bigint FROM files GROUP BY owner"
            " UNION ALL SELECT '', sum(bytes)::bigint, sum(files)::bigint FROM files HAVING count(*) > 0",
        )
        return sorted(sums), sorted(rows)


@pytest.fixture
async def database(postgres):
    made = Database(postgres, await postgres.new_database(await migrated(postgres)))
    yield made
    for pool in made.pools:
        await pool.close()
    await postgres.drop(made.name)


@pytest.fixture
def place(tmp_path):
    (tmp_path / "shared").mkdir()
    return f"file://{tmp_path / 'shared'}"


@pytest.fixture
def boxes(tmp_path, place, database):
    """Two servers over one place and one database, with room for twenty blocks."""
    return [Box(tmp_path / name, place, blocks=20, usage=shared(database.pool())) for name in ("one", "two")]


def usage(database, **settings):
    return SharedUsage(database.pool(), QUOTA, NAMES.account, **settings)


async def stored(box):
    """Return what the files and parts of the object store take."""
    pages = [page for folder in ("stored", "parts") async for page in box.objects.pages(folder)]
    sizes = [on_disk(found.size) for page in pages for found in page if not found.path.endswith(".meta.json")]
    return Size(sum(size.bytes for size in sizes), len(sizes))


async def pages(*items):
    yield list(items)


# --- several servers


async def test_servers_together_store_no_more_than_the_quota(boxes, database):
    uploads = [boxes[at % 2].upload(bytes(BLOCK), f"key{at % 3}") for at in range(40)]

    answers = await asyncio.gather(*uploads, return_exceptions=True)

    refused = [answer for answer in answers if isinstance(answer, Exception)]
    assert len(answers) - len(refused) >= 20
    assert {(type(each), each.status) for each in refused} <= {(RequestError, 429)}
    assert await stored(boxes[0]) == Size(20 * BLOCK, 20)
    sums, rows = await database.sums()
    assert sums == rows
    assert sums[0] == ("", 20 * BLOCK, 20)


async def test_parts_that_come_to_several_servers_together_all_count_until_they_are_joined(boxes, database):
    upload = boxes[0].permit()
    parts = [boxes[at % 2].files.receive_part(upload, 1 + at, stream(bytes([at])), None) for at in range(4)]

    etags = await asyncio.gather(*parts)
    counted = (await database.sums())[0][0]
    await boxes[1].files.complete(upload, dict(enumerate(etags, 1)))

    assert counted == ("", 4 * BLOCK, 4)
    assert (await database.sums())[0][0] == ("", BLOCK, 1)
    assert await boxes[0].content(upload.name) == bytes(range(4))


async def test_parts_that_are_together_too_large_count_no_more(tmp_path, place, boxes, database):
    smaller = Box(tmp_path / "three", place, blocks=20, usage=shared(database.pool()), max_upload_bytes=1)
    upload = boxes[0].permit()
    parts = [boxes[at].files.receive_part(upload, 1 + at, stream(bytes([at])), None) for at in range(2)]
    etags = await asyncio.gather(*parts)

    with pytest.raises(PlainError):
        await smaller.files.complete(upload, dict(enumerate(etags, 1)))

    assert await database.sums() == ([], [])


async def test_a_part_that_is_sent_again_counts_once(boxes, database):
    upload = boxes[0].permit()
    for data in (b"first", b"first", bytes(2 * BLOCK)):
        await boxes[0].files.receive_part(upload, 1, stream(data), None)

    assert (await database.sums())[0][0] == ("", 2 * BLOCK, 1)


async def test_what_one_server_deletes_makes_room_at_the_other(boxes):
    names = [await boxes[0].upload(bytes(10 * BLOCK), "a") for _ in range(2)]
    with pytest.raises(RequestError):
        await boxes[1].upload(bytes(BLOCK), "a")

    await boxes[0].store.delete(names[0])

    assert await boxes[1].content(await boxes[1].upload(bytes(BLOCK), "a")) is not None


async def test_a_result_takes_the_place_of_the_oldest_at_whatever_server(boxes):
    names = [await boxes[0].upload(bytes(10 * BLOCK), "a") for _ in range(2)]

    await boxes[1].files.save(bytes(BLOCK), "image/jpeg", owner="a")

    assert [await boxes[0].content(name) is not None for name in names] == [False, True]
    assert await stored(boxes[0]) == boxes[1].files.used == Size(11 * BLOCK, 2)


async def test_what_could_not_be_put_counts_no_more(boxes, database):
    async def fails(*_args, **_options):
        raise OSError("no")

    boxes[0].objects.put = fails
    with pytest.raises(OSError, match="no"):
        await boxes[0].upload(b"a")

    assert await database.sums() == ([], [])


async def test_of_servers_that_count_the_same_at_once_one_does(database, caplog):
    name = NAMES.new("a", "")
    async with database.held():
        asked = [asyncio.create_task(usage(database, wait_s=30.0).reserve(name, on_disk(BLOCK))) for _ in range(2)]
        await database.waiting(2)
    await asyncio.gather(*asked)

    assert (await database.sums())[0][0] == ("", BLOCK, 1)
    assert "uncounted" not in caplog.text


async def test_an_answer_that_is_lost_counts_nothing_twice(database):
    name, one = NAMES.new("a", ""), usage(database)
    one._pool.lose(2)
    await one.reserve(name, on_disk(BLOCK))
    once = (await database.sums())[0][0]
    one._pool.lose(2)
    await one.forget([name])

    assert once == ("", BLOCK, 1)
    assert await database.sums() == ([], [])


# --- the rules


@pytest.mark.parametrize("seed", range(3))
async def test_the_rules_are_those_of_one_server(database, seed):
    chance, clock = random.Random(seed), Clock()
    forms = [MemoryUsage(Ledger(*QUOTA, NAMES.account), clock), usage(database, wait_s=30.0)]
    known = [NAMES.new("a", "")]
    seen = collections.Counter()

    async def ask(method, *arguments, **options):
        answers = []
        for form in forms:
            try:
                answers.append((await getattr(form, method)(*arguments, **options), form.used))
            except StorageFull as full:
                answers.append(("full", full.by_key))
        assert answers[0] == answers[1]
        seen[method, str(answers[0][0])[:1]] += 1
        return answers[0][0]

    for number in range(200):
        chosen = chance.choice(["file", "file", "result", "part", "part", "forget", "check", "excess"])
        name, size = NAMES.new(chance.choice(["", "a", "b", "c"]), ""), on_disk(chance.randint(1, 6 * BLOCK))
        if chosen in {"file", "result", "part"}:
            key = name if chosen != "part" else f"parts/{named_in(chance.choice(known))}/{number}"
            while await ask("reserve", key, size, newest=chosen == "result") not in ([], "full"):
                pass
            known.append(key)
        elif chosen == "forget":
            await ask("forget", [chance.choice(known)])
        elif chosen == "check":
            await ask("check", f"{name}-draft", size)
        else:
            await ask("excess")
        if chance.random() < 0.03:
            clock.ahead += OLD
            await database.forward(OLD)
    sums, rows = await database.sums()
    assert sums == rows
    assert all(seen["reserve", answer] > 5 for answer in ("[", "f"))  # both stored and refused


# --- counting anew


async def test_a_recount_finds_what_is_there_and_drops_what_is_not(database):
    one = usage(database)
    names = [NAMES.new("a", "") for _ in range(4)]
    await one.reserve(names[0], on_disk(BLOCK))  # is not there, since a server died
    await database.forward(PUT_WITHIN_S + 1)
    await one.reserve(names[1], on_disk(BLOCK))  # is there
    await one.reserve(names[2], on_disk(BLOCK))  # is being put
    found = [Item(time.time(), key, on_disk(BLOCK)) for key in (names[1], names[3], f"parts/{names[3]}/00001-a")]

    due = await one.recount_is_due()
    await one.recount(pages(*found), list)

    assert (due, await one.recount_is_due()) == (True, False)
    kept = await database.cluster.fetch(database.url, "SELECT name FROM files")
    assert {name for (name,) in kept} == {*names[1:], f"parts/{names[3]}"}
    sums, rows = await database.sums()
    assert sums == rows
    assert one.used == Size(4 * BLOCK, 4)


async def test_a_recount_that_fails_is_due_again(database, caplog):
    async def broken(*_arguments):
        raise DatabaseError("it is full")

    one = usage(database)
    await one.recount(pages(), list)
    one._pool.fetch, fetch = broken, one._pool.fetch
    await one.recount(pages(), list)
    one._pool.fetch = fetch

    assert await one.recount_is_due()
    assert [record.getMessage() for record in caplog.records] == [
        "stored files could not be counted anew, and will be later: it is full"
    ]


async def test_one_recount_an_hour_is_enough_for_all(database):
    one, two = usage(database), usage(database)
    await one.recount(pages(), list)
    soon = await two.recount_is_due()
    await database.cluster.execute(
        f"UPDATE fleet SET files_counted_at = files_counted_at - {RECOUNT_S}", database=database.name
    )

    assert (soon, await two.recount_is_due()) == (False, True)


async def test_files_of_servers_that_did_not_count_count_after_a_sweep(tmp_path, place, boxes):
    alone = Box(tmp_path / "alone", place)
    await alone.upload(bytes(6 * BLOCK))
    await alone.files.receive_part(alone.permit(), 1, stream(bytes(3 * BLOCK)), None)

    await boxes[1].store.sweep()

    assert boxes[1].files.used == Size(9 * BLOCK, 2)


async def test_beyond_a_smaller_quota_the_oldest_go(tmp_path, place, database, boxes):
    names = [await boxes[0].upload(bytes(4 * BLOCK)) for _ in range(3)]
    smaller = Box(tmp_path / "smaller", place, blocks=10, usage=shared(database.pool()))
    await database.forward(OLD)

    await smaller.store.sweep()

    assert [await smaller.content(name) is not None for name in names] == [False, True, True]
    assert smaller.files.used == Size(8 * BLOCK, 2)


# --- a database that is away


class SlowPool(LosingPool):
    """A pool whose statements take a second. `most`: of them at once."""

    running = most = 0

    async def fetch(self, statement, *arguments):
        self.running += 1
        self.most = max(self.most, self.running)
        await asyncio.sleep(1.0)
        self.running -= 1
        return await super().fetch(statement, *arguments)


async def test_a_slow_database_delays_no_file_and_keeps_its_connections_for_jobs(tmp_path, place, database):
    database.pools.append(pool := SlowPool(database.url))
    box = Box(tmp_path / "one", place, usage=shared(pool))
    began = time.monotonic()

    await asyncio.gather(*[box.files.save(bytes([at]), "image/jpeg") for at in range(20)])

    assert time.monotonic() - began < 5.0
    assert (await stored(box)).files == 20
    assert pool.most <= 2


async def test_while_the_database_is_away_files_are_stored_at_once_and_counted_after(tmp_path, place, database, caplog):
    pool = database.pool(patience_s=5.0)
    box = Box(tmp_path / "one", place, blocks=20, usage=shared(pool))
    await box.upload(b"before")
    pool._hosts._urls = ["postgresql://fourstep@127.0.0.1:1/none"]
    for connection in pool._take_idle():
        pool._drop(connection)
    began = time.monotonic()
    names = [await box.upload(bytes([at])) for at in range(3)]
    await box.files.save(b"result", "image/jpeg")
    took_s = time.monotonic() - began
    pool._hosts._urls = [database.url]
    await pool.read(pool.fetch(Statement("any", "SELECT 1")))
    await box.store.sweep()

    assert took_s < 3.0
    assert [await box.content(name) for name in names] == [bytes([at]) for at in range(3)]
    assert box.files.used == Size(5 * BLOCK, 5)
    assert sum("uncounted" in record.message for record in caplog.records) == 1
