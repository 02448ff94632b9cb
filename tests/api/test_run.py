"""Run and stream: answers, errors, limits, and clients that leave."""

import asyncio
import base64
import json

import pytest

from pipelines.messages import Priority
from server.fal.errors import RequestError, invalid
from server.outbound.urls import failed
from tests.support.app_client import APP, DATA_URI, INPUT, JPEG, RUN, serving
from tests.support.asgi_client import chunks

pytestmark = pytest.mark.anyio

OUTPUT_KEYS = ["images", "timings", "seed", "num_inference_steps", "request_id", "nsfw_content_detected"]


def events(body):
    """The objects in an event stream; comments are left out."""
    assert body.endswith(b"\n\n")
    blocks = [block for block in body.decode("ascii").split("\n\n") if block and not block.startswith(":")]
    return [json.loads(block.removeprefix("data: ")) for block in blocks]


async def test_a_run_answers_with_the_bare_output_in_fals_order(tmp_path):
    async with serving(tmp_path) as web:
        answer = await web.call("POST", RUN, body={**INPUT, "num_images": 2, "request_id": "mine"})

    image = {
        "url": "data:image/jpeg;base64," + base64.b64encode(JPEG).decode(),
        "width": 512,
        "height": 504,
        "content_type": "image/jpeg",
    }
    assert answer.status == 200
    assert answer.headers["content-type"] == "application/json"
    assert list(answer.json()) == OUTPUT_KEYS
    assert answer.json() == {
        "images": [image, image],
        "timings": {"inference": 0.25, "decode": 0.05},
        "seed": 7,
        "num_inference_steps": 4,
        "request_id": "mine",
        "nsfw_content_detected": [False, False],
    }


@pytest.mark.parametrize(
    "url",
    [
        "https://fal.run/fal-ai/lcm-sd15-i2i",
        "https://fal.run/fal-ai/lcm-sd15-i2i/",
        "https://fal.run/110602490/lcm-sd15-i2i",
        "https://fal.run/110602490-lcm-sd15-i2i",
        "https://110602490-lcm-sd15-i2i.gateway.alpha.fal.ai/",
        "http://localhost/fal-ai/lcm-sd15-i2i",
        "http://localhost/run/110602490-lcm-sd15-i2i/",
    ],
)
async def test_every_spelling_of_the_endpoint_runs(tmp_path, url):
    async with serving(tmp_path) as web:
        answer = await web.call("POST", url, body=INPUT)

    assert (answer.status, answer.json()["seed"]) == (200, 7)


async def test_the_engine_gets_the_input_and_whose_it_is(tmp_path):
    async with serving(tmp_path, keys="alice:s") as web:
        await web.call("POST", RUN, body={**INPUT, "strength": 0.5}, headers={"authorization": "Key alice:s"})

        (work,) = web.engines.works
    assert (work.image, work.tenant, work.priority) == (base64.b64decode("/9j/4A=="), "alice", Priority.RUN)
    assert (work.params.prompt, work.params.seed, work.params.strength) == (INPUT["prompt"], 7, 0.5)


async def test_results_are_stored_and_linked_unless_they_are_wanted_inline(tmp_path):
    lifecycle = '{"expiration_duration_seconds": 60}'
    async with serving(tmp_path) as web:
        body = {**INPUT, "sync_mode": False}
        headers = {"x-fal-object-lifecycle-preference": lifecycle}
        answer = await web.call("POST", "http://localhost:8000" + RUN, body=body, headers=headers)

        (saved,) = web.shelf.saved.items()
    name, (data, content_type, options) = saved
    assert answer.json()["images"][0]["url"] == f"http://localhost:8000/cdn/files/{name}"
    assert (data, content_type, options["lifecycle"]) == (JPEG, "image/jpeg", lifecycle)


async def test_on_fals_hosts_links_are_of_fals_cdn(tmp_path):
    async with serving(tmp_path) as web:
        answer = await web.call("POST", f"https://fal.run/{APP}", body={**INPUT, "sync_mode": False})

    assert answer.json()["images"][0]["url"] == "https://v3.fal.media/files/0.jpg"


async def test_a_get_has_its_input_in_the_query(tmp_path):
    async with serving(tmp_path) as web:
        query = f"prompt=two+words&image_url={DATA_URI.replace('+', '%2B')}&seed=3&sync_mode=true"
        answer = await web.call("GET", f"{RUN}?{query}", headers={"content-type": "application/json"})

        assert web.engines.works[0].params.prompt == "two words"
    assert (answer.status, answer.json()["seed"]) == (200, 3)


@pytest.mark.parametrize("path", [RUN, f"{RUN}/stream"])
@pytest.mark.parametrize(
    ("body", "loc", "kind"),
    [
        (b"", ["body"], "missing"),
        (b"{", ["body"], "json_invalid"),
        (b"[1]", ["body"], "model_attributes_type"),
        ({**INPUT, "strength": 2}, ["body", "strength"], "less_than_equal"),
        ({**INPUT, "image_url": "data:image/png;base64,*"}, ["body", "image_url"], "image_load_error"),
        ({**INPUT, "image_url": "https://example.test/404"}, ["body", "image_url"], "file_download_error"),
        ({**INPUT, "image_url": "https://example.test/big"}, ["body", "image_url"], "file_too_large"),
        ({**INPUT, "image_url": "data:," + "x" * 1001}, ["body", "image_url"], "file_too_large"),
    ],
)
async def test_a_bad_input_is_422_in_json_with_its_place(tmp_path, path, body, loc, kind):
    async with serving(tmp_path, max_image_bytes=1000) as web:
        web.net.pages["https://example.test/big"] = bytes(1001)
        answer = await web.call("POST", path, body=body)

    (fault,) = answer.json()["detail"]
    assert (answer.status, fault["loc"], fault["type"]) == (422, loc, kind)
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["x-fal-needs-retry"] == "0"


async def test_while_a_name_server_fails_clients_try_again(tmp_path):
    url = "https://example.test/a.png"
    async with serving(tmp_path) as web:
        web.net.pages[url] = failed("its host name can't be resolved at present", passing=True)
        answer = await web.call("POST", RUN, body={**INPUT, "image_url": url})

    assert (answer.status, answer.headers["x-fal-needs-retry"]) == (429, "1")
    assert "can't be resolved at present" in answer.json()["detail"]


async def test_a_picture_is_fetched(tmp_path):
    async with serving(tmp_path) as web:
        web.net.pages["https://example.test/a.png"] = b"png"
        answer = await web.call("POST", RUN, body={**INPUT, "image_url": "https://example.test/a.png"})

        assert web.engines.works[0].image == b"png"
    assert answer.status == 200


@pytest.mark.parametrize(
    ("failure", "status"),
    [
        (invalid("image_url", "image_too_small", "too small", {"min_width": 64}), 422),
        (RequestError("runner_scheduling_failure", "mend it"), 503),
        (RequestError("startup_timeout", "too slow"), 504),
        (RequestError("runner_server_error", "broken"), 500),
    ],
)
@pytest.mark.parametrize("path", [RUN, f"{RUN}/stream"])
async def test_what_the_pool_raises_is_the_answer(tmp_path, failure, status, path):
    async with serving(tmp_path) as web:
        web.engines.failure = failure
        answer = await web.call("POST", path, body=INPUT)

    assert (answer.status, answer.json()) == (status, failure.body)


async def test_a_fault_of_ours_is_500_with_an_id_and_its_message_is_kept_from_answer_and_log(tmp_path, caplog):
    async with serving(tmp_path) as web:
        web.engines.failure = ValueError("canary")
        answer = await web.call("POST", RUN, body=INPUT, headers={"origin": "http://localhost:3000"})

    assert (answer.status, answer.json()["error_type"]) == (500, "internal_error")
    assert "x-fal-request-id" in answer.headers
    assert answer.headers["access-control-allow-origin"] == "http://localhost:3000"
    assert b"canary" not in answer.body
    assert "ValueError" in caplog.text
    assert "canary" not in caplog.text


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("POST", RUN, 200),
        ("POST", "/run/fal-ai/other", 404),
        ("POST", f"{RUN}/nope", 404),
        ("POST", "/run/fal-ai", 404),
        ("POST", "/nowhere", 404),
        ("PUT", RUN, 405),
        ("DELETE", RUN, 405),
        ("GET", "/health", 200),
    ],
)
async def test_every_answer_is_json_with_a_request_id(tmp_path, method, path, status):
    async with serving(tmp_path) as web:
        answer = await web.call(method, path, body=INPUT)

    assert answer.status == status
    assert answer.headers["content-type"] == "application/json"
    assert len(answer.headers["x-fal-request-id"]) == 36
    assert status == 200 or isinstance(answer.json()["detail"], str)


@pytest.mark.parametrize("method", ["HEAD", "DELETE"])
async def test_the_methods_that_it_allows_are_those_that_it_answers(tmp_path, method):
    async with serving(tmp_path) as web:
        answer = await web.call(method, RUN)

    assert (answer.status, set(answer.headers["allow"].split(", "))) == (405, {"GET", "POST"})


@pytest.mark.parametrize(("announced", "sent"), [("1001", 10), ("9" * 5000, 10), (None, 1001)])
async def test_a_body_beyond_the_limit_is_413_as_soon_as_that_is_known(tmp_path, announced, sent):
    async with serving(tmp_path, max_body_bytes=1000) as web:
        answer = await web.call("POST", RUN, body=b" " * sent, headers={"content-length": announced})

    assert answer.status == 413
    assert web.engines.works == []


async def test_a_client_that_leaves_cancels_its_work(tmp_path):
    async with serving(tmp_path) as web:
        web.engines.gate.clear()
        async with web.exchange("POST", RUN, body=INPUT) as talk:
            work = await web.engines.running.get()
            talk.say({"type": "http.disconnect"})

            assert await asyncio.wait_for(web.engines.cancelled.get(), 5) == work.id


async def test_a_client_that_leaves_a_stream_cancels_its_work(tmp_path):
    async with serving(tmp_path) as web:
        web.engines.gate.clear()
        async with web.exchange("POST", f"{RUN}/stream", body=INPUT) as talk:
            work = await web.engines.running.get()
            talk.say({"type": "http.disconnect"})

            assert await asyncio.wait_for(web.engines.cancelled.get(), 5) == work.id


@pytest.mark.parametrize("name", ["x-fal-request-timeout", "X-Fal-Request-Start-Timeout"])
async def test_a_run_that_does_not_start_in_time_is_504_of_the_users_own(tmp_path, name):
    async with serving(tmp_path) as web:
        web.engines.gate.clear()
        answer = await web.call("POST", RUN, body=INPUT, headers={name: "0.15"})

        assert (await web.engines.cancelled.get()) == web.engines.works[0].id
    assert (answer.status, answer.json()["error_type"]) == (504, "startup_timeout")
    assert answer.headers["x-fal-request-timeout-type"] == "user"


async def test_the_start_timeout_ends_with_the_start(tmp_path):
    async with serving(tmp_path) as web:
        web.engines.finish.clear()
        async with web.exchange("POST", RUN, body=INPUT, headers={"x-fal-request-timeout": "0.15"}) as talk:
            await web.engines.running.get()
            await asyncio.sleep(0.3)
            web.engines.finish.set()

            assert (await talk.hear())["status"] == 200


@pytest.mark.parametrize("value", ["", "soon", "0", "-1", "nan", "0.1"])
async def test_a_start_timeout_that_is_none_is_400(tmp_path, value):
    async with serving(tmp_path) as web:
        answer = await web.call("POST", RUN, body=INPUT, headers={"x-fal-request-timeout": value})

    assert (answer.status, answer.json()["error_type"]) == (400, "bad_request")


async def test_a_malformed_lifecycle_is_400_before_any_work(tmp_path):
    async with serving(tmp_path) as web:
        headers = {"x-fal-object-lifecycle-preference": "private"}
        answer = await web.call("POST", RUN, body=INPUT, headers=headers)

    assert answer.status == 400
    assert web.engines.works == []


async def test_one_call_too_many_is_429_at_once(tmp_path):
    async with serving(tmp_path, max_calls=1) as web:
        web.engines.gate.clear()
        async with web.exchange("POST", RUN, body=INPUT) as first:
            await web.engines.running.get()
            refused = await web.call("POST", RUN, body=INPUT)
            web.engines.gate.set()
            served = (await first.hear())["status"]
            await first.hear()

        again = await web.call("POST", RUN, body=INPUT)
    assert (served, refused.status, again.status) == (200, 429, 200)
    assert refused.json()["error_type"] == "concurrent_requests_limit"


@pytest.mark.parametrize("authorization", [None, "Key alice:wrong", "Bearer x"])
@pytest.mark.parametrize("path", [RUN, f"{RUN}/stream"])
async def test_with_keys_a_run_needs_one(tmp_path, authorization, path):
    async with serving(tmp_path, keys="alice:s") as web:
        answer = await web.call("POST", path, body=INPUT, headers={"authorization": authorization})

    assert answer.status == 401
    assert isinstance(answer.json()["detail"], str)


# --- stream


async def test_a_stream_shows_each_step_and_ends_with_the_output(tmp_path):
    async with serving(tmp_path) as web:
        # As fal's proxies forward it.
        answer = await web.call("POST", f"{RUN}/stream", body=INPUT, headers={"accept": "application/json"})

    *partial, last = events(answer.body)
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert [event["progress"] for event in partial] == [{"step": n, "steps": 4} for n in (1, 2, 3)]
    assert all(event["images"][0]["url"].startswith("data:image/jpeg;base64,") for event in partial)
    assert list(last) == OUTPUT_KEYS


async def test_a_stream_is_ascii_whatever_is_in_it(tmp_path):
    async with serving(tmp_path) as web:
        answer = await web.call("POST", f"{RUN}/stream", body={**INPUT, "request_id": "ñ→🖼"})

    assert answer.body.isascii()
    assert events(answer.body)[-1]["request_id"] == "ñ→🖼"


async def test_a_stream_that_waits_for_its_engine_says_nothing_yet(tmp_path):
    async with serving(tmp_path) as web:
        web.engines.gate.clear()
        async with web.exchange("POST", f"{RUN}/stream", body=INPUT) as talk:
            await web.engines.running.get()
            silent = talk.outgoing.empty()
            web.engines.gate.set()
            start = await talk.hear()
            body = b"".join([chunk async for chunk in chunks(talk)])

    assert silent
    assert start["status"] == 200
    assert len(events(body)) == 4


async def test_a_token_opens_a_stream_without_a_key(tmp_path):
    async with serving(tmp_path, keys="alice:s") as web:
        body = {"allowed_apps": ["lcm-sd15-i2i"], "token_expiration": 120}
        token = (await web.call("POST", "/rest/tokens/", body=body, headers={"authorization": "Key alice:s"})).json()

        answer = await web.call("POST", f"{RUN}/stream?fal_jwt_token={token}", body=INPUT)

    assert (answer.status, web.engines.works[0].tenant) == (200, "alice")
