"""The proxy route: fal's targets served here, anything else refused, nothing fetched."""

import asyncio

import pytest

from tests.api.test_run import events
from tests.support.app_client import APP, INPUT, serving

pytestmark = pytest.mark.anyio

PROXY = "/api/fal/proxy"


def to(target, **headers):
    return {"x-fal-target-url": target, **headers}


@pytest.mark.parametrize(
    "target",
    [
        f"https://fal.run/{APP}",
        f"https://fal.run/{APP}/",
        f"http://fal.run:8080/{APP}",
        "https://fal.run/110602490-lcm-sd15-i2i",
        "https://110602490-lcm-sd15-i2i.gateway.alpha.fal.ai/",
        "https://falrun.com/110602490/lcm-sd15-i2i",
    ],
)
async def test_a_run_goes_through(tmp_path, target):
    async with serving(tmp_path) as web:
        answer = await web.call("POST", PROXY, body=INPUT, headers=to(target))

    assert (answer.status, answer.json()["seed"]) == (200, 7)
    assert answer.headers["x-fal-request-id"]


async def test_the_queue_goes_through_with_every_method(tmp_path):
    async with serving(tmp_path) as web:
        job = (await web.call("POST", PROXY, body=INPUT, headers=to(f"https://queue.fal.run/{APP}"))).json()
        where = f"https://queue.fal.run/{APP}/requests/{job['request_id']}"
        stream = await web.call("GET", PROXY, headers=to(f"{where}/status/stream?logs=1"))
        status = await web.call("GET", PROXY, headers=to(f"{where}/status?logs=1"))
        result = await web.call("GET", PROXY, headers=to(where))
        cancel = await web.call("PUT", PROXY, headers=to(f"{where}/cancel"))

    assert events(stream.body)[-1]["status"] == "COMPLETED"
    assert (status.status, len(status.json()["logs"])) == (200, 1)
    assert (result.status, result.headers["x-fal-request-id"]) == (200, job["request_id"])
    assert (cancel.status, cancel.json()) == (400, {"status": "ALREADY_COMPLETED"})


@pytest.mark.parametrize("host", ["rest.fal.ai", "rest.alpha.fal.ai"])
async def test_tokens_go_through(tmp_path, host):
    async with serving(tmp_path) as web:
        body = {"allowed_apps": ["lcm-sd15-i2i"]}
        answer = await web.call("POST", PROXY, body=body, headers=to(f"https://{host}/tokens/"))

    assert isinstance(answer.json(), str)


async def test_the_platforms_catalogue_and_deletions_go_through(tmp_path):
    async with serving(tmp_path, keys="alice:a") as web:
        listed = await web.call("GET", PROXY, headers=to("https://api.fal.ai/v1/models?limit=1"))
        payloads = to("https://api.fal.ai/v1/models/requests/1/payloads")
        nobodys = await web.call("DELETE", PROXY, headers=payloads)
        unknown = await web.call("DELETE", PROXY, headers={**payloads, "authorization": "Key alice:a"})

    assert [model["endpoint_id"] for model in listed.json()["models"]] == [APP]
    assert (nobodys.status, unknown.status, unknown.json()["detail"]) == (401, 404, "Request not found")


async def test_a_stream_goes_through_event_by_event(tmp_path):
    async with serving(tmp_path) as web:
        answer = await web.call("POST", PROXY, body=INPUT, headers=to(f"https://fal.run/{APP}/stream"))

    assert answer.headers["content-type"].startswith("text/event-stream")
    assert len(events(answer.body)) == 4


async def test_links_are_of_the_host_that_the_proxy_was_reached_under(tmp_path):
    async with serving(tmp_path) as web:
        body = {**INPUT, "sync_mode": False}
        answer = await web.call(
            "POST", f"http://localhost:8000{PROXY}", body=body, headers=to(f"https://fal.run/{APP}")
        )

    assert answer.json()["images"][0]["url"] == "http://localhost:8000/cdn/files/0.jpg"


async def test_leaving_the_proxy_cancels_the_work(tmp_path):
    async with serving(tmp_path) as web:
        web.engines.gate.clear()
        async with web.exchange("POST", PROXY, body=INPUT, headers=to(f"https://fal.run/{APP}")) as talk:
            await web.engines.running.get()
            talk.say({"type": "http.disconnect"})

            await asyncio.wait_for(web.engines.cancelled.get(), 5)


async def test_without_a_target_it_is_400(tmp_path):
    async with serving(tmp_path) as web:
        answer = await web.call("POST", PROXY, body=INPUT)

    assert answer.status == 400


@pytest.mark.parametrize(
    "target",
    [
        "https://example.com/fal-ai/lcm-sd15-i2i",
        "https://fal.run.example.com/x",
        "https://example.com/?fal.run",
        "https://user@fal.run/x",
        "http://127.0.0.1:8000/health",
        "http://localhost/health",
        "https://fal.run/health",
        "https://fal.run/metrics",
        "https://fal.run/api/fal/proxy",
        "https://api.fal.ai/fal/proxy",
        "https://fal.ai/api/openapi/queue/openapi.json",
        "https://fal.ai/",
        "file:///etc/passwd",
        "//",
        "x",
    ],
)
async def test_a_foreign_target_is_412(tmp_path, target):
    async with serving(tmp_path) as web:
        answer = await web.call("POST", PROXY, body=INPUT, headers=to(target))

    assert answer.status == 412


async def test_a_target_that_is_no_url_is_400(tmp_path):
    async with serving(tmp_path) as web:
        answer = await web.call("POST", PROXY, body=INPUT, headers=to("http://["))

    assert answer.status == 400


async def test_the_header_means_nothing_on_other_routes(tmp_path):
    async with serving(tmp_path) as web:
        answer = await web.call("GET", "/health", headers=to(f"https://fal.run/{APP}"))

    assert answer.json()["state"] == "READY"


@pytest.mark.parametrize(("authorization", "status"), [(None, 401), ("Key alice:a", 200)])
async def test_the_proxy_opens_nothing_that_is_closed(tmp_path, authorization, status):
    async with serving(tmp_path, keys="alice:a") as web:
        headers = to(f"https://fal.run/{APP}", authorization=authorization)
        answer = await web.call("POST", PROXY, body=INPUT, headers=headers)

    assert answer.status == status
