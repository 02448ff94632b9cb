"""Statements of the protocol on a real socket: routes, streams, tokens, files, the proxy, webhooks, the document.

The statements are those of `conformance.txt`. With `--fleet` each call is answered by the next of three boxes behind
HAProxy, and some by HAProxy itself.
"""

import contextlib
import json
import re

import pytest

from tests.api.test_closed import CALLS, concrete
from tests.api.test_run import events
from tests.chaos.webhook_delivery import Receivers, signed
from tests.support.server_process import APP, CALL, ask, serving, until

RUN, QUEUE, PROXY = f"/run/{APP}", f"/queue/{APP}", "/api/fal/proxy"
INITIATE = "/rest/storage/upload/initiate"
GATEWAY = "https://110602490-lcm-sd15-i2i.gateway.alpha.fal.ai"
ALICE, BOB = "alice:a", "bob:b"
WANTED = {"allowed_apps": ["lcm-sd15-i2i"], "token_expiration": 120}
UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
FILE = b"\xff\xd8\xff\xe0 a picture"


@pytest.fixture(scope="module")
def keyed():
    """A server with keys, whose webhooks may lead to this machine."""
    env = {"FOURSTEP_KEYS": f"{ALICE},{BOB}"}
    with serving("--model", "instant:5", "--allow-net", "127.0.0.1", env=env) as server:
        yield server


@pytest.fixture(scope="module")
def receivers():
    """Receivers of webhooks, of which every one refuses the first two attempts."""
    with contextlib.closing(Receivers(failing=1.0, hanging=0.0)) as receivers:
        yield receivers


def heard(receivers):
    """The id in each call that receivers have had, None in what is no webhook."""
    return [headers.get("X-Fal-Webhook-Request-Id") for _, headers, _ in receivers.heard]


# --- routes


@pytest.mark.parametrize(
    ("method", "url", "body", "status"),
    [
        ("POST", RUN, CALL, 200),
        ("POST", QUEUE, CALL, 200),
        ("POST", "/rest/tokens/", WANTED, 200),
        ("POST", INITIATE, {}, 200),
        ("GET", "/health", None, 200),
        ("GET", "/.well-known/jwks.json", None, 200),
        ("POST", RUN, CALL | {"strength": 2}, 422),
        ("POST", QUEUE, b"{", 422),
        ("POST", PROXY, CALL, 400),
        ("GET", f"{QUEUE}/requests/nothing", None, 404),
        ("GET", f"{QUEUE}/requests/nothing/status", None, 404),
        ("PUT", f"{QUEUE}/requests/nothing/cancel", None, 404),
        ("GET", "/cdn/files/nothing.jpg", None, 404),
        ("GET", "/nowhere", None, 404),
        ("PUT", RUN, None, 405),
    ],
)
def test_every_answer_is_json_with_a_request_id(instant, method, url, body, status):
    answer = ask(instant, method, url, body)

    assert answer.status == status
    assert answer.headers.get_all("content-type") == ["application/json"]
    assert isinstance(answer.json(), dict | str)
    assert [bool(UUID.fullmatch(each)) for each in answer.headers.get_all("x-fal-request-id")] == [True]


@pytest.mark.parametrize("slash", ["", "/"])
def test_no_route_redirects(instant, slash):
    headers = to(f"https://fal.run/{APP}")
    calls = [(method, concrete(path) + slash) for method, path in CALLS]
    statuses = {(method, url): ask(instant, method, url, CALL, headers).status for method, url in calls}

    assert {call: status for call, status in statuses.items() if 300 <= status < 400} == {}


def test_so_is_what_stands_in_front_of_several_servers(instant):
    answer = ask(instant, "GET", "/ready")

    assert answer.headers["content-type"] == "application/json"
    assert UUID.fullmatch(answer.headers["x-fal-request-id"])


@pytest.mark.parametrize(
    ("method", "url"),
    [
        ("POST", "/run/fal-ai/other"),
        ("POST", "http://fal.run/fal-ai/other"),
        ("POST", "/fal-ai/other"),
        ("POST", "/queue/fal-ai/other"),
        ("POST", "http://queue.fal.run/110602490-other"),
        ("GET", "/queue/fal-ai/other/requests/1/status"),
    ],
)
def test_an_unknown_app_is_404_with_a_detail(instant, method, url):
    answer = ask(instant, method, url, CALL if method == "POST" else None)

    assert (answer.status, isinstance(answer.json()["detail"], str)) == (404, True)


def test_the_document_of_the_endpoint_has_fals_shape_and_limits(instant):
    document = ask(instant, "GET", f"/api/openapi/queue/openapi.json?endpoint_id={APP}").json()

    where = f"/{APP}/requests/{{request_id}}"
    calls = {(method, path) for path, item in document["paths"].items() for method in item}
    schema = document["components"]["schemas"]["LcmSd15I2iInput"]
    bounds = ("minimum", "maximum", "default")
    limits = {name: tuple(map(field.get, bounds)) for name, field in schema["properties"].items()}
    assert document["info"]["x-fal-metadata"]["endpointId"] == APP
    assert calls == {("post", f"/{APP}"), ("get", where), ("get", f"{where}/status"), ("put", f"{where}/cancel")}
    assert schema["required"] == ["prompt", "image_url"]
    assert (
        limits.items()
        >= {
            "strength": (0, 1, 0.8),
            "guidance_scale": (0, 16, 1),
            "num_inference_steps": (1, 12, 4),
            "num_images": (1, 8, 1),
            "sync_mode": (None, None, False),
            "enable_safety_checks": (None, None, True),
        }.items()
    )


# --- streams and tokens


def test_a_stream_is_ascii_and_ends_with_its_last_event(instant):
    answer = ask(instant, "POST", f"{RUN}/stream", CALL | {"request_id": "ñ→🖼"})

    assert answer.headers["content-type"].startswith("text/event-stream")
    assert answer.body.isascii()
    assert b"[DONE]" not in answer.body
    assert events(answer.body)[-1]["request_id"] == "ñ→🖼"


def streamed(server, token):
    """The status of a stream that has this token in its query and no key."""
    return ask(server, "POST", f"{RUN}/stream?fal_jwt_token={token}", CALL).status


@pytest.mark.parametrize(
    "url", ["/rest/tokens", "/rest/tokens/", "http://rest.fal.ai/tokens/", "http://rest.alpha.fal.ai/tokens/"]
)
def test_a_token_is_a_bare_json_string(keyed, url):
    token = ask(keyed, "POST", url, WANTED, key=ALICE).json()

    assert isinstance(token, str)
    assert [streamed(keyed, token) for _ in range(3)] == [200, 200, 200]


def test_a_token_of_the_newer_form_is_in_an_object(keyed):
    wanted = {"allowed_apps": [f"{APP}/realtime"], "duration": 60}
    said = ask(keyed, "POST", "http://rest.fal.ai/tokens/realtime", wanted, key=ALICE).json()

    assert set(said) == {"token"}
    assert streamed(keyed, said["token"]) == 200


@pytest.mark.parametrize("path", [RUN, QUEUE])
def test_a_bearer_is_a_token_or_401(keyed, path):
    token = ask(keyed, "POST", "/rest/tokens/", WANTED, key=ALICE).json()
    good, bad = (ask(keyed, "POST", path, CALL, {"Authorization": f"Bearer {each}"}) for each in (token, token[:-4]))

    assert (good.status, bad.status) == (200, 401)
    assert isinstance(bad.json()["detail"], str)


def test_a_token_of_another_app_is_refused(keyed):
    token = ask(keyed, "POST", "/rest/tokens/", {"allowed_apps": ["other"]}, key=ALICE).json()

    assert streamed(keyed, token) == 403


# --- files


def upload(server, headers=None, **put):
    """Upload a file with Alice's key; return its URL. `put`: options of the call that sends it."""
    wanted = {"content_type": "image/jpeg"}
    urls = ask(server, "POST", f"{INITIATE}?storage_type=gcs", wanted, headers, key=ALICE).json()
    assert ask(server, "PUT", urls["upload_url"], FILE, **put).status == 200
    return urls["file_url"]


def test_pythons_fallback_puts_with_its_key_in_the_headers(keyed):
    answer = ask(keyed, "GET", upload(keyed, key=ALICE))

    assert (answer.status, answer.headers["content-type"], answer.body) == (200, "image/jpeg", FILE)


def lifecycle(**wanted):
    return {"X-Fal-Object-Lifecycle": json.dumps(wanted)}


def test_a_file_lives_for_as_long_as_was_asked(keyed):
    url = upload(keyed, lifecycle(expiration_duration_seconds=2))

    assert ask(keyed, "GET", url).status == 200
    until(lambda: ask(keyed, "GET", url).status != 200, timeout=10)
    assert [ask(keyed, "GET", url).status for _ in range(3)] == [404, 404, 404]


@pytest.mark.parametrize(
    ("acl", "nobody", "bob"),
    [
        ({"default": "allow"}, 200, 200),
        ({"default": "forbid"}, 403, 403),
        ({"default": "hide"}, 404, 404),
        ({"default": "hide", "rules": [{"user": "bob", "decision": "allow"}]}, 404, 200),
        ({"default": "allow", "rules": [{"user": "bob", "decision": "forbid"}]}, 200, 403),
    ],
)
def test_an_acl_is_kept(keyed, acl, nobody, bob):
    url = upload(keyed, lifecycle(initial_acl=acl))

    assert [ask(keyed, "GET", url, key=key).status for key in ("", BOB, ALICE)] == [nobody, bob, 200]


# --- the proxy


def to(target):
    return {"x-fal-target-url": target}


@pytest.mark.parametrize(
    ("target", "body", "told"),
    [
        ("https://rest.alpha.fal.ai/tokens/", WANTED, str),
        ("https://rest.alpha.fal.ai/storage/upload/initiate", {}, dict),
        (f"{GATEWAY}/", CALL, dict),
        (f"{GATEWAY}/fal/queue/submit", CALL, dict),
    ],
)
def test_the_proxy_has_the_older_targets_too(keyed, target, body, told):
    answer = ask(keyed, "POST", PROXY, body, to(target), key=ALICE)

    assert (answer.status, type(answer.json())) == (200, told)


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 400),
        (to("https://example.com/fal-ai/lcm-sd15-i2i"), 412),
        (to("https://fal.run.example.com/x"), 412),
        (to("https://user@fal.run/x"), 412),
        (to("https://fal.run/metrics"), 412),
        (to("HERE"), 412),
    ],
)
def test_the_proxy_takes_targets_of_fals_alone_and_fetches_nothing(keyed, receivers, headers, status):
    headers = {name: target.replace("HERE", receivers.url()) for name, target in headers.items()}

    assert ask(keyed, "POST", PROXY, CALL, headers, key=ALICE).status == status
    assert None not in heard(receivers)


@pytest.mark.parametrize("target", ["https://fal.run/fal-ai/other", "https://example.com/"])
def test_a_target_on_another_route_is_ignored(keyed, target):
    answer = ask(keyed, "POST", RUN, CALL, to(target), key=ALICE)

    assert (answer.status, answer.json()["seed"]) == (200, CALL["seed"])


# --- webhooks


def test_a_webhook_that_is_refused_comes_again_with_the_same_bytes_signed_anew(keyed, receivers):
    ask(keyed, "POST", f"{QUEUE}?fal_webhook={receivers.url()}", CALL, key=ALICE)
    until(lambda: len(heard(receivers)) == 2, timeout=30)
    jwks = ask(keyed, "GET", "/.well-known/jwks.json").json()
    (_, first, sent), (_, again, same) = receivers.heard

    assert (json.loads(sent)["status"], same) == ("OK", sent)
    assert int(again["X-Fal-Webhook-Timestamp"]) > int(first["X-Fal-Webhook-Timestamp"])
    assert again["X-Fal-Webhook-Signature"] != first["X-Fal-Webhook-Signature"]
    assert all(signed(jwks, *each) for each in receivers.heard)


def test_a_webhook_inside_is_never_sent_and_the_requests_log_says_so(instant, receivers):
    job = ask(instant, "POST", f"{QUEUE}?fal_webhook={receivers.url()}", CALL).json()
    until(lambda: ask(instant, "GET", job["response_url"]).status == 200)
    [line] = ask(instant, "GET", f"{job['status_url']}?logs=1").json()["logs"]

    assert "--allow-net 127.0.0.1" in line["message"]
    assert job["request_id"] not in heard(receivers)
