"""The OpenAPI document of all that the server answers: valid, true of its routes, the same figures as fal's."""

import json
import re
from pathlib import Path

import pytest
from schemathesis.specs.openapi.definitions import OPENAPI_30_VALIDATOR
from starlette.routing import Match

from server.api import realtime, tokens, uploads
from server.app import ROUTES
from server.fal import openapi
from server.fal.endpoints import ENDPOINTS
from server.fal.errors import REQUEST_ERRORS, RequestError
from server.fal.headers import start_timeout
from server.settings import Settings
from server.transport import tls
from tests.support.app_client import APP, serving

pytestmark = pytest.mark.anyio

QUEUE = "/api/openapi/queue/openapi.json"


@pytest.fixture
async def document(tmp_path):
    tls.ensure(Settings(data_dir=tmp_path))
    async with serving(tmp_path, tls_port=8443, takeover=True) as web:
        return (await web.call("GET", "http://localhost:8000/openapi.json")).json()


async def test_it_is_valid(document):
    assert [error.message for error in OPENAPI_30_VALIDATOR.iter_errors(document)] == []


async def test_a_fault_in_it_would_be_found(document):
    del document["paths"][f"/run/{APP}"]["post"]["responses"]

    assert list(OPENAPI_30_VALIDATOR.iter_errors(document))


async def test_it_has_run_stream_realtime_queue_uploads_and_health(document):
    job = f"/queue/{APP}/requests/{{request_id}}"
    methods = {path: set(item) & {"get", "post", "put"} for path, item in document["paths"].items()}
    assert methods == {
        f"/run/{APP}": {"post"},
        f"/run/{APP}/stream": {"post"},
        f"/run/{APP}/realtime": set(),
        f"/queue/{APP}": {"post"},
        f"{job}/status": {"get"},
        f"{job}/status/stream": {"get"},
        job: {"get"},
        f"{job}/cancel": {"put"},
        "/rest/storage/upload/initiate": {"post"},
        "/cdn/upload/{name}": {"put"},
        "/cdn/files/{name}": {"get"},
        "/rest/tokens": {"post"},
        "/health": {"get"},
        "/ready": {"get"},
    }


async def test_each_of_its_calls_has_a_route(document):
    def answered(path, method):
        kind = "websocket" if method == "x-websocket" else "http"
        scope = {"type": kind, "method": method.upper(), "path": path, "headers": []}
        return any(route.matches(scope)[0] == Match.FULL for route in ROUTES)

    calls = [
        (path, method)
        for path, item in document["paths"].items()
        for method in item
        if method in {"get", "post", "put", "x-websocket"}
    ]
    assert [call for call in calls if not answered(*call)] == []
    assert len(calls) == 14


async def test_its_figures_are_those_of_fals_document(document, tmp_path):
    async with serving(tmp_path / "other") as web:
        fals = (await web.call("GET", QUEUE)).json()["components"]["schemas"]
    ours = document["components"]["schemas"]

    for name, field in fals[openapi.INPUT]["properties"].items():
        told = dict(ours[openapi.INPUT]["properties"][name])
        examples = [told.pop("example")] if "example" in told else None
        said = dict(field)
        assert examples == said.pop("examples", None)
        for spelling, word in (("ge", "minimum"), ("le", "maximum")):
            if spelling in said:
                said[word] = said.pop(spelling)
        assert told == said
    assert {name: schema for name, schema in ours.items() if name in fals and name != openapi.INPUT} == {
        name: schema for name, schema in fals.items() if name != openapi.INPUT
    }
    assert ours[openapi.INPUT]["required"] == fals[openapi.INPUT]["required"]


async def test_the_queues_calls_answer_as_in_fals_document(document):
    fals = openapi.document(ENDPOINTS[0], "", "")["paths"]

    for path, item in fals.items():
        [(method, call)] = item.items()
        ours = document["paths"][f"/queue{path}"][method]
        assert {status: ours["responses"][status] for status in call["responses"]} == call["responses"]
        assert ours.get("requestBody") == call.get("requestBody")


@pytest.mark.parametrize(("name", "model"), [("Upload", uploads.Wanted), ("TokenRequest", tokens.TokenRequest)])
async def test_its_other_bodies_have_the_limits_of_their_routes(document, name, model):
    limits = ("minimum", "maximum", "maxLength", "maxItems")
    theirs = model.model_json_schema()["properties"]

    for field, schema in document["components"]["schemas"][name]["properties"].items():
        assert [schema.get(limit) for limit in limits] == [theirs[field].get(limit) for limit in limits]


async def test_a_start_timeout_may_be_as_short_as_it_says(document):
    parameters = document["paths"][f"/run/{APP}"]["post"]["parameters"]
    (schema,) = [each["schema"] for each in parameters if each["name"] == "X-Fal-Request-Timeout"]

    assert schema == {"type": "number", "minimum": 0.1, "exclusiveMinimum": True}
    assert start_timeout({"x-fal-request-timeout": "0.11"}) == 0.11
    with pytest.raises(RequestError):
        start_timeout({"x-fal-request-timeout": "0.1"})


async def test_its_words_for_errors_are_fals(document):
    assert document["x-error-types"] == REQUEST_ERRORS


def test_each_word_for_errors_is_in_the_documents_and_no_other():
    said = (Path(__file__).parents[2] / "docs/troubleshooting.md").read_text().partition("## Words for errors")[2]
    rows = dict(re.findall(r"^\| `(\w+)` \| (\d{3}) \|", said, re.MULTILINE))

    assert rows == {word: str(status) for word, status in REQUEST_ERRORS.items() if word in rows}
    assert set(re.findall(r"`([a-z]+_[a-z_]+)`", said)) - {"error_type"} == set(REQUEST_ERRORS)


async def test_the_realtime_path_has_its_socket(document):
    path = document["paths"][f"/run/{APP}/realtime"]

    assert path["parameters"][0]["schema"]["maximum"] == realtime.MAX_BUFFERING
    assert path["x-websocket"]["send"] == {"$ref": f"#/components/schemas/{openapi.INPUT}"}
    assert path["x-websocket"]["receive"] == {"$ref": f"#/components/schemas/{openapi.OUTPUT}"}


async def test_every_reference_leads_somewhere(document):
    text = json.dumps(document)

    names = {part.partition('"')[0] for part in text.split("#/components/schemas/")[1:]}
    assert names <= set(document["components"]["schemas"])


async def test_it_says_where_the_server_is(document):
    assert [server["url"] for server in document["servers"]] == [
        "http://localhost:8000",
        "https://localhost:8443",
        "https://fal.run",
    ]


@pytest.mark.parametrize(
    ("url", "chosen", "servers"),
    [
        ("https://box.lan:8443/openapi.json", {"tls_port": 8443}, ["https://box.lan:8443"]),
        ("http://[::1]:8000/openapi.json", {"tls_port": 443}, ["http://[::1]:8000", "https://[::1]"]),
        (
            "http://10.0.0.7/openapi.json",
            {"tls_port": 8443, "public_url": "https://box.example/fourstep/"},
            ["https://box.example/fourstep"],
        ),
    ],
)
async def test_it_names_the_ways_that_are_open(tmp_path, url, chosen, servers):
    tls.ensure(Settings(data_dir=tmp_path))
    async with serving(tmp_path, keys="a:b", **chosen) as web:
        found = (await web.call("GET", url)).json()

    assert [server["url"] for server in found["servers"]] == servers


async def test_it_names_the_local_ca(document, tmp_path):
    assert document["x-local-ca"] == {
        "certificate": "http://localhost:8000/trust/ca.pem",
        "sha256": tls.fingerprint(tmp_path / "tls" / "ca.pem"),
        "names": ["localhost", "queue.localhost", "127.0.0.1", "::1"],
    }
