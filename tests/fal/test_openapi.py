"""The endpoint's own OpenAPI document, against fal's shape and against what the server does."""

import pytest

from server.fal import openapi
from server.fal.endpoints import ENDPOINTS
from server.fal.schemas import LcmInput
from tests.support.app_client import APP, serving

pytestmark = pytest.mark.anyio

PATH = "/api/openapi/queue/openapi.json"


async def document(tmp_path, url=f"http://localhost:8000{PATH}?endpoint_id={APP}"):
    async with serving(tmp_path) as web:
        return (await web.call("GET", url)).json()


async def test_it_has_fals_shape(tmp_path):
    found = await document(tmp_path)

    assert found["openapi"] == "3.0.4"
    assert found["info"]["title"] == f"Queue OpenAPI for {APP}"
    assert found["info"]["version"] == "1.0.0"
    assert found["info"]["x-fal-metadata"]["endpointId"] == APP
    assert found["security"] == [{"apiKeyAuth": []}]
    assert set(found["components"]["schemas"]) >= {"QueueStatus", "LcmSd15I2iInput", "LcmSd15I2iOutput", "Image"}
    assert {path: set(item) for path, item in found["paths"].items()} == {
        f"/{APP}": {"post"},
        f"/{APP}/requests/{{request_id}}": {"get"},
        f"/{APP}/requests/{{request_id}}/status": {"get"},
        f"/{APP}/requests/{{request_id}}/cancel": {"put"},
    }


async def test_its_limits_and_defaults_are_the_endpoints(tmp_path):
    fields = (await document(tmp_path))["components"]["schemas"]["LcmSd15I2iInput"]

    limits = {
        name: (field.get("minimum"), field.get("maximum"), field.get("default"))
        for name, field in fields["properties"].items()
    }
    assert fields["title"] == "LCMI2IInput"
    assert fields["required"] == ["prompt", "image_url"]
    assert fields["x-fal-order-properties"] == list(LcmInput.model_fields)
    assert limits["strength"] == (0, 1, 0.8)
    assert limits["guidance_scale"] == (0, 16, 1)
    assert limits["num_inference_steps"] == (1, 12, 4)
    assert limits["num_images"] == (1, 8, 1)
    assert limits["sync_mode"] == (None, None, False)
    assert limits["enable_safety_checks"] == (None, None, True)


def test_its_schemas_are_made_once_for_all_who_ask():
    first, second = (openapi.document(ENDPOINTS[0], url, url) for url in ("https://a", "https://b"))

    assert first["components"]["schemas"] is second["components"]["schemas"]


async def test_it_says_null_as_openapi_3_0_does(tmp_path):
    fields = (await document(tmp_path))["components"]["schemas"]["LcmSd15I2iInput"]["properties"]

    assert {name for name, field in fields.items() if field.get("nullable")} == {"mask_url", "seed"}
    assert "null" not in [kind.get("type") for field in fields.values() for kind in field.get("anyOf", [])]


def _references(node):
    if isinstance(node, dict):
        found = [node["$ref"]] if "$ref" in node else []
        return found + [ref for value in node.values() for ref in _references(value)]
    return [ref for item in node for ref in _references(item)] if isinstance(node, list) else []


async def test_every_reference_leads_somewhere(tmp_path):
    found = await document(tmp_path)

    names = {reference.removeprefix("#/components/schemas/") for reference in _references(found)}
    assert names <= set(found["components"]["schemas"])


@pytest.mark.parametrize(
    ("url", "server"),
    [
        (f"http://localhost:8000{PATH}", "http://localhost:8000/queue"),
        (f"https://fal.ai{PATH}?endpoint_id=110602490-lcm-sd15-i2i", "https://queue.fal.run"),
    ],
)
async def test_its_server_is_the_queue_as_the_client_reaches_it(tmp_path, url, server):
    assert (await document(tmp_path, url))["servers"] == [{"url": server}]


async def test_other_endpoints_have_none(tmp_path):
    async with serving(tmp_path) as web:
        answer = await web.call("GET", f"{PATH}?endpoint_id=fal-ai/flux")

    assert answer.status == 404
