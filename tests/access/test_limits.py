"""Limits on what is in flight, of all callers and of one key; and that every reservation is released."""

import asyncio
import contextlib
import dataclasses
import json

import pytest

from server.access import api_keys
from server.access.limits import Quota, Reservation
from server.fal.errors import RequestError
from server.settings import Settings, SettingsError
from tests.support.app_client import INPUT, QUEUE, RUN, serving
from tests.support.asgi_client import Refused

pytestmark = pytest.mark.anyio

ALICE, BOB = {"authorization": "Key alice:a"}, {"authorization": "Key bob:b"}
KEYS = "alice:a,bob:b"
SOCKET = f"{RUN}/realtime"
PICTURE = "https://pictures.example/1.jpg"


def limited(tmp_path, **limits):
    """The header of a new key with limits of its own."""
    file = api_keys.path(Settings(data_dir=tmp_path))
    credential = api_keys.add(file, "carol")
    api_keys.limit(file, "carol", **limits)
    return {"authorization": f"Key {credential}"}


@contextlib.asynccontextmanager
async def running(web, count, headers, path=RUN):
    """Keep `count` calls in flight."""
    web.engines.gate.clear()
    async with contextlib.AsyncExitStack() as stack:
        talks = []
        for _ in range(count):
            talks.append(await stack.enter_async_context(web.exchange("POST", path, body=INPUT, headers=headers)))
            await web.engines.running.get()
        yield talks


# --- supplies


def test_a_hold_takes_no_more_than_its_owners_share():
    supply = Quota(10, "things")
    first, second = Reservation(supply, "alice", 4), Reservation(supply, "alice", 4)
    first.take(3)

    with pytest.raises(RequestError, match="This key"):
        second.take(2)
    second.take(1)
    assert (supply.used, second.amount) == (4, 1)


def test_all_together_take_no_more_than_there_is():
    supply = Quota(10, "things")
    Reservation(supply, "alice", 8).take(8)

    with pytest.raises(RequestError, match="Too many"):
        Reservation(supply, "bob", 8).take(3)
    assert supply.used == 8


def test_a_closed_hold_has_given_all_back():
    supply = Quota(10, "things")
    hold = Reservation(supply, "alice", 10)
    hold.take(7)
    hold.give_back(2)

    hold.close()

    assert (supply.used, len(supply._taken)) == (0, 0)
    Reservation(supply, "alice", 10).take(10)


# --- calls


@pytest.mark.parametrize("path", [RUN, f"{RUN}/stream"])
async def test_a_key_has_half_of_the_servers_calls_and_the_rest_is_for_others(tmp_path, path):
    async with serving(tmp_path, keys=KEYS, max_calls=4) as web, running(web, 2, ALICE, path):
        refused = await web.call("POST", path, body=INPUT, headers=ALICE)
        web.engines.gate.set()
        other = await web.call("POST", path, body=INPUT, headers=BOB)

    assert (refused.status, refused.json()["error_type"]) == (429, "concurrent_requests_limit")
    assert (refused.headers["x-fal-needs-retry"], refused.headers["retry-after"]) == ("1", "1")
    assert other.status == 200


async def test_without_keys_there_are_no_shares(tmp_path):
    async with serving(tmp_path, max_calls=2) as web, running(web, 2, None):
        refused = await web.call("POST", RUN, body=INPUT)

    assert "This key" not in refused.json()["detail"]


async def test_a_keys_own_limit_counts_in_place_of_the_share(tmp_path):
    mine = limited(tmp_path, calls=3)
    async with serving(tmp_path, max_calls=4) as web, running(web, 3, mine):
        refused = await web.call("POST", RUN, body=INPUT, headers=mine)

    assert refused.status == 429


async def test_a_running_server_obeys_a_limit_that_is_set_meanwhile(tmp_path):
    mine = limited(tmp_path)
    async with serving(tmp_path) as web, running(web, 1, mine):
        api_keys.limit(api_keys.path(web.ctx.settings), "carol", calls=1)
        refused = await web.call("POST", RUN, body=INPUT, headers=mine)

    assert refused.status == 429


async def test_a_token_counts_for_its_key(tmp_path):
    async with serving(tmp_path, keys=KEYS, max_calls=2) as web, running(web, 1, ALICE):
        token = web.ctx.auth.issue(web.ctx.auth._caller(web.ctx.auth._keys.find("alice")), 60, ["lcm-sd15-i2i"])
        refused = await web.call("POST", RUN, body=INPUT, headers={"authorization": f"Bearer {token}"})

    assert refused.status == 429


async def test_a_call_through_the_proxy_counts_once(tmp_path):
    forwarded = {**ALICE, "x-fal-target-url": "https://fal.run/fal-ai/lcm-sd15-i2i"}
    async with serving(tmp_path, keys=KEYS, max_calls=4) as web, running(web, 2, forwarded, "/api/fal/proxy"):
        refused = await web.call("POST", RUN, body=INPUT, headers=ALICE)
        used = web.ctx.limits._calls.used

    assert (refused.status, used) == (429, 2)


# --- connections


@contextlib.asynccontextmanager
async def held(web, count, method, url, **options):
    """Keep `count` exchanges open, each answered as far as it can be."""
    async with contextlib.AsyncExitStack() as stack:
        for _ in range(count):
            talk = await stack.enter_async_context(web.exchange(method, url, **options))
            if method == "GET":
                await talk.hear()
            else:  # its body never comes
                talk._incoming.get_nowait()
                await asyncio.sleep(0)
        yield


async def status_stream(web, headers):
    """The URL of the status stream of a job that waits."""
    web.engines.capacity = 0
    return (await web.call("POST", QUEUE, body=INPUT, headers=headers)).json()["status_url"] + "/stream"


async def upload(web, headers):
    answer = await web.call("POST", "/rest/storage/upload/initiate", body={}, headers=headers)
    return answer.json()["upload_url"]


async def test_a_key_has_half_of_the_connections_for_status_streams_and_the_rest_is_for_others(tmp_path):
    async with serving(tmp_path, keys=KEYS, max_connections=6) as web:
        url = await status_stream(web, ALICE)
        async with held(web, 3, "GET", url, headers=ALICE):
            refused = await web.call("GET", url, headers=ALICE)
            other = await web.call("POST", RUN, body=INPUT, headers=BOB)

    assert (refused.status, refused.headers["x-fal-needs-retry"]) == (429, "1")
    assert other.status == 200


async def test_two_hundred_status_streams_of_one_key_are_served(tmp_path):
    async with serving(tmp_path, keys=KEYS) as web:
        url = await status_stream(web, ALICE)
        async with held(web, 200, "GET", url, headers=ALICE):
            status = (await web.call("GET", url.removesuffix("/stream"), headers=ALICE)).status

    assert status == 202


@pytest.mark.parametrize(
    ("method", "path"), [("POST", QUEUE), ("POST", RUN), ("PUT", upload), ("POST", "/rest/tokens")]
)
async def test_a_key_has_half_of_the_connections_for_bodies_that_never_come(tmp_path, method, path):
    async with serving(tmp_path, keys=KEYS, max_connections=6) as web:
        url = path if isinstance(path, str) else await path(web, ALICE)
        async with held(web, 3, method, url, headers=ALICE):
            refused = await web.call("GET", f"{QUEUE}/requests/1/status", headers=ALICE)
            other = await web.call("GET", f"{QUEUE}/requests/1/status", headers=BOB)
        after = await web.call("GET", f"{QUEUE}/requests/1/status", headers=ALICE)

    assert (refused.status, other.status, after.status) == (429, 404, 404)


async def test_sockets_are_connections_too(tmp_path):
    async with serving(tmp_path, keys=KEYS, max_connections=2) as web, web.connect(SOCKET, headers=ALICE):
        refused = await web.call("POST", RUN, body=INPUT, headers=ALICE)

    assert refused.status == 429


@pytest.mark.parametrize("chosen", [{"max_connections": 4}, {"max_connections": 6, "max_calls": 4}])
async def test_the_status_streams_of_a_server_without_keys_leave_room_for_its_runs(tmp_path, chosen):
    async with serving(tmp_path, **chosen) as web:
        url = await status_stream(web, None)
        async with held(web, chosen["max_connections"] // 2, "GET", url):
            refused = await web.call("GET", url)
            run = await web.call("POST", RUN, body=INPUT)

    assert "Too many status streams" in refused.json()["detail"]
    assert (refused.status, run.status) == (429, 200)


def test_a_keys_own_limits_bring_the_connections_for_them():
    key = dataclasses.replace(api_keys.Key("carol", "carol", "", ""), calls=900, sessions=50)

    assert api_keys.allowance(Settings(), key).connections == 950


# --- sockets


@pytest.mark.parametrize("path", [SOCKET, "/ws/fal-ai/lcm-sd15-i2i"])
async def test_a_key_has_half_of_the_servers_sessions_and_the_rest_is_for_others(tmp_path, path):
    async with serving(tmp_path, keys=KEYS, max_sessions=2) as web, web.connect(path, headers=ALICE):
        with pytest.raises(Refused) as refused:
            async with web.connect(path, headers=ALICE):
                pass
        async with web.connect(SOCKET, headers=BOB) as other:
            other.send(json.dumps(INPUT))
            answer = json.loads(await other.recv())

    assert refused.value.answer.status == 429
    assert answer["seed"] == 7


# --- the queue


async def submit(web, headers, count=1):
    answers = [await web.call("POST", QUEUE, body=INPUT, headers=headers) for _ in range(count)]
    return [answer.status for answer in answers]


async def test_a_key_has_half_of_the_queue_and_the_rest_is_for_others(tmp_path):
    async with serving(tmp_path, keys=KEYS, max_queue=4) as web:
        web.engines.capacity = 0
        mine, others = await submit(web, ALICE, 3), await submit(web, BOB, 3)

    assert mine == others == [200, 200, 429]


async def test_many_submits_at_once_do_not_get_past_a_keys_limit(tmp_path):
    mine = limited(tmp_path, queued=3)
    async with serving(tmp_path) as web:
        web.engines.capacity = 0
        statuses = await asyncio.gather(*(submit(web, mine) for _ in range(8)))

    assert sorted(status for [status] in statuses) == [200] * 3 + [429] * 5


async def test_a_restart_keeps_count_of_what_a_key_has_waiting(tmp_path):
    mine = limited(tmp_path, queued=2)
    async with serving(tmp_path) as web:
        web.engines.capacity = 0
        before = await submit(web, mine)

    async with serving(tmp_path, capacity=0) as web:
        after = await submit(web, mine, 2)

    assert (before, after) == ([200], [200, 429])


async def test_a_job_that_is_taken_up_ended_or_put_back_is_counted_right(tmp_path):
    async with serving(tmp_path, keys=KEYS) as web:
        web.engines.finish.clear()
        await submit(web, ALICE)
        work = await web.engines.running.get()
        taken_up = web.ctx.queue.owned("alice")
        web.ctx.queue._index.requeued(work.id.partition(".")[0])
        put_back = web.ctx.queue.owned("alice")
        web.engines.finish.set()
        await web.call("PUT", f"{QUEUE}/requests/{work.id.partition('.')[0]}/cancel", headers=ALICE)

        assert (taken_up, put_back, web.ctx.queue.owned("alice")) == (0, 1, 0)


# --- memory


def body(size):
    """An input whose JSON has `size` bytes."""
    empty = len(json.dumps({**INPUT, "more": ""}))
    return json.dumps({**INPUT, "more": "A" * (size - empty)}).encode()


def chosen(**more):
    return {"max_body_bytes": 1000, "body_budget_bytes": 2000, **more}


async def test_a_body_that_the_budget_has_no_room_for_is_429_before_it_is_read(tmp_path):
    async with serving(tmp_path, **chosen()) as web:
        web.ctx.limits._memory.take("somebody", 1500, None)
        async with web.exchange("POST", RUN, headers={"content-length": "600"}) as talk:
            start = await talk.hear()

    assert start["status"] == 429


async def test_a_body_of_no_announced_length_is_counted_as_it_comes(tmp_path):
    async with serving(tmp_path, **chosen()) as web:
        web.ctx.limits._memory.take("somebody", 1500, None)
        async with web.exchange("POST", RUN) as talk:
            talk._incoming.get_nowait()
            talk.say({"type": "http.request", "body": b"x" * 400, "more_body": True})
            talk.say({"type": "http.request", "body": b"x" * 400, "more_body": True})
            start = await talk.hear()

        used = web.ctx.limits.memory_used
    assert (start["status"], used) == (429, 1500)


async def test_a_body_is_held_until_its_call_has_ended(tmp_path):
    async with serving(tmp_path, **chosen()) as web:
        web.engines.gate.clear()
        async with web.exchange("POST", RUN, body=body(900), headers={"content-length": "900"}) as talk:
            await web.engines.running.get()
            held = web.ctx.limits.memory_used
            web.engines.gate.set()
            status = (await talk.hear())["status"]
        assert (held, status, web.ctx.limits.memory_used) == (900, 200, 0)


async def left(web):
    """A call whose client leaves."""
    async with running(web, 1, ALICE):
        pass


async def failed(web):
    """A call that ends in an error of ours."""
    web.engines.failure = ZeroDivisionError()
    with contextlib.suppress(ZeroDivisionError):
        await web.call("POST", RUN, body=INPUT, headers=ALICE)


async def invalid(web):
    """A call with a body that is no input."""
    await web.call("POST", RUN, body=b"{", headers=ALICE)


async def too_large(web):
    """A call with too long a body."""
    await web.call("POST", RUN, body=bytes(80_000), headers=ALICE)


async def streamed(web):
    """A stream, to its end."""
    await web.call("POST", f"{RUN}/stream", body=INPUT, headers=ALICE)


async def queued(web):
    """A submit."""
    await web.call("POST", QUEUE, body=INPUT, headers=ALICE)


async def uploaded(web):
    """An upload."""
    await web.call("POST", "/cdn/files/upload", body=b"x" * 100, headers=ALICE)


@pytest.mark.parametrize("act", [left, failed, invalid, too_large, streamed, queued, uploaded])
async def test_whatever_ends_a_call_gives_back_what_it_had(tmp_path, act):
    async with serving(tmp_path, keys=KEYS, max_body_bytes=70_000, body_budget_bytes=3_000_000) as web:
        await act(web)

        limits = web.ctx.limits
        assert [supply.used for supply in (limits._calls, limits._sessions, limits._memory)] == [0, 0, 0]


async def test_a_fetched_picture_counts_while_its_call_is_in_hand(tmp_path):
    async with serving(tmp_path, **chosen(body_budget_bytes=3000)) as web:
        web.net.pages[PICTURE] = b"x" * 1900
        web.engines.gate.clear()
        async with web.exchange("POST", RUN, body={**INPUT, "image_url": PICTURE}) as talk:
            await web.engines.running.get()
            refused = await web.call("POST", RUN, body={**INPUT, "image_url": PICTURE})
            web.engines.gate.set()
            served = (await talk.hear())["status"]

        assert (refused.status, served, web.ctx.limits.memory_used) == (429, 200, 0)


async def test_an_accepted_job_is_not_refused_its_picture(tmp_path):
    async with serving(tmp_path, **chosen()) as web:
        web.ctx.limits._memory.take("somebody", 1500, None)
        web.net.pages[PICTURE] = b"x" * 1000
        await web.call("POST", QUEUE, body={**INPUT, "image_url": PICTURE})

        assert (await asyncio.wait_for(web.engines.running.get(), 5)).image == b"x" * 1000


async def test_one_key_leaves_room_for_anothers_body(tmp_path):
    async with serving(tmp_path, keys=KEYS, **chosen(body_budget_bytes=3000)) as web:
        web.engines.gate.clear()
        size = {"content-length": "900"}
        async with web.exchange("POST", RUN, body=body(900), headers=ALICE | size):
            await web.engines.running.get()
            refused = await web.call("POST", RUN, body=body(900), headers=ALICE | size)
            web.engines.gate.set()
            other = await web.call("POST", RUN, body=body(900), headers=BOB | size)

    assert (refused.status, other.status) == (429, 200)


def test_a_budget_smaller_than_the_largest_body_stops_the_start(tmp_path):
    with pytest.raises(SettingsError, match="body-budget-bytes"):
        Settings(data_dir=tmp_path, max_body_bytes=1000, body_budget_bytes=999)
