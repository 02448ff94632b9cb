"""Libraries of others that speak to fal, as published: how each is led here, and what it makes of the answers."""

import dataclasses

import pytest

from tests.clients.kit import litellm, mcp_server
from tests.support.server_process import APP

# --- Vercel AI SDK ------------------------------------------------------------------------------------------------


@pytest.fixture(params=["http", "https"])
def ai_sdk(request, instant, clients):
    """The AI SDK with its `baseURL` at the shared server."""
    url = {"http": instant.url, "https": instant.tls_url}[request.param]
    trusting = clients.with_env(NODE_EXTRA_CA_CERTS=str(instant.bundle.with_name("ca.pem")))
    return lambda **options: trusting.js("ai_sdk.mjs", baseURL=f"{url}/run", **options)


@pytest.mark.parametrize("sync_mode", [False, True])
def test_the_ai_sdk_gets_its_pictures(sync_mode, ai_sdk):
    [said] = ai_sdk(fal={"syncMode": sync_mode})

    assert said["types"] == ["image/jpeg", "image/jpeg"]
    assert [told["nsfw"] for told in said["told"]] == [False, False]


def test_the_ai_sdk_names_the_bad_field(ai_sdk):
    [said] = ai_sdk(fal={"strength": 2})

    assert (said["kind"], said["status"]) == ("AI_APICallError", 422)
    assert said["message"] == "body.strength: Input should be less than or equal to 1"


def test_the_ai_sdk_tells_what_other_errors_say(ai_sdk):
    [said] = ai_sdk(app="fal-ai/nothing")

    assert (said["status"], said["message"]) == (404, 'Application "nothing" not found')


def test_the_ai_sdk_takes_pictures_within_the_answer_where_fals_names_are_taken_over(takeover):
    [linked] = takeover.clients.js("ai_sdk.mjs")
    [within] = takeover.clients.js("ai_sdk.mjs", fal={"syncMode": True})

    assert "v3.fal.media resolved to disallowed IP address" in linked["message"]
    assert within["types"] == ["image/jpeg", "image/jpeg"]


# --- TanStack AI --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("sync_mode", "field"), [(False, "url"), (True, "b64Json")])
def test_tanstack_ai_gets_its_pictures_through_the_proxy(sync_mode, field, clients, instant):
    [images] = clients.js("tanstack.mjs", proxyUrl=f"{instant.url}/api/fal/proxy", model={"sync_mode": sync_mode})

    assert [list(image) for image in images] == [[field], [field]]


def test_tanstack_ai_passes_the_validation_error_on(clients, instant):
    [said] = clients.js("tanstack.mjs", proxyUrl=f"{instant.url}/api/fal/proxy", model={"strength": 2})

    assert (said["kind"], said["status"]) == ("ValidationError", 422)


def test_tanstack_ai_needs_no_setting_where_fals_names_are_taken_over(takeover):
    [images] = takeover.clients.js("tanstack.mjs")

    assert [image["url"].startswith("https://v3.fal.media/files/") for image in images] == [True, True]


# --- Hugging Face -------------------------------------------------------------------------------------------------


def test_hugging_faces_python_client_gets_its_picture(takeover):
    [said] = takeover.clients.py("hugging_face.py")

    assert said == {"size": [96, 96], "format": "JPEG"}


def test_hugging_faces_javascript_client_gets_its_picture(takeover):
    [said] = takeover.clients.js("hugging_face.mjs")

    assert said["type"] == "image/jpeg"
    assert said["size"] > 0


# --- fal's server-proxy -------------------------------------------------------------------------------------------


def test_an_apps_route_adds_the_key_and_passes_calls_on(takeover):
    [said] = takeover.clients.js("server_proxy.mjs", then="subscribe.mjs")

    assert said["updates"][-1]["status"] == "COMPLETED"
    assert said["result"]["data"]["seed"] == 7


def test_an_apps_route_passes_events_on(takeover):
    [said] = takeover.clients.js("server_proxy.mjs", then="stream.mjs")

    assert said["events"][-1] == said["done"]
    assert len(said["events"]) > 1


def test_an_apps_route_passes_a_cancel_on(takeover):
    unknown = "764cabcf-b745-4b3e-ae38-1200304cf45b"
    [said] = takeover.clients.js("server_proxy.mjs", then="faults.mjs", call="cancel", requestId=unknown)

    assert (said["status"], said["body"]) == (404, {"status": "NOT_FOUND"})


def test_an_apps_route_passes_uploads_on(takeover):
    options = {"size": 1024, "name": "hello.bin", "type": "application/octet-stream"}
    [said] = takeover.clients.js("server_proxy.mjs", then="upload.mjs", **options)

    assert (said["status"], said["same"]) == (200, True)


def test_an_apps_route_passes_the_validation_error_on(takeover):
    options = {"call": "run", "input": {"strength": 2}, "field": "strength"}
    [said] = takeover.clients.js("server_proxy.mjs", then="faults.mjs", **options)

    assert (said["kind"], said["status"]) == ("ValidationError", 422)


# --- Deno ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def deno(takeover):
    """Run a script in Deno, which trusts the CA by a variable of its own."""
    ca = takeover.clients.env["NODE_EXTRA_CA_CERTS"]
    return takeover.clients.with_env(NODE_EXTRA_CA_CERTS="", DENO_CERT=ca).deno


@pytest.mark.parametrize("mode", ["polling", "streaming"])
def test_deno_subscribes(mode, deno):
    [said] = deno("subscribe.mjs", mode=mode)

    assert said["updates"][-1]["status"] == "COMPLETED"
    assert said["result"]["data"]["seed"] == 7


def test_deno_calls_the_queue(deno):
    [said] = deno("queue.mjs")

    assert said["result"]["data"] == said["again"]["data"]


def test_deno_streams(deno):
    [said] = deno("stream.mjs")

    assert said["events"][-1] == said["done"]


def test_deno_cancels(clients, slow):
    [said] = clients.deno("cancel.mjs", proxy=f"{slow.url}/api/fal/proxy", whenRunning=True)

    assert said["was"] == "IN_PROGRESS"
    assert (said["status"]["status"], said["result"]["status"]) == ("COMPLETED", 499)


def test_deno_uploads(deno):
    [said] = deno("upload.mjs", size=1024, name="hello.bin", type="application/octet-stream")

    assert (said["status"], said["same"]) == (200, True)


def test_deno_keeps_a_socket(deno):
    [said] = deno("realtime.mjs")

    assert [result["request_id"] for result in said["results"]] == ["one", "two"]
    assert said["errors"] == []


def test_deno_calls_through_the_proxy(clients, instant):
    [result] = clients.deno("run.mjs", proxy=f"{instant.url}/api/fal/proxy")

    assert result["data"]["seed"] == 7


# --- LiteLLM ------------------------------------------------------------------------------------------------------


@pytest.mark.long
@pytest.mark.slow
def test_litellm_posts_to_its_api_base(by_environment, instant):
    bases = [instant.url, instant.tls_url]
    offline = by_environment.with_env(LITELLM_LOCAL_MODEL_COST_MAP="True")
    patient = dataclasses.replace(offline, timeout=180)  # it has megabytes of Python to compile

    pictures, fault = patient.py("lite_llm.py", path=litellm(), api_bases=[f"{base}/run/{APP}" for base in bases])

    assert [[link.partition("/cdn/")[0] for link in links] for links in pictures] == [[base] * 2 for base in bases]
    assert fault["status"] == 422
    assert "body.strength: Input should be less than or equal to 1" in fault["message"]


# --- ComfyUI's nodes ----------------------------------------------------------------------------------------------


def test_comfyuis_nodes_upload_subscribe_fetch_recover_and_vary(takeover):
    bundle = takeover.clients.env["SSL_CERT_FILE"]
    [said] = takeover.clients.with_env(REQUESTS_CA_BUNDLE=bundle).py("comfyui.py")

    assert said["updates"][-1] == "Completed"
    assert said["type"] == "image/jpeg"
    assert said["recovered"] == ["Completed", True]
    assert said["seeds"] == [0, 1, 2]


# --- MCP servers --------------------------------------------------------------------------------------------------


@pytest.fixture
def generate(by_environment):
    """What an MCP server tells its agent of two pictures made of another."""
    given = {"model": APP, "prompt": "a beach", "num_images": 2}
    return lambda url: by_environment.py("mcp_server.py", path=mcp_server(), arguments={**given, "image_url": url})


def test_an_mcp_server_over_fal_client_tells_where_the_pictures_are(generate, picture):
    [said] = generate(picture)

    assert "Result 2: https://localhost:" in said


def test_an_mcp_server_over_fal_client_tells_of_the_fault(generate):
    [said] = generate("http://127.0.0.1/picture.jpg")

    assert "its host is not on the public internet" in said
