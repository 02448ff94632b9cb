"""Every client generation, unmodified and unconfigured but for its key, with fal's own host names on port 443.

The clients run in a sandbox (see `sandbox.py`): their names lead to the server, and nothing else can be reached.
"""

import numpy
import pytest

from pipelines.images.codec import encode
from tests.clients.conftest import taking_over
from tests.clients.kit import fal_sdk, old_python_client

CURRENT = "@fal-ai/client"
LEGACY = ["serverless-client-0.15", "serverless-client-0.8", "serverless-client-0.6"]
OLD_ID = "110602490-lcm-sd15-i2i"


@pytest.fixture
def js(takeover):
    """Run a script of JavaScript in the sandbox."""
    return takeover.clients.js


@pytest.fixture
def py(takeover):
    """Run a script of Python in the sandbox."""
    return takeover.clients.py


def bare(result: dict) -> dict:
    """The output, which 1.x wraps as `{data, requestId}`."""
    return result.get("data", result)


# --- JavaScript, every generation ---------------------------------------------------------------------------------


@pytest.mark.parametrize("package", [CURRENT, *LEGACY])
def test_run(package, js):
    [result] = js("run.mjs", package=package, app=OLD_ID)

    assert bare(result)["seed"] == 7
    assert ("requestId" in result) == (package == CURRENT)


@pytest.mark.parametrize("package", [CURRENT, *LEGACY])
def test_subscribe(package, js):
    [said] = js("subscribe.mjs", package=package, app=OLD_ID)

    assert bare(said["result"])["seed"] == 7
    assert said["updates"][-1]["status"] == "COMPLETED"


@pytest.mark.parametrize("package", LEGACY)
def test_queue_calls_of_the_legacy_clients(package, js):
    [said] = js("legacy_queue.mjs", package=package, app=OLD_ID)

    assert said["status"]["status"] == "COMPLETED"
    assert said["result"]["seed"] == 7


@pytest.mark.parametrize("package", LEGACY[:2])
def test_the_subpath_of_an_id_is_kept_or_dropped_without_harm(package, js):
    [said] = js("legacy_queue.mjs", package=package, app="fal-ai/lcm-sd15-i2i")

    assert said["result"]["seed"] == 7


@pytest.mark.parametrize("package", [CURRENT, "serverless-client-0.15"])
def test_stream(package, js):
    [said] = js("stream.mjs", package=package)

    assert said["done"]["seed"] == 7
    assert "inference" in said["done"]["timings"]  # previews have none


def test_stream_with_a_token_in_place_of_the_key(js):
    [said] = js("stream.mjs", connectionMode="client")

    assert said["done"]["seed"] == 7


@pytest.mark.parametrize("package", LEGACY)
@pytest.mark.parametrize("app", [OLD_ID, "fal-ai/lcm-sd15-i2i"])
def test_realtime_of_the_legacy_clients(package, app, js):
    if (package, app) == ("serverless-client-0.6", "fal-ai/lcm-sd15-i2i"):
        app = OLD_ID  # its gateway puts the id into the host name, where no slash can be
    [said] = js("legacy_realtime.mjs", package=package, app=app)

    assert said["errors"] == []
    assert [result["request_id"] for result in said["results"]] == ["one", "two"]
    assert said["results"][0]["images"][0]["url"].startswith("data:image/jpeg;base64,")


@pytest.mark.parametrize("package", [CURRENT, *LEGACY])
@pytest.mark.parametrize("size", [1024, 5 * 1024 * 1024])
def test_upload(package, size, js):
    [said] = js("upload.mjs", package=package, size=size, name="file.bin", type="application/octet-stream")

    assert said["url"].startswith("https://v3.fal.media/files/")
    assert (said["status"], said["same"]) == (200, True)


# --- JavaScript, the current client -------------------------------------------------------------------------------


def test_realtime_answers_and_closes_without_a_word_to_on_error(js):
    [said] = js("realtime.mjs")

    assert [result["request_id"] for result in said["results"]] == ["one", "two"]
    assert said["errors"] == []


def test_realtime_integers_decode_as_plain_numbers(js):
    [said] = js("realtime.mjs", inputs=[{"seed": None}])

    seed = said["results"][0]["seed"]
    assert isinstance(seed, int)
    assert 0 <= seed < 2**53


def test_realtime_reports_a_bad_input_and_goes_on(js):
    [said] = js("realtime.mjs", inputs=[{"strength": 2}, {"request_id": "next"}])

    assert [(error["kind"], error["status"]) for error in said["errors"]] == [("ApiError", 400)]
    assert "strength" in said["errors"][0]["message"]
    assert [result["request_id"] for result in said["results"]] == ["next"]


def test_an_idle_socket_is_closed_silently_and_the_next_send_opens_another(idle):
    [said] = idle.js("idle.mjs", silenceMs=2500)

    assert said == {"results": ["before", "after"], "errors": []}


def test_the_oldest_client_reconnects_with_its_cached_token_after_an_idle_close(idle):
    [said] = idle.js("idle.mjs", silenceMs=2500, package="serverless-client-0.6", app=OLD_ID)

    assert said == {"results": ["before", "after"], "errors": []}


@pytest.fixture(scope="module")
def idle(picture, tmp_path_factory):
    """Clients of a server that closes sockets after one second of silence."""
    flags = ("--model", "instant", "--session-idle-timeout", "1")
    with taking_over(tmp_path_factory.mktemp("idle"), picture, *flags) as server:
        yield server.clients


@pytest.mark.slow
@pytest.mark.long
def test_upload_of_120_megabytes_in_parts(js):
    [said] = js("upload.mjs", size=120 * 1024 * 1024, name="big.bin", type="application/octet-stream")

    assert (said["status"], said["same"]) == (200, True)


def test_a_wrong_key_is_401(takeover):
    wrong = takeover.clients.with_env(FAL_KEY="test-key:wrong")

    [said] = wrong.js("faults.mjs", call="run")

    assert (said["kind"], said["status"]) == ("ApiError", 401)


def test_a_token_that_is_no_good_makes_the_client_fetch_another(js):
    [said] = js("reauth.mjs")

    assert said["tokens"] == 2
    assert said["result"]["seed"] == 7
    assert said["errors"] == []


def test_a_path_of_the_applications_own_choice_opens_a_socket(js):
    [said] = js("realtime.mjs", path="/ws")

    assert [result["request_id"] for result in said["results"]] == ["one", "two"]


def test_no_key_token_or_prompt_is_in_the_servers_log(takeover):
    takeover.clients.js("realtime.mjs", inputs=[{"prompt": "a canary"}])
    takeover.clients.js("run.mjs", input={"prompt": "a canary"})

    secret = takeover.clients.env["FAL_KEY"].partition(":")[2]
    assert [word for word in (secret, "fal_jwt_token=", "eyJ", "canary") if word in takeover.log] == []


# --- Python -------------------------------------------------------------------------------------------------------


def test_the_current_python_client(py):
    run, stream, realtime, upload = py("everything.py")

    assert run["run"]["seed"] == 7
    assert stream["stream"][-1]["seed"] == 7
    assert realtime["realtime"]["request_id"] == "one"
    assert upload["upload"].startswith("https://v3.fal.media/files/")
    assert ".." not in upload["upload"]


def test_the_asynchronous_python_client(py):
    run, subscribe, realtime = py("asynchronous.py", app=OLD_ID)

    assert run["run"]["seed"] == subscribe["subscribe"]["seed"] == 7
    assert realtime["realtime"]["request_id"] == "one"


@pytest.mark.parametrize("size", [1024, 5 * 1024 * 1024])
def test_upload_from_python(size, py):
    [said] = py("upload.py", size=size)

    assert (said["status"], said["same"]) == (200, True)


@pytest.mark.slow
def test_upload_of_120_megabytes_from_python_in_parallel_parts(py):
    [said] = py("upload.py", size=120 * 1024 * 1024)

    assert (said["status"], said["same"]) == (200, True)


def test_a_python_socket_outlives_its_token(py):
    assert py("sockets.py", what="outlive_the_token") == ["late"]


def test_an_idle_close_makes_recv_return_none(idle):
    assert idle.py("sockets.py", what="wait_for_the_end") == [["one", None]]


def test_a_raw_python_socket(py):
    assert py("sockets.py", what="raw") == ["raw"]


def test_frames_of_megabytes_pass_both_ways(py, noise):
    [said] = py("sockets.py", what="large", picture=str(noise))

    assert said["bytes"] > 8_000_000
    assert set(said["keys"]) == {"str"}
    assert said["again"] == 1024


@pytest.fixture(scope="module")
def noise(tmp_path_factory):
    """A file with a picture that no JPEG makes small."""
    pixels = numpy.random.default_rng(0).integers(0, 256, (1024, 1024, 3), numpy.uint8)
    file = tmp_path_factory.mktemp("noise") / "noise.jpg"
    file.write_bytes(encode(pixels, 90, "4:4:4"))
    return file


def test_two_host_names_and_no_prefix(takeover):
    named = takeover.clients.with_env(FAL_RUN_HOST="localhost", FAL_QUEUE_RUN_HOST="queue.localhost")

    handle, _, fetched = named.py("queue_calls.py")

    assert handle["handle"]["status_url"].startswith("https://queue.localhost/")
    assert fetched["result"]["seed"] == 7


def test_the_oldest_python_client_puts_its_queue_before_the_name(takeover):
    named = takeover.clients.with_env(FAL_RUN_HOST="localhost")

    run, result, *_ = named.py("oldest.py", path=old_python_client())

    assert run["run"]["seed"] == result["result"]["seed"] == 7


@pytest.mark.parametrize("app", ["fal-ai/lcm-sd15-i2i", OLD_ID])
def test_the_oldest_python_client(app, py):
    run, result, stream, upload = py("oldest.py", path=old_python_client(), app=app)

    assert run["run"]["seed"] == result["result"]["seed"] == 7
    assert stream["stream"][-1]["seed"] == 7
    assert upload["upload"].startswith("https://v3.fal.media/files/")


@pytest.mark.slow
@pytest.mark.long
def test_the_sdk_of_fal(py):
    run, status, stream, realtime, websocket = py("sdk.py", python=fal_sdk())

    assert run["run"]["seed"] == 7
    assert status["status"] == "Completed"
    assert stream["stream"][-1]["seed"] == 7
    assert realtime["realtime"]["request_id"] == "one"
    assert websocket["ws"]["request_id"] == "two"
