"""Statements of the protocol on a real socket: the queue.

The statements are those of `conformance.txt`. With `--fleet` each call is answered by the next of three boxes,
whichever of them has the job.
"""

import contextlib

import pytest

from tests.support.server_process import APP, CALL, addresses, ask, serving, until

QUEUE = f"/queue/{APP}"
URLS = {"response_url", "status_url", "cancel_url"}
WRONG = {"strength": 2}
# Takes no webhook on this machine, and the request's log says so.
LOGGED = f"{QUEUE}?fal_webhook=http://127.0.0.1:3000/hook"


@pytest.fixture(scope="module")
def slow():
    """A server that makes one picture after the other, each in half a second (three: in one and a half)."""
    with serving("--model", "instant:500", "--max-batch", "1") as server:
        yield server


def submit(server, url=QUEUE, headers=None, **changes):
    """What a submit is answered with."""
    answer = ask(server, "POST", url, CALL | changes, headers)
    assert answer.status == 200, answer.body
    return answer.json()


def status(server, job, query=""):
    """What a job's status says."""
    return ask(server, "GET", job["status_url"] + query).json()


def ended(server, job):
    """Wait until a job is COMPLETED; return it. Of several servers, one may know it a tenth of a second later."""
    turn = addresses(server.data_dir)
    until(lambda: all(status(server, job)["status"] == "COMPLETED" for _ in turn))
    return job


@contextlib.contextmanager
def crowd(server):
    """Context of more jobs than the engines take: the first of them runs, the last waits. Cancels them at the end."""
    jobs = [submit(server) for _ in range(4 * len(addresses(server.data_dir)))]
    try:
        until(lambda: status(server, jobs[0])["status"] == "IN_PROGRESS")
        yield jobs
    finally:
        for job in jobs:
            ask(server, "PUT", job["cancel_url"])


@pytest.mark.parametrize(
    ("url", "links"),
    [
        (QUEUE, "http://HOST/queue/"),
        (f"https://HTTPS{QUEUE}", "https://HTTPS/queue/"),
        (f"https://queue.fal.run/{APP}", "https://queue.fal.run/"),
        ("https://queue.fal.run/110602490-lcm-sd15-i2i/", "https://queue.fal.run/"),
        ("https://110602490-lcm-sd15-i2i.gateway.alpha.fal.ai/fal/queue/submit", "https://queue.fal.run/"),
    ],
)
def test_a_submit_says_where_to_go_on_and_there_the_result_is(instant, url, links):
    url, links = (each.replace("HTTPS", instant.tls_host).replace("HOST", instant.host) for each in (url, links))
    job = submit(instant, url)
    result = ask(instant, "GET", ended(instant, job)["response_url"])

    assert (job["status"], type(job["queue_position"])) == ("IN_QUEUE", int)
    assert all(job[name].startswith(links) and job["request_id"] in job[name] for name in URLS)
    assert ask(instant, "PUT", job["cancel_url"]).status == 400
    assert (result.json()["seed"], result.headers["x-fal-request-id"]) == (CALL["seed"], job["request_id"])


def test_a_request_that_waits_is_202_with_its_place(slow):
    with crowd(slow) as (*_, job):
        answer = ask(slow, "GET", job["status_url"])

    said = answer.json()
    assert (answer.status, said["status"], type(said["queue_position"])) == (202, "IN_QUEUE", int)
    assert said["request_id"] == job["request_id"]


def test_a_request_that_runs_is_202_with_its_logs_and_has_no_result_yet(slow):
    with crowd(slow) as (job, *_):
        answer, result = ask(slow, "GET", job["status_url"]), ask(slow, "GET", job["response_url"])

    assert (answer.status, answer.json()["status"], "logs" in answer.json()) == (202, "IN_PROGRESS", True)
    assert (result.status, type(result.json()["detail"])) == (400, str)


def test_a_request_that_waits_has_no_result_yet(slow):
    with crowd(slow) as (*_, job):
        result = ask(slow, "GET", job["response_url"])

    assert (result.status, type(result.json()["detail"])) == (400, str)


@pytest.mark.parametrize("slash", ["", "/"])
def test_a_completed_request_is_200_with_logs_and_its_time(instant, slash):
    job = ended(instant, submit(instant))
    answer = ask(instant, "GET", job["status_url"] + slash)

    said = answer.json()
    assert (answer.status, said["status"], "logs" in said) == (200, "COMPLETED", True)
    assert said["metrics"]["inference_time"] > 0
    assert "error" not in said


def test_a_failed_request_is_completed_with_its_error(instant):
    job = ended(instant, submit(instant, **WRONG))
    answer, result = ask(instant, "GET", job["status_url"]), ask(instant, "GET", job["response_url"])

    said = answer.json()
    assert (answer.status, said["status"], said["error_type"]) == (200, "COMPLETED", "less_than_equal")
    assert "strength" in said["error"]
    assert (result.status, result.json()["detail"][0]["loc"]) == (422, ["body", "strength"])


def test_there_are_three_states(slow):
    with crowd(slow) as jobs:
        jobs.append(submit(slow, **WRONG))
        seen = {status(slow, job)["status"] for job in jobs}
    seen |= {status(slow, ended(slow, job))["status"] for job in jobs}

    assert seen == {"IN_QUEUE", "IN_PROGRESS", "COMPLETED"}


@pytest.mark.parametrize(
    ("query", "told"),
    [("?logs=1", True), ("?logs=true", True), ("?logs=0", False), ("?logs=false", False), ("", False)],
)
def test_logs_are_a_list_where_they_are_wanted(instant, query, told):
    job = ended(instant, submit(instant, LOGGED))

    assert isinstance(status(instant, job, query)["logs"], list) == told


def test_a_log_line_has_its_four_keys(instant):
    [line] = status(instant, ended(instant, submit(instant, LOGGED)), "?logs=1")["logs"]

    assert {name: type(line[name]) for name in ("message", "level", "source", "timestamp")} == dict.fromkeys(
        ("message", "level", "source", "timestamp"), str
    )
    assert line["level"] == "WARN"


def test_response_is_the_result_and_can_be_fetched_again(instant):
    job = ended(instant, submit(instant))
    answers = [ask(instant, "GET", job["response_url"] + end) for end in ("", "/response", "/", "/response/", "")]

    assert {(answer.status, answer.body) for answer in answers} == {(200, answers[0].body)}


@pytest.mark.parametrize(
    "prefix",
    [
        "/queue/fal-ai/lcm-sd15-i2i",
        "/queue/110602490/lcm-sd15-i2i",
        "/queue/110602490-lcm-sd15-i2i",
        "/queue/fal-ai/lcm-sd15-i2i/sub/path",
        "/fal-ai/lcm-sd15-i2i",
        "/fal-ai/lcm-sd15-i2i/sub",
        "http://queue.fal.run/110602490/lcm-sd15-i2i/sub",
        "http://110602490-lcm-sd15-i2i.gateway.alpha.fal.ai/fal/queue",
    ],
)
def test_a_request_is_found_under_every_spelling_of_its_app(instant, prefix):
    where = f"{prefix}/requests/{ended(instant, submit(instant))['request_id']}"
    calls = [("GET", f"{where}/status"), ("GET", where), ("GET", f"{where}/response"), ("PUT", f"{where}/cancel")]

    assert [ask(instant, method, url).status for method, url in calls] == [200, 200, 200, 400]


def test_cancel_is_200_for_what_waits_202_for_what_runs_and_400_afterwards(slow):
    with crowd(slow) as (running, *_, waiting):
        answers = [ask(slow, "PUT", job["cancel_url"]) for job in (running, waiting)]
        again = ask(slow, "PUT", ended(slow, running)["cancel_url"])
        results = [ask(slow, "GET", ended(slow, job)["response_url"]).status for job in (running, waiting)]

    told = [(answer.status, answer.json()["status"]) for answer in (*answers, again)]
    assert told == [(202, "CANCELLATION_REQUESTED"), (200, "OK"), (400, "ALREADY_COMPLETED")]
    assert results == [499, 499]


def test_a_low_request_starts_after_normal_ones_and_unknown_words_are_normal(slow):
    def place(job):
        return status(slow, job)["queue_position"] or 0

    with crowd(slow):
        low = submit(slow, headers={"x-fal-queue-priority": "low"})
        words = [{"x-fal-queue-priority": "normal"}, {"x-fal-queue-priority": "urgent"}, {}]
        others = [submit(slow, headers=word) for word in words]
        until(lambda: place(low) > max(map(place, others)), timeout=2)

    ended(slow, low)
    assert "IN_QUEUE" not in [status(slow, job)["status"] for job in others]


def test_a_queue_longer_than_the_caller_wants_is_429(slow):
    with crowd(slow):
        until(lambda: ask(slow, "POST", f"{QUEUE}?fal_max_queue_length=0", CALL).status == 429)
        submit(slow, f"{QUEUE}?fal_max_queue_length=1000")


def test_an_unstored_result_is_gone_once_it_is_delivered(instant):
    job = ended(instant, submit(instant, headers={"X-Fal-Store-IO": "0"}))
    results = [ask(instant, "GET", job["response_url"])]
    until(lambda: results.append(ask(instant, "GET", job["response_url"])) or results[-1].status == 410, timeout=2)
    results += [ask(instant, "GET", job["response_url"]) for _ in range(3)]

    assert results[0].json()["seed"] == CALL["seed"]
    assert [result.status for result in results[-4:]] == [410] * 4
