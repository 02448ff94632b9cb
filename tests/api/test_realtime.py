"""Realtime sockets: encodings, errors, newest wins, and how they end."""

import asyncio
import base64
import json
import time

import msgspec
import pytest

from pipelines.messages import Priority
from server.access.auth import Caller
from server.access.limits import Quota, Reservation
from server.api.realtime import Inbox
from server.fal.errors import RequestError
from tests.api.test_run import OUTPUT_KEYS
from tests.support.app_client import APP, INPUT, JPEG, RUN, serving
from tests.support.asgi_client import Closed, Refused

pytestmark = pytest.mark.anyio

SOCKET = f"{RUN}/realtime"
MB = 1024 * 1024
pack, unpack = msgspec.msgpack.encode, msgspec.msgpack.decode


@pytest.mark.parametrize(
    "url",
    [
        "wss://fal.run/fal-ai/lcm-sd15-i2i/realtime",
        "wss://fal.run/110602490/lcm-sd15-i2i/ws",
        "wss://fal.run/fal-ai/lcm-sd15-i2i/ws",
        "wss://fal.run/fal-ai/lcm-sd15-i2i",
        "wss://110602490-lcm-sd15-i2i.gateway.alpha.fal.ai/ws",
        "ws://localhost:8000/run/110602490/lcm-sd15-i2i/realtime",
        "ws://localhost:8000/fal-ai/lcm-sd15-i2i/realtime/",
        "wss://fal.run/fal-ai/lcm-sd15-i2i/my/own",
    ],
)
async def test_every_address_of_the_socket_answers(tmp_path, url):
    async with serving(tmp_path, realtime_path="/my/own") as web, web.connect(url) as socket:
        socket.send(json.dumps(INPUT))

        assert json.loads(await socket.recv())["seed"] == 7


@pytest.mark.parametrize("path", ["/run/fal-ai/other/realtime", f"{RUN}/elsewhere", "/run/nothing"])
async def test_unknown_addresses_fail_the_handshake_with_404(tmp_path, path):
    async with serving(tmp_path) as web:
        with pytest.raises(Refused) as refused:
            async with web.connect(path):
                pass

    assert refused.value.answer.status == 404
    assert isinstance(refused.value.answer.json()["detail"], str)


async def test_each_answer_is_in_the_encoding_of_its_input(tmp_path):
    async with serving(tmp_path) as web, web.connect(SOCKET) as socket:
        socket.send(json.dumps({**INPUT, "request_id": "text"}))
        text = await socket.recv()
        socket.send(pack({**INPUT, "request_id": "binary"}))
        binary = await socket.recv()

    assert isinstance(text, str)
    assert isinstance(binary, bytes)
    assert json.loads(text)["request_id"] == "text"
    assert list(unpack(binary)) == OUTPUT_KEYS
    assert unpack(binary)["request_id"] == "binary"
    assert unpack(binary)["images"][0]["url"] == "data:image/jpeg;base64," + base64.b64encode(JPEG).decode()


async def test_the_engine_is_told_that_it_is_realtime(tmp_path):
    async with serving(tmp_path) as web, web.connect(SOCKET) as socket:
        socket.send(pack(INPUT))
        await socket.recv()

    assert web.engines.works[0].priority is Priority.REALTIME


async def test_nil_and_floats_in_msgpack_are_read_as_javascript_means_them(tmp_path):
    async with serving(tmp_path) as web, web.connect(SOCKET) as socket:
        socket.send(pack({**INPUT, "seed": None, "request_id": None, "num_images": 1.0, "strength": 1}))
        result = unpack(await socket.recv())

    assert (result["request_id"], len(result["images"])) == ("", 1)
    assert 0 <= result["seed"] < 2**53


async def test_without_sync_mode_the_picture_is_linked(tmp_path):
    async with serving(tmp_path) as web, web.connect(f"wss://fal.run/{APP}/realtime") as socket:
        socket.send(pack({**INPUT, "sync_mode": False}))
        result = unpack(await socket.recv())

    assert result["images"][0]["url"] == "https://v3.fal.media/files/0.jpg"


@pytest.mark.parametrize("field", ["image_bytes", "image_url"])
async def test_bytes_are_answered_with_bytes(field, tmp_path):
    async with serving(tmp_path) as web, web.connect(SOCKET) as socket:
        socket.send(pack({"prompt": "p", field: b"raw", "seed": 1}))
        result = unpack(await socket.recv())

    assert web.engines.works[0].image == b"raw"
    assert result["images"][0] == {"content": JPEG, "width": 512, "height": 504, "content_type": "image/jpeg"}
    assert web.shelf.saved == {}


async def test_a_mask_of_bytes_beside_a_picture_of_bytes_is_ignored(tmp_path):
    async with serving(tmp_path) as web, web.connect(SOCKET) as socket:
        socket.send(pack({"prompt": "p", "image_url": b"raw", "mask_url": b"\xff\xd8", "seed": 1}))
        result = unpack(await socket.recv())

    assert (len(result["images"]), web.engines.works[0].image) == (1, b"raw")


@pytest.mark.parametrize("url", [b"data:image/png;base64,cmF3", b" DATA:,raw"])
async def test_a_url_may_be_written_as_bytes(url, tmp_path):
    async with serving(tmp_path) as web, web.connect(SOCKET) as socket:
        socket.send(pack({"prompt": "p", "image_url": url, "seed": 1}))
        await socket.recv()

    assert web.engines.works[0].image == b"raw"


@pytest.mark.parametrize("encode", [json.dumps, pack], ids=["text", "msgpack"])
async def test_numbers_are_taken_where_texts_are_wanted_and_cut_where_integers_are(encode, tmp_path):
    async with serving(tmp_path) as web, web.connect(SOCKET) as socket:
        socket.send(encode({**INPUT, "seed": 1234.5678, "request_id": 17}))
        result = await socket.recv()
        socket.send(encode({**INPUT, "strength": 2, "request_id": 17}))
        error = json.loads(await socket.recv())

    result = json.loads(result) if isinstance(result, str) else unpack(result)
    assert (result["seed"], result["request_id"], error["request_id"]) == (1234, "17", "17")


@pytest.mark.parametrize("encode", [json.dumps, pack], ids=["text", "msgpack"])
@pytest.mark.parametrize(
    ("wrong", "field"), [({"strength": 2}, "strength"), ({"image_url": "data:,"}, None), ({"prompt": None}, "prompt")]
)
async def test_a_bad_input_is_an_error_in_text_and_the_socket_stays_open(tmp_path, encode, wrong, field):
    async with serving(tmp_path) as web, web.connect(SOCKET) as socket:
        if field is None:
            web.engines.failure = RequestError("runner_server_error", "broken")
        socket.send(encode({**INPUT, "request_id": "r1", **wrong}))
        said = await socket.recv()
        web.engines.failure = None
        socket.send(encode(INPUT))
        after = await socket.recv()

    error = json.loads(said)
    assert isinstance(said, str)
    assert (error["type"], error["request_id"]) == ("x-fal-error", "r1")
    assert error["error"] == ("RUNNER_SERVER_ERROR" if field is None else "INVALID_INPUT")
    assert error["reason"]
    assert "status" not in error
    assert isinstance(after, bytes if encode is pack else str)


@pytest.mark.parametrize(
    "frame",
    [
        "no json",
        "[1]",
        '"text"',
        "null",
        "",
        b"\xc1",
        b"",
        b"\x91" * 5000,
        b"\xa1\xff",
        pack("text"),
        pack([1]),
        b"\x80",
    ],
)
async def test_a_frame_that_is_no_object_is_an_error_and_the_socket_stays_open(tmp_path, frame):
    async with serving(tmp_path) as web, web.connect(SOCKET) as socket:
        socket.send(frame)
        error = json.loads(await socket.recv())
        socket.send(json.dumps(INPUT))
        after = json.loads(await socket.recv())

    assert (error["type"], error["error"]) == ("x-fal-error", "INVALID_INPUT")
    assert after["seed"] == 7


async def test_a_fault_of_ours_is_told_without_details(tmp_path):
    async with serving(tmp_path) as web, web.connect(SOCKET) as socket:
        web.engines.failure = ValueError("canary")
        socket.send(json.dumps(INPUT))
        error = json.loads(await socket.recv())
        web.engines.failure = None
        socket.send(json.dumps(INPUT))
        after = json.loads(await socket.recv())

    assert error["error"] == "INTERNAL_ERROR"
    assert "canary" not in json.dumps(error)
    assert after["seed"] == 7


@pytest.mark.parametrize(("query", "answered"), [("?max_buffering=1", [0, 5]), ("?max_buffering=2", [0, 4, 5])])
async def test_when_inputs_wait_the_newest_win(tmp_path, query, answered):
    async with serving(tmp_path) as web, web.connect(SOCKET + query) as socket:
        web.engines.gate.clear()
        socket.send(pack({**INPUT, "seed": 0}))
        await web.engines.running.get()
        for seed in range(1, 6):
            socket.send(pack({**INPUT, "seed": seed}))
        web.engines.gate.set()
        seeds = [unpack(await socket.recv())["seed"] for _ in answered]

    assert seeds == answered


async def test_a_burst_without_max_buffering_is_answered_whole(tmp_path):
    async with serving(tmp_path) as web, web.connect(SOCKET) as socket:
        for seed in range(20):
            socket.send(pack({**INPUT, "seed": seed}))
        seeds = [unpack(await socket.recv())["seed"] for _ in range(20)]

    assert seeds == list(range(20))


async def test_a_socket_is_not_idle_because_the_server_stood_still(tmp_path):
    async with serving(tmp_path, session_idle_timeout=0.2) as web, web.connect(SOCKET) as socket:
        await asyncio.sleep(0.05)
        socket.send(pack(INPUT))
        time.sleep(1.5)  # noqa: ASYNC251 - nothing is read, and the time passes

        assert unpack(await socket.recv())["seed"] == 7


async def test_an_idle_socket_is_closed_with_1000(tmp_path):
    async with serving(tmp_path, session_idle_timeout=0.05) as web, web.connect(SOCKET) as socket:
        with pytest.raises(Closed) as closed:
            await socket.recv()

    assert closed.value.code == 1000


async def test_a_socket_with_work_in_hand_is_not_idle(tmp_path):
    async with serving(tmp_path, session_idle_timeout=0.05) as web, web.connect(SOCKET) as socket:
        web.engines.gate.clear()
        socket.send(pack(INPUT))
        await web.engines.running.get()
        await asyncio.sleep(0.2)
        web.engines.gate.set()

        assert unpack(await socket.recv())["seed"] == 7


async def test_a_client_that_leaves_cancels_its_work(tmp_path):
    async with serving(tmp_path) as web:
        async with web.connect(SOCKET) as socket:
            web.engines.gate.clear()
            socket.send(pack(INPUT))
            work = await web.engines.running.get()

        assert await asyncio.wait_for(web.engines.cancelled.get(), 5) == work.id


async def test_one_socket_too_many_is_refused_with_429(tmp_path):
    async with serving(tmp_path, max_sessions=1) as web:
        async with web.connect(SOCKET):
            with pytest.raises(Refused) as refused:
                async with web.connect(SOCKET):
                    pass

        async with web.connect(SOCKET) as again:
            again.send(json.dumps(INPUT))
            answer = json.loads(await again.recv())
    assert refused.value.answer.status == 429
    assert answer["seed"] == 7


# --- who may


@pytest.mark.parametrize(
    ("query", "headers"),
    [
        ("", None),
        ("?fal_jwt_token=nonsense", None),
        ("?fal_key_id=alice&fal_key_secret=wrong", None),
        ("", {"authorization": "Key alice:wrong"}),
    ],
)
async def test_a_caller_without_credentials_is_told_so_and_closed_with_1000(tmp_path, query, headers):
    async with serving(tmp_path, keys="alice:a") as web, web.connect(SOCKET + query, headers=headers) as socket:
        said = json.loads(await socket.recv())
        with pytest.raises(Closed) as closed:
            await socket.recv()

    assert said == {"status": "error", "error": "Unauthorized"}
    assert closed.value.code == 1000


async def test_an_expired_token_is_told_so(tmp_path):
    async with serving(tmp_path, keys="alice:a") as web:
        token = web.ctx.auth.issue(Caller("alice", "alice"), -1, ["lcm-sd15-i2i"])
        async with web.connect(f"{SOCKET}?fal_jwt_token={token}") as socket:
            said = json.loads(await socket.recv())

    assert said == {"status": "error", "error": "Unauthorized"}


async def test_a_token_opens_several_sockets(tmp_path):
    async with serving(tmp_path, keys="alice:a") as web:
        token = web.ctx.auth.issue(Caller("alice", "alice"), 60, ["lcm-sd15-i2i"])
        url = f"{SOCKET}?fal_jwt_token={token}&max_buffering=5"
        async with web.connect(url) as first, web.connect(url) as second:
            first.send(pack(INPUT))
            second.send(pack(INPUT))
            seeds = [unpack(await socket.recv())["seed"] for socket in (first, second)]

    assert seeds == [7, 7]
    assert web.engines.works[0].tenant == "alice"


@pytest.mark.parametrize(
    ("query", "headers"),
    [("", {"authorization": "Key alice:a"}), ("?fal_key_id=alice&fal_key_secret=a", None)],
    ids=["header", "query"],
)
async def test_a_key_opens_a_socket_without_a_token(tmp_path, query, headers):
    async with serving(tmp_path, keys="alice:a") as web, web.connect(SOCKET + query, headers=headers) as socket:
        socket.send(pack(INPUT))

        assert unpack(await socket.recv())["seed"] == 7


# --- what waits


async def taken(inbox, count):
    return [await inbox.get() for _ in range(count)]


def room(total=10**9):
    return Reservation(Quota(total, "bytes"), "me")


async def test_a_full_inbox_drops_the_oldest_and_says_how_many():
    inbox = Inbox(2, room(), MB)

    dropped = [inbox.put(frame) for frame in "abcd"]

    assert dropped == [0, 0, 1, 1]
    assert await taken(inbox, 2) == ["c", "d"]


async def test_a_slow_engine_shortens_the_wait_of_a_client_that_named_no_bound():
    inbox = Inbox(None, room(), MB)
    inbox.set_limit(0.5)

    dropped = sum(inbox.put(frame) for frame in "abcdefgh")

    assert dropped == 4
    assert await taken(inbox, 4) == list("efgh")


async def test_a_named_bound_is_kept_however_slow_the_engine():
    inbox = Inbox(8, room(), MB)
    inbox.set_limit(5.0)

    assert sum(inbox.put(frame) for frame in "abcdefgh") == 0


async def test_waiting_inputs_are_bounded_in_bytes_but_the_newest_always_stays():
    inbox = Inbox(60, room(), MB)
    half = bytes(MB // 2)

    dropped = [inbox.put(half), inbox.put(half), inbox.put(half), inbox.put(half + half + b"x")]

    assert dropped == [0, 0, 1, 2]


async def test_where_memory_is_short_the_oldest_that_wait_make_room():
    memory = room(100)
    inbox = Inbox(60, memory, MB)

    dropped = [inbox.put("a" * 40), inbox.put("b" * 40), inbox.put("c" * 60)]

    assert dropped == [0, 0, 1]
    assert memory.amount == 100
    assert await taken(inbox, 2) == ["b" * 40, "c" * 60]


async def test_an_input_for_which_there_is_no_memory_is_refused():
    inbox = Inbox(60, room(100), MB)

    with pytest.raises(RequestError) as refused:
        inbox.put("a" * 101)

    assert refused.value.status == 429


async def test_inputs_of_all_sockets_share_one_memory_budget(tmp_path):
    async with serving(tmp_path, max_body_bytes=1000, body_budget_bytes=1000) as web:
        web.engines.gate.clear()
        async with web.connect(SOCKET) as first, web.connect(SOCKET) as second:
            first.send(pack({**INPUT, "prompt": "p" * 600}))
            await web.engines.running.get()
            second.send(pack({**INPUT, "prompt": "p" * 600}))
            refused = json.loads(await second.recv())
            web.engines.gate.set()
            await first.recv()
            second.send(pack({**INPUT, "prompt": "p" * 600}))
            after = unpack(await second.recv())

        assert web.ctx.limits.memory_used == 0

    assert refused["error"] == "CONCURRENT_REQUESTS_LIMIT"
    assert after["seed"] == 7
