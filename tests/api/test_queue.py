"""The queue over HTTP: submit, status, stream, result, cancel, and whose a job is."""

import asyncio
import json
from urllib.parse import quote

import pytest

from pipelines.messages import Priority
from server.fal.errors import RequestError
from tests.api.test_run import OUTPUT_KEYS, events
from tests.jobs.queues import outbox_of
from tests.support.app_client import APP, INPUT, QUEUE, serving
from tests.support.asgi_client import chunks

pytestmark = pytest.mark.anyio

JOB_KEYS = {"status", "request_id", "response_url", "status_url", "cancel_url", "queue_position", "logs"}


async def submit(web, url=QUEUE, **options):
    answer = await web.call("POST", url, body=options.pop("body", INPUT), **options)
    assert answer.status == 200, answer.body
    return answer.json()


async def finished(web, job, **options):
    """The last status of a job, taken from its stream."""
    answer = await web.call("GET", f"{job['status_url']}/stream?logs=1", **options)
    return events(answer.body)[-1]


async def running(web):
    """A submitted job that the engine has in hand, and stays there."""
    web.engines.gate.clear()
    job = await submit(web)
    await asyncio.wait_for(web.engines.running.get(), 5)
    return job


async def test_a_submit_says_where_to_go_on(tmp_path):
    async with serving(tmp_path) as web:
        answer = await web.call("POST", f"http://localhost:8000{QUEUE}", body=INPUT)

    job = answer.json()
    where = f"http://localhost:8000/queue/{APP}/requests/{job['request_id']}"
    assert job == {
        "status": "IN_QUEUE",
        "request_id": answer.headers["x-fal-request-id"],
        "gateway_request_id": job["request_id"],
        "response_url": where,
        "status_url": f"{where}/status",
        "cancel_url": f"{where}/cancel",
        "logs": None,
        "metrics": {},
        "queue_position": 0,
    }


@pytest.mark.parametrize(
    ("url", "links"),
    [
        ("https://queue.fal.run/fal-ai/lcm-sd15-i2i", "https://queue.fal.run/"),
        ("https://queue.fal.run/110602490-lcm-sd15-i2i/", "https://queue.fal.run/"),
        ("https://queue.falrun.com/110602490/lcm-sd15-i2i", "https://queue.fal.run/"),
        ("https://localhost:8443/queue/110602490-lcm-sd15-i2i", "https://localhost:8443/queue/"),
        ("https://110602490-lcm-sd15-i2i.gateway.alpha.fal.ai/fal/queue/submit", "https://queue.fal.run/"),
    ],
)
async def test_the_urls_handed_out_lead_to_the_result(tmp_path, url, links):
    async with serving(tmp_path) as web:
        job = await submit(web, url)
        status = await finished(web, job)
        result = await web.call("GET", job["response_url"])

    assert job["status_url"].startswith(links)
    assert (status["status"], result.status, result.json()["seed"]) == ("COMPLETED", 200, 7)


async def test_a_waiting_job_is_202_with_its_place(tmp_path):
    async with serving(tmp_path) as web:
        await running(web)
        first, second = await submit(web), await submit(web)
        answers = [await web.call("GET", job["status_url"]) for job in (first, second)]

    assert [answer.status for answer in answers] == [202, 202]
    assert [(a.json()["status"], a.json()["queue_position"]) for a in answers] == [("IN_QUEUE", 0), ("IN_QUEUE", 1)]
    assert set(answers[0].json()) >= JOB_KEYS


async def test_a_running_job_is_202_and_in_progress(tmp_path):
    async with serving(tmp_path) as web:
        job = await running(web)
        answer = await web.call("GET", job["status_url"])

    assert (answer.status, answer.json()["status"]) == (202, "IN_PROGRESS")
    assert set(answer.json()) >= JOB_KEYS


async def test_a_completed_job_is_200_with_its_time(tmp_path):
    async with serving(tmp_path) as web:
        job = await submit(web)
        await finished(web, job)
        answer = await web.call("GET", job["status_url"] + "/")

    body = answer.json()
    assert (answer.status, body["status"]) == (200, "COMPLETED")
    assert isinstance(body["metrics"]["inference_time"], float)
    assert "error" not in body
    assert set(body) >= JOB_KEYS


@pytest.mark.parametrize("query", ["?logs=1", "?logs=true"])
async def test_logs_come_when_they_are_asked_for(tmp_path, query):
    async with serving(tmp_path) as web:
        job = await submit(web)
        await finished(web, job)
        answer = await web.call("GET", job["status_url"] + query)

    assert [line["message"] for line in answer.json()["logs"]] == ["9 tokens, 9 used"]


@pytest.mark.parametrize("query", ["?logs=0", "?logs=false", ""])
async def test_logs_that_were_not_asked_for_are_null(tmp_path, query):
    async with serving(tmp_path) as web:
        job = await submit(web)
        await finished(web, job)
        answer = await web.call("GET", job["status_url"] + query)

    assert answer.json()["logs"] is None


async def test_the_status_stream_tells_each_log_line_once_and_ends_with_the_end(tmp_path):
    async with serving(tmp_path) as web:
        job = await running(web)
        async with web.exchange("GET", f"{job['status_url']}/stream?logs=1") as talk:
            start = await talk.hear()
            first = json.loads((await talk.hear())["body"].removeprefix(b"data: "))
            web.engines.gate.set()
            rest = events(b"".join([chunk async for chunk in chunks(talk)]))

    told = [first, *rest]
    assert dict(start["headers"])[b"content-type"].startswith(b"text/event-stream")
    assert first["status"] == "IN_PROGRESS"
    assert rest[-1]["status"] == "COMPLETED"
    assert [line["message"] for event in told for line in event["logs"]] == ["9 tokens, 9 used"]


async def test_the_result_is_the_bare_output_under_the_jobs_id_again_and_again(tmp_path):
    async with serving(tmp_path) as web:
        job = await submit(web)
        await finished(web, job)
        answers = [await web.call("GET", job["response_url"] + end) for end in ("", "/", "/response")]

    assert list(answers[0].json()) == OUTPUT_KEYS
    assert {answer.body for answer in answers} == {answers[0].body}
    assert {answer.headers["x-fal-request-id"] for answer in answers} == {job["request_id"]}
    assert {answer.headers["content-type"] for answer in answers} == {"application/json"}


async def test_a_result_before_the_end_is_400(tmp_path):
    async with serving(tmp_path) as web:
        job = await running(web)
        answer = await web.call("GET", job["response_url"])

    said = answer.json()
    assert (answer.status, said.pop("message")) == (400, "Request is still in progress")
    assert said.pop("detail") == "Request is still in progress"
    assert said == {name: job[name] for name in ("request_id", "response_url", "status_url", "cancel_url")}


async def test_an_invalid_input_is_accepted_and_is_its_own_result(tmp_path):
    async with serving(tmp_path) as web:
        job = await submit(web, body={**INPUT, "strength": 2})
        status = await finished(web, job)
        result = await web.call("GET", job["response_url"])

    assert (status["status"], status["error_type"]) == ("COMPLETED", "less_than_equal")
    assert (result.status, result.json()["detail"][0]["loc"]) == (422, ["body", "strength"])


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"7"])
async def test_a_body_that_is_no_object_is_422_at_once(tmp_path, body):
    async with serving(tmp_path) as web:
        answer = await web.call("POST", QUEUE, body=body)

    assert answer.status == 422


async def test_a_failed_job_is_completed_and_its_result_is_the_error(tmp_path):
    failure = RequestError("runner_server_error", "broken")
    async with serving(tmp_path) as web:
        web.engines.failure = failure
        job = await submit(web)
        status = await finished(web, job)
        result = await web.call("GET", job["response_url"])

    assert (status["status"], status["error"], status["error_type"]) == ("COMPLETED", "broken", "runner_server_error")
    assert (result.status, result.json()) == (500, failure.body)
    assert result.headers["x-fal-error-type"] == "runner_server_error"


async def test_the_seed_is_fixed_at_submit_and_told_to_the_engine(tmp_path):
    async with serving(tmp_path) as web:
        job = await submit(web, body={**INPUT, "seed": None})
        await finished(web, job)
        result = await web.call("GET", job["response_url"])

    assert result.json()["seed"] == web.engines.works[0].params.seed


async def test_files_of_a_job_are_linked_under_the_host_of_its_submit(tmp_path):
    async with serving(tmp_path) as web:
        job = await submit(web, f"http://app.localhost:8000{QUEUE}", body={**INPUT, "sync_mode": False})
        await finished(web, job)
        result = await web.call("GET", job["response_url"], headers={"host": "localhost"})

    assert result.json()["images"][0]["url"] == "http://app.localhost:8000/cdn/files/0.jpg"


# --- cancel


async def test_cancelling_a_waiting_job_removes_it(tmp_path):
    async with serving(tmp_path) as web:
        await running(web)
        job = await submit(web)
        answer = await web.call("PUT", job["cancel_url"], headers={"content-length": "0"})
        status = await web.call("GET", job["status_url"])
        result = await web.call("GET", job["response_url"])

    assert (answer.status, answer.json()) == (200, {"status": "OK"})
    assert (status.json()["status"], status.json()["error_type"]) == ("COMPLETED", "client_cancelled")
    assert result.status == 499


async def test_cancelling_a_running_job_stops_the_engine(tmp_path):
    async with serving(tmp_path) as web:
        job = await running(web)
        answer = await web.call("PUT", job["cancel_url"], headers={"content-type": "application/json"})
        await asyncio.wait_for(web.engines.cancelled.get(), 5)
        status = await web.call("GET", job["status_url"])
        result = await web.call("GET", job["response_url"])

    assert (answer.status, answer.json()) == (202, {"status": "CANCELLATION_REQUESTED"})
    assert (status.json()["status"], status.json()["error_type"]) == ("COMPLETED", "client_cancelled")
    assert (result.status, result.json()["error_type"]) == (499, "client_cancelled")


async def test_cancelling_a_finished_job_is_400(tmp_path):
    async with serving(tmp_path) as web:
        job = await submit(web)
        await finished(web, job)
        answer = await web.call("PUT", job["cancel_url"])

    assert (answer.status, answer.json()) == (400, {"status": "ALREADY_COMPLETED"})


@pytest.mark.parametrize(
    ("method", "rest", "status"),
    [
        ("GET", "/status", 404),
        ("GET", "/status/stream", 404),
        ("GET", "", 404),
        ("GET", "/response", 404),
        ("PUT", "/cancel", 404),
        ("POST", "/cancel", 404),
        ("DELETE", "", 405),
    ],
)
async def test_an_unknown_request_id_is_404_everywhere(tmp_path, method, rest, status):
    async with serving(tmp_path) as web:
        answer = await web.call(method, f"{QUEUE}/requests/00000000-0000-0000-0000-000000000000{rest}")

    assert answer.status == status
    assert answer.headers["content-type"] == "application/json"


async def test_cancelling_an_unknown_job_says_so_in_fals_word(tmp_path):
    async with serving(tmp_path) as web:
        answer = await web.call("PUT", f"{QUEUE}/requests/nope/cancel")

    assert (answer.status, answer.json()) == (404, {"status": "NOT_FOUND"})


@pytest.mark.parametrize(
    "prefix",
    [
        "/queue/fal-ai/lcm-sd15-i2i",
        "/queue/110602490/lcm-sd15-i2i",
        "/queue/110602490-lcm-sd15-i2i",
        "/queue/fal-ai/lcm-sd15-i2i/sub/path",
        "/fal-ai/lcm-sd15-i2i",
        "https://queue.fal.run/110602490/lcm-sd15-i2i/sub",
        "https://110602490-lcm-sd15-i2i.gateway.alpha.fal.ai/fal/queue",
    ],
)
async def test_a_job_is_found_under_every_spelling_of_its_app(tmp_path, prefix):
    async with serving(tmp_path) as web:
        job = await submit(web)
        await finished(web, job)
        where = f"{prefix}/requests/{job['request_id']}"
        status, result = await web.call("GET", f"{where}/status"), await web.call("GET", f"{where}/response")

    assert (status.status, result.status) == (200, 200)


@pytest.mark.parametrize("path", ["/queue/fal-ai/other", "/queue/fal-ai/other/requests/1/status", f"{QUEUE}/nope"])
async def test_other_apps_and_paths_are_404(tmp_path, path):
    async with serving(tmp_path) as web:
        answer = await web.call("GET" if "requests" in path else "POST", path, body=INPUT)

    assert answer.status == 404
    assert isinstance(answer.json()["detail"], str)


# --- options of a submit


async def test_low_priority_starts_after_normal_and_other_words_are_normal(tmp_path):
    async with serving(tmp_path) as web:
        await running(web)
        for number, priority in enumerate(["low", "high", None, "LOW", "normal"]):
            headers = {"x-fal-queue-priority": priority, "x-fal-something-new": "1"}
            await submit(web, body={**INPUT, "seed": number}, headers=headers)
        web.engines.gate.set()
        started = [await asyncio.wait_for(web.engines.running.get(), 5) for _ in range(5)]

    assert [work.params.seed for work in started] == [1, 2, 4, 0, 3]
    assert [work.priority for work in started] == [Priority.NORMAL] * 3 + [Priority.LOW] * 2


async def test_a_job_that_does_not_start_in_time_ends_in_504(tmp_path):
    async with serving(tmp_path) as web:
        await running(web)
        job = await submit(web, headers={"x-fal-request-timeout": "0.2"})
        await finished(web, job)
        result = await web.call("GET", job["response_url"])

    assert (result.status, result.json()["error_type"]) == (504, "startup_timeout")
    assert result.headers["x-fal-request-timeout-type"] == "user"


async def test_a_queue_longer_than_the_caller_wants_is_429(tmp_path):
    async with serving(tmp_path) as web:
        await running(web)
        await submit(web)
        refused = await web.call("POST", f"{QUEUE}?fal_max_queue_length=0", body=INPUT)
        accepted = await web.call("POST", f"{QUEUE}?fal_max_queue_length=1", body=INPUT)

    assert (refused.status, accepted.status) == (429, 200)


@pytest.mark.parametrize(
    "query",
    [
        "fal_max_queue_length=many",
        "fal_max_queue_length=-1",
        "fal_webhook=ftp://x",
        "fal_webhook=nowhere",
        "fal_webhook=http://a.example/" + "long" * 3000,
    ],
)
async def test_a_malformed_option_is_422(tmp_path, query):
    async with serving(tmp_path) as web:
        answer = await web.call("POST", f"{QUEUE}?{query}", body=INPUT)

    assert answer.status == 422
    assert answer.json()["detail"][0]["loc"] == ["query", query.partition("=")[0]]


async def outbox(web):
    """URLs of the webhooks that are to be sent."""
    return [webhook.url for webhook in await outbox_of(web.ctx.queue._store).due(10)]


OR_POLL = "Hint: give another URL, or poll for the result"


@pytest.mark.parametrize("body", [INPUT, {}], ids=["valid", "invalid"])
@pytest.mark.parametrize(
    ("url", "hint"),
    [
        ("http://localhost:3000/api/webhook?fal_secret=s", "--allow-net 127.0.0.1,::1"),
        ("http://127.0.0.1:3000/hook", "--allow-net 127.0.0.1"),
        ("https://[fd00::7]/hook", "--allow-net fd00::7"),
        ("http://127.1:3000/hook", f"it is no valid URL. {OR_POLL}"),
        ("http://0:3000/hook", f"it is no valid URL. {OR_POLL}"),
        ("http://2130706433:3000/hook", f"it is no valid URL. {OR_POLL}"),
        ("http://0x7f.1/hook", f"it is no valid URL. {OR_POLL}"),
        ("http://localhost:81/hook", f"port 81 is not accepted. {OR_POLL}"),
        ("http://example.com:22/hook", f"port 22 is not accepted. {OR_POLL}"),
        ("http://user:secret@localhost:3000/hook", f"URLs with credentials are not accepted. {OR_POLL}"),
    ],
)
async def test_a_webhook_that_can_not_be_sent_is_said_at_once_and_never_tried(url, hint, body, tmp_path, caplog):
    async with serving(tmp_path) as web:
        job = await submit(web, f"{QUEUE}?fal_webhook={quote(url, safe='')}", body=body)
        await finished(web, job)
        [line, *_] = (await web.call("GET", f"{job['status_url']}?logs=1")).json()["logs"]
        waiting = await outbox(web)

    [warning] = [record for record in caplog.records if record.levelname == "WARNING"]
    assert (line["level"], line["message"] in warning.message, waiting) == ("WARN", True, [])
    assert line["message"].endswith(hint)
    assert job["request_id"] in warning.message
    assert [word for word in ("hook", "secret") if word in caplog.text.replace("webhook", "")] == []


@pytest.mark.parametrize("url", ["http://127.0.0.1:3000/hook", "http://localhost:3000/hook", "https://app.example/"])
async def test_a_webhook_that_may_be_sent_is(url, tmp_path, caplog):
    async with serving(tmp_path, allow_net="127.0.0.0/8") as web:
        await finished(web, await submit(web, f"{QUEUE}?fal_webhook={quote(url, safe='')}"))

        assert await outbox(web) == [url]

    assert "webhook" not in caplog.text


@pytest.mark.parametrize("body", [INPUT, {}], ids=["valid", "invalid"])
async def test_the_line_of_a_webhook_that_is_not_sent_stays_in_the_log(body, tmp_path):
    async with serving(tmp_path) as web:
        job = await submit(web, f"{QUEUE}?fal_webhook=http://127.0.0.1:3000/hook", body=body)
        await finished(web, job)
        web.ctx.queue._index.forget([job["request_id"]])
        stored = (await web.call("GET", f"{job['status_url']}?logs=1")).json()

    assert "--allow-net" in stored["logs"][0]["message"]


async def test_an_unstored_result_is_gone_once_delivered(tmp_path):
    async with serving(tmp_path) as web:
        job = await submit(web, headers={"x-fal-store-io": "0"})
        await finished(web, job)
        first = await web.call("GET", job["response_url"])
        second = await web.call("GET", job["response_url"])

    assert (first.status, second.status) == (200, 410)


async def test_an_unstored_result_outlives_a_look_at_its_headers(tmp_path):
    async with serving(tmp_path) as web:
        job = await submit(web, headers={"x-fal-store-io": "0"})
        await finished(web, job)
        await web.call("HEAD", job["response_url"])
        answer = await web.call("GET", job["response_url"])

    assert answer.status == 200


async def test_an_unstored_result_outlives_a_client_that_left_before_it_came(tmp_path):
    async with serving(tmp_path) as web:
        job = await submit(web, headers={"x-fal-store-io": "0"})
        await finished(web, job)
        async with web.exchange("GET", job["response_url"]) as lost:
            lost.say({"type": "http.disconnect"})
            await lost.task
        answer = await web.call("GET", job["response_url"])

    assert answer.status == 200


# --- whose it is


async def test_a_job_does_not_exist_for_another_key(tmp_path):
    alice, bob = {"authorization": "Key alice:a"}, {"authorization": "Key bob:b"}
    async with serving(tmp_path, keys="alice:a,bob:b") as web:
        job = await submit(web, headers=alice)
        await finished(web, job, headers=alice)
        urls = [("GET", job["status_url"]), ("GET", job["response_url"]), ("PUT", job["cancel_url"])]
        foreign = [(await web.call(method, url, headers=bob)).status for method, url in urls]
        nobodys = [(await web.call(method, url)).status for method, url in urls]

    assert (foreign, nobodys) == ([404] * 3, [401] * 3)


async def test_with_keys_a_submit_needs_one(tmp_path):
    async with serving(tmp_path, keys="alice:a") as web:
        answer = await web.call("POST", QUEUE, body=INPUT)

    assert answer.status == 401
