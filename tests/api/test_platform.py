"""The platform API: the catalogue of the one app, its price, and what tools in front of it ask for."""

import errno
import json
from typing import Any, Literal
from urllib.parse import quote

import msgspec
import pytest
from msgspec import Struct

from server.storage.files import Files
from tests.api.test_queue import finished, running, submit
from tests.support.app_client import APP, INPUT, serving

pytestmark = pytest.mark.anyio

API = "https://api.fal.ai/v1"


class Metadata(Struct):
    """As fal documents it; fal's command line and n8n's node read these."""

    display_name: str
    category: str
    description: str
    status: Literal["active", "deprecated"]
    tags: list[str]
    updated_at: str
    is_favorited: bool
    thumbnail_url: str
    model_url: str
    date: str
    highlighted: bool
    pinned: bool


class Model(Struct):
    endpoint_id: str
    metadata: Metadata
    openapi: dict[str, Any] | msgspec.UnsetType = msgspec.UNSET


class Models(Struct):
    models: list[Model]
    next_cursor: str | None
    has_more: bool


class Price(Struct):
    endpoint_id: str
    unit_price: float
    unit: str
    currency: str


class Prices(Struct):
    prices: list[Price]
    next_cursor: str | None
    has_more: bool


async def ask(tmp_path, url, kind, **options):
    async with serving(tmp_path, **options) as web:
        answer = await web.call("GET", url, headers={"authorization": "Key any:thing"})
    assert answer.headers["content-type"] == "application/json"
    return msgspec.json.decode(answer.body, type=kind)


async def test_the_catalogue_has_this_app(tmp_path):
    found = await ask(tmp_path, f"{API}/models?limit=1", Models)

    (model,) = found.models
    assert (model.endpoint_id, model.metadata.category, model.metadata.status) == (APP, "image-to-image", "active")
    assert (found.has_more, found.next_cursor, model.openapi) == (False, None, msgspec.UNSET)
    assert model.metadata.model_url == f"https://fal.run/{APP}"


@pytest.mark.parametrize(
    ("query", "count"),
    [
        ("", 1),
        ("q=latent%20CONSISTENCY", 1),
        ("q=flux", 0),
        ("category=image-to-image", 1),
        ("category=text-to-video", 0),
        ("status=active", 1),
        ("status=deprecated", 0),
        ("q=lcm&category=image-to-image&status=active&limit=20", 1),
        ("q=lcm&category=text-to-image", 0),
        (f"endpoint_id={APP}", 1),
        ("endpoint_id=110602490-lcm-sd15-i2i", 1),
        ("endpoint_id=fal-ai/flux", 0),
        (f"endpoint_id={APP}/stream", 0),
        (f"endpoint_id=fal-ai/flux&endpoint_id={APP}", 1),
        (f"endpoint_id=fal-ai/flux,{APP}", 1),
        (f"endpoint_id={APP}&q=flux", 0),
        ("q=&category=&status=&limit=&cursor=", 1),
        ("cursor=Mg==", 0),
    ],
)
async def test_it_is_searched_as_fals_is(tmp_path, query, count):
    found = await ask(tmp_path, f"{API}/models?{query}", Models)

    assert len(found.models) == count


@pytest.mark.parametrize("limit", ["0", "-1", "many", "1.5", "٣"])
async def test_a_malformed_limit_is_422(tmp_path, limit):
    async with serving(tmp_path) as web:
        answer = await web.call("GET", f"/api/v1/models?limit={quote(limit)}")

    assert answer.status == 422
    assert answer.json()["detail"][0]["loc"] == ["query", "limit"]


async def test_a_model_is_expanded_to_its_document(tmp_path):
    found = await ask(tmp_path, f"{API}/models?endpoint_id={APP}&expand=openapi-3.0", Models)
    document = await ask(tmp_path, f"https://fal.ai/api/openapi/queue/openapi.json?endpoint_id={APP}", dict)

    assert json.dumps(found.models[0].openapi["components"]) == json.dumps(document["components"])
    assert found.models[0].openapi["paths"] == document["paths"]
    assert found.models[0].openapi["servers"] == [{"url": "https://queue.fal.run"}]


@pytest.mark.parametrize(("query", "count"), [(f"?endpoint_id={APP}", 1), ("", 1), ("?endpoint_id=fal-ai/flux", 0)])
async def test_its_price_is_nothing(tmp_path, query, count):
    found = await ask(tmp_path, f"{API}/models/pricing{query}", Prices)

    assert [(price.endpoint_id, price.unit_price) for price in found.prices] == [(APP, 0)] * count


@pytest.mark.parametrize("path", ["/models", "/models/pricing"])
async def test_elsewhere_it_is_below_api(tmp_path, path):
    async with serving(tmp_path) as web:
        answers = [await web.call("GET", base + path) for base in (API, "http://localhost:8000/api/v1")]

    assert [answer.status for answer in answers] == [200, 200]


async def test_links_are_those_that_the_client_can_follow(tmp_path):
    found = await ask(tmp_path, "http://localhost:8000/api/v1/models?expand=openapi-3.0", Models)

    assert found.models[0].metadata.model_url == f"http://localhost:8000/run/{APP}"
    assert found.models[0].metadata.thumbnail_url == "http://localhost:8000/static/beach.jpg"
    assert found.models[0].openapi["servers"] == [{"url": "http://localhost:8000/queue"}]


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", ""),
        ("GET", "/"),
        ("GET", "/models/usage"),
        ("GET", "/meta"),
        ("GET", "/models/requests/by-endpoint"),
        ("POST", "/models/pricing/estimate"),
        ("POST", "/models"),
        ("PATCH", "/workflows/x"),
    ],
)
async def test_the_rest_of_the_platform_is_404_and_says_what_there_is(tmp_path, method, path):
    async with serving(tmp_path) as web:
        answer = await web.call(method, f"{API}{path}", body={})

    assert answer.status == 404
    assert answer.headers["content-type"] == "application/json"
    assert "catalogue of its own app only" in answer.json()["detail"]


@pytest.mark.parametrize("path", ["/users/me", "/"])
async def test_what_is_beside_the_platforms_version_is_no_run(tmp_path, path):
    async with serving(tmp_path) as web:
        answer = await web.call("POST", f"https://api.fal.ai{path}", body={})

    assert answer.status in {404, 405}


async def test_a_page_elsewhere_may_read_the_catalogue_and_no_more(tmp_path):
    headers = {"sec-fetch-site": "cross-site"}
    async with serving(tmp_path) as web:
        read = await web.call("GET", f"{API}/models", headers=headers)
        deleted = await web.call("DELETE", f"{API}/models/requests/1/payloads", headers=headers)

    assert (read.status, deleted.status) == (200, 403)


# --- deletion of payloads

ALICE, BOB = {"authorization": "Key alice:a"}, {"authorization": "Key bob:b"}
STORED = {**INPUT, "sync_mode": False, "num_images": 2}
UNKNOWN = "00000000-0000-0000-0000-000000000000"


def payloads(request_id):
    return f"{API}/models/requests/{request_id}/payloads"


async def test_payloads_and_output_files_are_deleted_once(tmp_path):
    async with serving(tmp_path, files=Files, keys="alice:a,bob:b") as web:
        before = web.ctx.files.disk.used
        job = await submit(web, body=STORED, headers=ALICE)
        await finished(web, job, headers=ALICE)
        links = [image["url"] for image in (await web.call("GET", job["response_url"], headers=ALICE)).json()["images"]]
        there = [(await web.call("GET", link)).status for link in links]
        deleted = await web.call("DELETE", payloads(job["request_id"]), headers=ALICE)
        again = await web.call("DELETE", payloads(job["request_id"]), headers=ALICE)
        gone = [(await web.call("GET", link)).status for link in links]
        result = await web.call("GET", job["response_url"], headers=ALICE)
        status = await web.call("GET", job["status_url"] + "?logs=1", headers=ALICE)
        after = web.ctx.files.disk.used

    assert (there, gone) == ([200, 200], [404, 404])
    assert (deleted.status, deleted.json()) == (
        200,
        {"cdn_delete_results": [{"link": link, "exception": None} for link in links]},
    )
    assert (again.status, again.json()) == (200, {"cdn_delete_results": []})
    assert (result.status, status.json()["status"], status.json()["logs"]) == (410, "COMPLETED", [])
    assert after == before


class OneKept(Files):
    """Files of which the first can't be deleted."""

    async def delete(self, url):
        if not hasattr(self, "kept"):
            self.kept = url
            raise PermissionError(errno.EACCES, "Permission denied", url)
        await super().delete(url)


async def test_a_file_that_cannot_be_deleted_is_named_and_keeps_nothing_else(tmp_path, caplog):
    async with serving(tmp_path, files=OneKept) as web:
        job = await submit(web, body=STORED)
        await finished(web, job)
        links = [image["url"] for image in (await web.call("GET", job["response_url"])).json()["images"]]
        deleted = await web.call("DELETE", payloads(job["request_id"]))
        there = [(await web.call("GET", link)).status for link in links]
        result = await web.call("GET", job["response_url"])

    assert (deleted.status, there, result.status) == (200, [200, 404], 410)
    assert [each["exception"] for each in deleted.json()["cdn_delete_results"]] == ["Permission denied", None]
    [warning] = [record.message for record in caplog.records if record.levelname == "WARNING"]
    assert "Permission denied" in warning
    assert links[0].rpartition("/")[2] not in warning


async def test_only_the_owners_key_deletes(tmp_path):
    async with serving(tmp_path, keys="alice:a,bob:b") as web:
        job = await submit(web, headers=ALICE)
        await finished(web, job, headers=ALICE)
        foreign = await web.call("DELETE", payloads(job["request_id"]), headers=BOB)
        unknown = await web.call("DELETE", payloads(UNKNOWN), headers=BOB)
        nobodys = await web.call("DELETE", payloads(job["request_id"]))
        kept = await web.call("GET", job["response_url"], headers=ALICE)

    assert (foreign.status, foreign.body) == (unknown.status, unknown.body)
    assert (foreign.status, nobodys.status, kept.status) == (404, 401, 200)


async def test_a_job_that_has_not_ended_is_409(tmp_path):
    async with serving(tmp_path) as web:
        job = await running(web)
        waiting = await submit(web)
        answers = [await web.call("DELETE", payloads(each["request_id"])) for each in (job, waiting)]
        web.engines.gate.set()
        status = await finished(web, waiting)

    assert [answer.status for answer in answers] == [409, 409]
    assert "error" not in status


@pytest.mark.parametrize("body", [INPUT, {**INPUT, "strength": 2}])
async def test_a_job_without_files_has_no_links(tmp_path, body):
    async with serving(tmp_path) as web:
        job = await submit(web, body=body)
        await finished(web, job)
        deleted = await web.call("DELETE", payloads(job["request_id"]))
        result = await web.call("GET", job["response_url"])

    assert (deleted.status, deleted.json(), result.status) == (200, {"cdn_delete_results": []}, 410)
