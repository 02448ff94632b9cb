"""`@fal-ai/client` as published, in Node, through `proxyUrl: {url, when: "always"}`."""

import pytest

UNKNOWN = "764cabcf-b745-4b3e-ae38-1200304cf45b"


PROXY_ROUTE = "/api/fal/proxy"


@pytest.fixture
def run(clients, instant):
    """Run a script against the shared server."""
    return lambda script, **options: clients.js(script, proxy=instant.url + PROXY_ROUTE, **options)


@pytest.fixture
def run_slow(clients, slow):
    """Run a script against the slow server."""
    return lambda script, **options: clients.js(script, proxy=slow.url + PROXY_ROUTE, **options)


@pytest.mark.parametrize(
    "app", ["fal-ai/lcm-sd15-i2i", "110602490-lcm-sd15-i2i", "https://fal.run/fal-ai/lcm-sd15-i2i"]
)
def test_run_returns_data_and_request_id(app, run):
    [result] = run("run.mjs", app=app)

    assert result["data"]["seed"] == 7
    assert len(result["requestId"]) == len(UNKNOWN)


def test_subscribe_by_polling_reports_progress(run):
    [said] = run("subscribe.mjs", mode="polling")

    assert said["updates"][-1]["status"] == "COMPLETED"
    assert said["result"]["data"]["seed"] == 7


def test_subscribe_by_streaming_reports_every_state(run_slow):
    [said] = run_slow("subscribe.mjs", mode="streaming")

    states = [update["status"] for update in said["updates"]]
    assert (set(states) >= {"IN_PROGRESS"}, states[-1]) == (True, "COMPLETED")
    assert said["result"]["data"]["seed"] == 7


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["polling", "streaming"])
def test_subscribe_gets_each_log_line_once(mode, clients, demo):
    [said] = clients.js("subscribe.mjs", proxy=demo.url + PROXY_ROUTE, mode=mode)

    last = said["updates"][-1]["logs"]
    assert last
    assert len(set(last)) == len(last)


def test_queue_calls_one_by_one(run):
    [said] = run("queue.mjs")

    assert said["submitted"]["status"] == "IN_QUEUE"
    assert said["result"]["data"] == said["again"]["data"]
    assert said["result"]["requestId"]


@pytest.mark.parametrize(
    ("options", "was"), [({"behind": 6}, "IN_QUEUE"), ({"whenRunning": True}, "IN_PROGRESS")], ids=["queued", "running"]
)
def test_a_cancelled_request_is_completed_and_its_result_is_499(options, was, run_slow):
    [said] = run_slow("cancel.mjs", **options)

    assert said["was"] == was
    assert (said["status"]["status"], said["status"]["error_type"]) == ("COMPLETED", "client_cancelled")
    assert said["result"]["status"] == 499
    assert said["second"]["status"] == 400


def test_stream_shows_progress_and_ends_with_the_output(run):
    [said] = run("stream.mjs")

    assert said["done"]["seed"] == 7
    assert said["events"][-1] == said["done"]
    assert len(said["events"]) > 1


def test_a_file_is_uploaded_and_served_back(run):
    [said] = run("upload.mjs", size=1024, name="hello.bin", type="application/octet-stream")

    assert (said["status"], said["same"]) == (200, True)


def test_a_blob_in_the_input_is_uploaded_before_the_call(run):
    [result] = run("auto_upload.mjs")

    assert result["data"]["seed"] == 7


@pytest.mark.parametrize("call", ["run", "subscribe", "stream"])
def test_a_bad_field_is_a_validation_error_that_names_it(call, run):
    [said] = run("faults.mjs", call=call, input={"strength": 2}, field="strength")

    assert (said["kind"], said["status"]) == ("ValidationError", 422)
    assert [(field["type"], field["ctx"]) for field in said["fields"]] == [("less_than_equal", {"le": 1})]
    assert "strength" in said["message"]


def test_a_run_without_input_is_a_validation_error(run):
    [said] = run("faults.mjs", call="runWithoutInput", field="prompt")

    assert (said["kind"], said["status"]) == ("ValidationError", 422)


@pytest.mark.parametrize("call", ["status", "result", "cancel"])
def test_an_unknown_request_is_404(call, run):
    [said] = run("faults.mjs", call=call, requestId=UNKNOWN)

    assert (said["kind"], said["status"]) == ("ApiError", 404)
