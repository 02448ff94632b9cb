"""A job's life as a value, and the JSON that fal's clients read of it."""

import json

import pytest
from fal_client.client import Completed, InProgress, Queued, _BaseRequestHandle

from pipelines.messages import Priority
from server.fal.errors import RequestError, invalid
from server.jobs.job import MAX_LOGS, LogLine, Outcome, Result, Snapshot, Status, cancelled

BASE = "https://queue.fal.run"
LINE = LogLine(1_700_000_000.5, "INFO", "95 tokens, 77 used")
OK = Result.success({"seed": 42})
BAD = Result.failure(invalid("strength", "less_than_equal", "too big", {"le": 1}))

WAITING = Snapshot(
    seq=7,
    id="764cabcf",
    app="fal-ai/lcm-sd15-i2i",
    owner="key-1",
    priority=Priority.NORMAL,
    store_io=True,
    webhook=None,
    submitted_at=1_700_000_000.0,
    queue_position=3,
)
RUNNING = WAITING.started().logged(LINE)
DONE = RUNNING.finished(OK, 0.12)
FAILED = RUNNING.finished(BAD, 0.02)
CANCELLED = RUNNING.finished(cancelled())


def official(body: dict[str, object]) -> Queued | InProgress | Completed:
    """What fal's own Python client makes of a status body."""
    handle = _BaseRequestHandle(request_id="", response_url="", status_url="", cancel_url="")
    return handle._parse_status(body)


@pytest.mark.parametrize(
    ("snapshot", "expected"),
    [
        (WAITING, Queued(position=3)),
        (RUNNING, InProgress(logs=[LINE.body()])),
        (DONE, Completed(logs=[LINE.body()], metrics={"inference_time": 0.12})),
        (
            FAILED,
            Completed([LINE.body()], {"inference_time": 0.02}, "body.strength: too big", "less_than_equal"),
        ),
        (
            CANCELLED,
            Completed(
                [LINE.body()],
                {"inference_time": 0.0},
                "The request was cancelled by the client",
                "client_cancelled",
            ),
        ),
    ],
)
def test_the_python_client_reads_every_state(snapshot, expected):
    assert official(snapshot.status_body(BASE, logs=True)) == expected


@pytest.mark.parametrize("snapshot", [WAITING, RUNNING, DONE, FAILED])
def test_every_status_body_has_the_urls_of_the_request(snapshot):
    body = snapshot.status_body(BASE, logs=False)

    request = "https://queue.fal.run/fal-ai/lcm-sd15-i2i/requests/764cabcf"
    urls = {"response_url": request, "status_url": f"{request}/status", "cancel_url": f"{request}/cancel"}
    assert body.items() >= {"request_id": "764cabcf", **urls}.items()
    assert {"queue_position", "logs"} <= body.keys()


@pytest.mark.parametrize(("snapshot", "code"), [(WAITING, 202), (RUNNING, 202), (DONE, 200), (FAILED, 200)])
def test_the_status_code_alone_tells_the_sdk_whether_it_is_over(snapshot, code):
    assert snapshot.status_code == code


def test_logs_are_null_unless_asked_for():
    assert RUNNING.status_body(BASE, logs=False)["logs"] is None


def test_a_successful_status_names_no_error():
    assert not {"error", "error_type"} & DONE.status_body(BASE, logs=True).keys()


def test_a_log_line_has_its_level_flat_and_in_labels():
    assert LINE.body() == {
        "message": "95 tokens, 77 used",
        "level": "INFO",
        "source": "USER",
        "timestamp": "2023-11-14T22:13:20.500000+00:00",
        "labels": {"level": "INFO", "source": "USER"},
    }


@pytest.mark.parametrize(("snapshot", "position"), [(WAITING, 3), (DONE, 0)])
def test_a_submit_is_always_answered_with_a_place_in_the_queue(snapshot, position):
    body = snapshot.submit_body(BASE)

    assert body["status"] == "IN_QUEUE"
    assert body["queue_position"] == position
    assert body["request_id"] == body["gateway_request_id"] == "764cabcf"


@pytest.mark.parametrize(
    "move",
    [
        Snapshot.started,
        Snapshot.requeued,
        lambda job: job.logged(LINE),
        lambda job: job.finished(BAD),
    ],
)
def test_nothing_changes_a_job_after_its_end(move):
    assert move(DONE) is DONE


def test_a_requeued_job_waits_again_and_keeps_its_log():
    again = RUNNING.requeued()

    assert (again.status, again.logs) == (Status.IN_QUEUE, (LINE,))


def test_a_log_has_an_end():
    snapshot = RUNNING
    for _ in range(MAX_LOGS + 1):
        snapshot = snapshot.logged(LINE)

    assert len(snapshot.logs) == MAX_LOGS


@pytest.mark.parametrize(
    ("snapshot", "output", "expected"),
    [
        (DONE, OK.body, {"status": "OK", "payload": {"seed": 42}}),
        (
            FAILED,
            BAD.body,
            {"status": "ERROR", "payload": json.loads(BAD.body), "error": "Invalid status code: 422"},
        ),
        (DONE, None, {"status": "OK", "payload": None, "payload_error": "The payload is no longer stored"}),
    ],
)
def test_webhook_bodies_are_as_documented(snapshot, output, expected):
    body = json.loads(snapshot.webhook_body(output))

    assert body == {"request_id": "764cabcf", "gateway_request_id": "764cabcf", **expected}


@pytest.mark.parametrize(
    ("outcome", "status", "word"),
    [
        (Outcome.REQUESTED, 202, "CANCELLATION_REQUESTED"),
        (Outcome.REMOVED, 200, "OK"),
        (Outcome.ALREADY_COMPLETED, 400, "ALREADY_COMPLETED"),
        (Outcome.NOT_FOUND, 404, "NOT_FOUND"),
    ],
)
def test_a_cancel_has_four_outcomes(outcome, status, word):
    assert (outcome.http_status, outcome.body) == (status, {"status": word})


def test_a_failure_keeps_the_errors_status_body_and_headers():
    error = RequestError("runner_disconnected", "gone")

    result = Result.failure(error)

    assert (result.status, json.loads(result.body), result.headers) == (503, error.body, error.headers)
