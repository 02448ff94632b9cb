"""With keys every route is closed, but for those that are listed here with the reason."""

import pytest
from starlette.routing import Route, WebSocketRoute

from server.access.auth import Caller
from server.app import ROUTES
from tests.support.app_client import INPUT, serving
from tests.support.asgi_client import Refused

pytestmark = pytest.mark.anyio

# Open by design, and why.
OPEN = {
    "/": "the playground's page; what it calls is closed",
    "/docs": "the page of a public document",
    "/openapi.json": "a public document",
    "/trust": "a page on the local CA",
    "/trust/ca.pem": "a certificate is public; its key is elsewhere",
    "/trust/bundle.pem": "public certificates",
    "/static/{name:path}": "the playground's files",
    "/favicon.ico": "the playground's files",
    "/health": "probes have no key; it tells nothing of callers",
    "/ready": "probes have no key",
    "/metrics": "scrapers have no key; figures only",
    "/.well-known/jwks.json": "public keys",
    "/rest/.well-known/jwks.json": "public keys",
    "/api/openapi/queue/openapi.json": "a public document",
    "/models/{app:path}/llms.txt": "a public document",
    "/api/v1/models": "the catalogue is public at fal too; it tells nothing of callers",
    "/api/v1/models/pricing": "the same for every caller: 0",
    "/api/v1": "nothing is there",
    "/api/v1/{rest:path}": "nothing is there",
    "/cdn/files/{name}": "results are public by their unguessable names, as fal's are",
}

# Closed by a signature in the URL instead of a key: fal's clients send none with it. 403.
SIGNED = [
    ("PUT", "/cdn/upload/{name}"),
    ("PUT", "/cdn/upload/{name}/{number}"),
    ("POST", "/cdn/upload/{name}/complete"),
]
# The proxy has every method; what is no method of its target's is 405.
NO_METHODS = [(method, "/api/fal/proxy") for method in ("DELETE", "PATCH", "PUT")]

VALUES = {
    "{app:path}": "fal-ai/lcm-sd15-i2i",
    "{request_id}": "1",
    "{name}": "a" * 22 + ".jpg",
    "{ticket}": "1",
    "{number}": "1",
    "{rest:path}": "meta",
}


def concrete(path):
    for placeholder, value in VALUES.items():
        path = path.replace(placeholder, value)
    assert "{" not in path, "a new placeholder: give it a value above"
    return path


CALLS = [
    (method, route.path)
    for route in ROUTES
    if isinstance(route, Route)
    for method in sorted(route.methods - {"HEAD"})
    if route.path not in OPEN
]
SOCKETS = [route.path for route in ROUTES if isinstance(route, WebSocketRoute)]

WRONG = [
    None,
    "Key alice:wrong",
    "Key alice",
    "Bearer eyJhbGciOiJub25lIn0.e30.",
    "Basic YWxpY2U6YQ==",
    "expired",
    "foreign",
]


def credentials(web, kind):
    """The header of this kind: as it stands, or a token that has ended, or one for another app."""
    tokens = {"expired": (-1, "lcm-sd15-i2i"), "foreign": (60, "flux")}
    if kind not in tokens:
        return {"authorization": kind}
    seconds, app = tokens[kind]
    return {"authorization": f"Bearer {web.ctx.auth.issue(Caller('alice', 'alice'), seconds, [app])}"}


@pytest.mark.parametrize("kind", WRONG)
async def test_without_a_right_key_no_route_answers(tmp_path, kind):
    async with serving(tmp_path, keys="alice:a") as web:
        headers = credentials(web, kind) | {"x-fal-target-url": "https://fal.run/fal-ai/lcm-sd15-i2i"}
        statuses = {
            (method, path): (await web.call(method, concrete(path), body=INPUT, headers=headers)).status
            for method, path in CALLS
        }

    expected = dict.fromkeys(CALLS, 401)
    if kind == "foreign":  # it is a token, but not for this app
        expected |= {call: 403 for call in CALLS if "{app:path}" in call[1] or call[1] == "/api/fal/proxy"}
    expected |= dict.fromkeys(SIGNED, 403) | dict.fromkeys(NO_METHODS, 405)
    assert statuses == expected
    assert web.engines.works == []


@pytest.mark.parametrize("kind", WRONG)
@pytest.mark.parametrize("path", SOCKETS)
async def test_without_a_right_key_no_socket_takes_work(tmp_path, path, kind):
    async with serving(tmp_path, keys="alice:a") as web:
        try:
            async with web.connect(concrete(path), headers=credentials(web, kind)) as socket:
                socket.send('{"prompt": "p", "image_url": "data:,"}')
                said = await socket.recv()
        except Refused as refused:
            said = str(refused.answer.status)

    assert said in {"401", "403", '{"status":"error","error":"Unauthorized"}'}
    assert web.engines.works == []
