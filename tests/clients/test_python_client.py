"""`fal_client` as published, pointed at a server by nothing but its environment variables and SSL_CERT_FILE."""

import ssl
import urllib.request

import pytest

OUTPUT_KEYS = ["images", "timings", "seed", "num_inference_steps", "request_id", "nsfw_content_detected"]


def test_run_returns_the_bare_output(by_environment):
    [output] = by_environment.py("run.py")

    assert list(output) == OUTPUT_KEYS
    assert output["seed"] == 7


@pytest.mark.parametrize("app", ["fal-ai/lcm-sd15-i2i", "110602490-lcm-sd15-i2i"])
def test_every_id_reaches_the_model(app, by_environment):
    handle, events, fetched = by_environment.py("queue_calls.py", app=app)

    assert handle["handle"]["status_url"].endswith(f"/requests/{handle['handle']['request_id']}/status")
    assert events["events"][-1]["kind"] == "Completed"
    assert fetched["result"] == fetched["again"]


def test_subscribe_reports_progress_and_returns_the_output(by_environment):
    [said] = by_environment.py("subscribe.py")

    assert said["updates"][-1]["kind"] == "Completed"
    assert said["updates"][-1]["metrics"]["inference_time"] >= 0
    assert list(said["result"]) == OUTPUT_KEYS


def test_the_picture_can_be_fetched_without_a_key(by_environment):
    [output] = by_environment.py("run.py")

    trust = ssl.create_default_context(cafile=by_environment.env["SSL_CERT_FILE"])
    with urllib.request.urlopen(output["images"][0]["url"], context=trust) as answer:
        assert answer.headers["content-type"] == "image/jpeg"
        assert answer.read(2) == b"\xff\xd8"


@pytest.mark.parametrize(("variable", "said"), [("SSL_CERT_FILE", "SSLError"), ("REQUESTS_CA_BUNDLE", 7)])
def test_requests_takes_its_trust_from_a_variable_of_its_own(variable, said, by_environment):
    trusting = by_environment.with_env(**{variable: by_environment.env["SSL_CERT_FILE"]})

    assert trusting.py("plain_requests.py") == [said]


def test_sync_mode_returns_the_picture_itself(by_environment):
    [output] = by_environment.py("run.py", input={"sync_mode": True})

    assert output["images"][0]["url"].startswith("data:image/jpeg;base64,")


@pytest.mark.parametrize(
    ("options", "was"), [({"behind": 6}, "Queued"), ({"when_running": True}, "InProgress")], ids=["queued", "running"]
)
def test_a_cancelled_request_is_completed_and_its_result_is_499(options, was, slow_by_environment):
    [said] = slow_by_environment.py("cancel.py", **options)

    assert said["was"] == was
    assert said["status"]["error_type"] == "client_cancelled"
    assert (said["result"]["status"], said["result"]["error_type"]) == (499, "client_cancelled")
    assert said["second"]["status"] == 400


def test_realtime_with_the_key_answers_each_input(by_environment):
    [said] = by_environment.py("realtime.py", use_jwt=False)

    assert [result["request_id"] for result in said["results"]] == ["one", "two"]
    assert said["results"][0]["images"][0]["url"].startswith("data:image/jpeg;base64,")


def test_realtime_reports_a_bad_input_and_goes_on(by_environment):
    [said] = by_environment.py("realtime.py", use_jwt=False, inputs=[{"strength": 2}, {"request_id": "next"}])

    assert said["errors"][0]["kind"] == "RealtimeError"
    assert "strength" in said["errors"][0]["message"]
    assert [result["request_id"] for result in said["results"]] == ["next"]


@pytest.mark.parametrize("call", ["run", "subscribe"])
def test_a_bad_input_raises_fals_validation_error(call, by_environment):
    [said] = by_environment.py("faults.py", call=call, input={"strength": 2})

    assert (said["kind"], said["status"]) == ("FalClientHTTPError", 422)
    assert "strength" in said["message"]


@pytest.mark.parametrize("call", ["status", "result", "cancel"])
def test_an_unknown_request_is_404(call, by_environment):
    [said] = by_environment.py("faults.py", call=call, request_id="764cabcf-b745-4b3e-ae38-1200304cf45b")

    assert said["status"] == 404
