"""Every host and path that fal's clients write, onto one canonical path; and links back."""

import pytest

from server.fal.hosts import Host, base_url, canonical, parse_host
from server.web.canonical_path import CanonicalPath
from tests.support.asgi_client import scope_of

APP = "fal-ai/lcm-sd15-i2i"
DASHED = "110602490-lcm-sd15-i2i"
GATEWAY = f"{DASHED}.gateway.alpha.fal.ai"
JOB = f"{APP}/requests/0a1b"


@pytest.mark.parametrize(
    ("host", "method", "path", "expected"),
    [
        ("fal.run", "POST", f"/{APP}", f"/run/{APP}"),
        ("fal.run", "POST", f"/{APP}/", f"/run/{APP}"),
        ("fal.run", "POST", f"/{APP}/stream", f"/run/{APP}/stream"),
        ("fal.run", "GET", f"/{APP}/realtime", f"/run/{APP}/realtime"),
        ("falrun.com", "POST", f"/{DASHED}", f"/run/{DASHED}"),
        ("queue.fal.run", "POST", f"/{APP}", f"/queue/{APP}"),
        ("queue.falrun.com", "GET", f"/{JOB}/status/", f"/queue/{JOB}/status"),
        ("rest.fal.ai", "POST", "/tokens/", "/rest/tokens"),
        ("rest.alpha.fal.ai", "POST", "/tokens/", "/rest/tokens"),
        ("rest.fal.ai", "GET", "/.well-known/jwks.json", "/.well-known/jwks.json"),
        ("v3.fal.media", "POST", "/files/upload", "/cdn/files/upload"),
        ("v3b.fal.media", "GET", "/files/a.jpg", "/cdn/files/a.jpg"),
        ("fal.media", "POST", "/files/upload", "/cdn/files/upload"),
        ("ws.fal.run", "GET", f"/{APP}", f"/ws/{APP}"),
        ("api.fal.ai", "GET", "/v1/models", "/api/v1/models"),
        ("api.fal.ai", "GET", "/v1/models/", "/api/v1/models"),
        ("api.fal.ai", "GET", "/api/v1/models", "/api/v1/models"),
        ("api.fal.ai", "GET", "/static/beach.jpg", "/static/beach.jpg"),
        ("api.fal.ai", "DELETE", "/v1/models/requests/1/payloads", "/api/v1/models/requests/1/payloads"),
        ("fal.run", "GET", "/docs", "/docs"),
        ("queue.fal.run", "HEAD", "/trust/ca.pem", "/trust/ca.pem"),
        ("fal.run", "POST", "/docs", "/run/docs"),
        ("queue.fal.run", "POST", "/trust/ca.pem", "/queue/trust/ca.pem"),
        ("fal.ai", "GET", "/api/openapi/queue/openapi.json", "/api/openapi/queue/openapi.json"),
    ],
)
def test_fals_own_hosts_are_spaces(host, method, path, expected):
    assert canonical(host, method, path) == expected


@pytest.mark.parametrize("host", ["localhost", "box.lan", "192.168.1.5", "::1", "fal.run", "queue.fal.run"])
@pytest.mark.parametrize("space", ["run", "queue", "rest", "cdn", "ws"])
def test_each_space_is_a_prefix_on_any_host(host, space):
    assert canonical(host, "POST", f"/{space}/anything/below/") == f"/{space}/anything/below"


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        (f"/{APP}", f"/run/{APP}"),
        (f"/{DASHED}", f"/run/{DASHED}"),
        (f"/{APP}/realtime", f"/run/{APP}/realtime"),
        (f"/{JOB}", f"/queue/{JOB}"),
        (f"/{JOB}/cancel", f"/queue/{JOB}/cancel"),
        (f"/{APP}/sub/requests/1/status/", f"/queue/{APP}/sub/requests/1/status"),
        ("/", "/"),
        ("/health", "/health"),
        ("/ready/", "/ready"),
        ("/metrics", "/metrics"),
        ("/static/beach.jpg", "/static/beach.jpg"),
        ("/api/fal/proxy", "/api/fal/proxy"),
        (f"/models/{APP}/llms.txt", f"/models/{APP}/llms.txt"),
        ("/api/v1/models", "/api/v1/models"),
        ("/api/v1/models/requests/1/payloads", "/api/v1/models/requests/1/payloads"),
        ("/.well-known/jwks.json", "/.well-known/jwks.json"),
        ("/run", "/run/run"),
        ("//" + APP, f"/run/{APP}"),
    ],
)
def test_a_path_on_an_unknown_host_is_a_run_or_the_queues(path, expected):
    assert canonical("box.lan", "POST", path) == expected


@pytest.mark.parametrize(
    ("method", "path", "expected"),
    [
        ("POST", "/", f"/run/{DASHED}"),
        ("POST", "/stream", f"/run/{DASHED}/stream"),
        ("GET", "/ws", f"/run/{DASHED}/ws"),
        ("GET", "/realtime", f"/run/{DASHED}/realtime"),
        ("POST", "/fal/queue/submit", f"/queue/{DASHED}"),
        ("POST", "/fal/queue/submit/sub/path", f"/queue/{DASHED}/sub/path"),
        ("GET", "/fal/queue/requests/1/status", f"/queue/{DASHED}/requests/1/status"),
        ("GET", "/fal/queue/requests/1/response", f"/queue/{DASHED}/requests/1/response"),
        ("GET", "/cdn/files/a.jpg", "/cdn/files/a.jpg"),
        ("GET", "/health", "/health"),
        ("GET", "/openapi.json", "/openapi.json"),
        ("POST", "/openapi.json", f"/run/{DASHED}/openapi.json"),
        ("GET", "/", "/"),
    ],
)
@pytest.mark.parametrize("host", [GATEWAY, f"{DASHED}.gateway.example.test", f"{DASHED}.localhost"])
def test_a_gateway_host_carries_the_app_in_its_first_label(host, method, path, expected):
    assert canonical(host, method, path) == expected


@pytest.mark.parametrize(
    ("host", "path", "expected"),
    [
        ("queue.box.lan", f"/{APP}", f"/queue/{APP}"),
        ("rest.example.test", "/tokens/", "/rest/tokens"),
        ("ws.box.lan", f"/{APP}", f"/ws/{APP}"),
        ("ws.box.lan", f"/run/{APP}", f"/ws/{APP}"),
    ],
)
def test_what_old_clients_put_in_front_of_a_host_counts_on_any_name(host, path, expected):
    assert canonical(host, "POST", path) == expected


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ("localhost", Host("localhost")),
        ("LOCALHOST:8000", Host("localhost", ":8000")),
        ("fal.run.", Host("fal.run")),
        ("[::1]:8443", Host("::1", ":8443")),
        ("", None),
        ("a b", None),
        ("evil/../x", None),
        ("host:port", None),
        ("user@host", None),
    ],
)
def test_a_host_header_is_taken_apart_or_refused(header, expected):
    assert parse_host(header) == expected


async def _dispatched(url, *, public_url="", kind="http"):
    seen = {}

    async def app(scope, _receive, _send):
        seen.update(scope)

    await CanonicalPath(app, public_url)(scope_of(kind, "GET", url, None, "localhost"), None, None)
    return seen


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("url", "space", "expected"),
    [
        ("http://localhost:8000/health", "queue", "http://localhost:8000/queue"),
        ("https://box.lan/health", "cdn", "https://box.lan/cdn"),
        ("http://[::1]:8000/health", "cdn", "http://[::1]:8000/cdn"),
        ("https://fal.run/health", "queue", "https://queue.fal.run"),
        ("https://queue.fal.run:8443/health", "cdn", "https://v3.fal.media:8443"),
        (f"https://{GATEWAY}/health", "rest", "https://rest.fal.ai"),
        (f"https://{DASHED}.gateway.example.test/health", "cdn", f"https://{DASHED}.gateway.example.test/cdn"),
    ],
)
async def test_links_are_under_the_name_that_the_client_used(url, space, expected):
    assert base_url(await _dispatched(url), space) == expected


@pytest.mark.anyio
async def test_links_are_under_the_public_url_where_one_is_set():
    scope = await _dispatched("http://10.0.0.7/health", public_url="https://pictures.example/fal/")

    assert base_url(scope, "queue") == "https://pictures.example/fal/queue"


@pytest.mark.anyio
async def test_links_of_a_websocket_are_http():
    scope = await _dispatched("wss://box.lan/health", kind="websocket")

    assert base_url(scope, "cdn") == "https://box.lan/cdn"


@pytest.mark.anyio
async def test_a_path_is_mapped_once_however_often_it_passes():
    scope = await _dispatched(f"https://queue.fal.run/{APP}")

    again = await _dispatched(f"https://queue.fal.run{scope['path']}")

    assert scope["path"] == again["path"] == f"/queue/{APP}"
