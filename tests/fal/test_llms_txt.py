"""The text for agents: what it says is the schema's, and its URLs are the client's."""

import pytest

from server.fal.schemas import LcmInput, LcmOutput
from tests.support.app_client import APP, serving

pytestmark = pytest.mark.anyio


async def read(tmp_path, url):
    async with serving(tmp_path, keys="alice:a") as web:
        answer = await web.call("GET", url)
    assert (answer.status, answer.headers["content-type"]) == (200, "text/plain; charset=utf-8")
    return answer.body.decode()


@pytest.mark.parametrize(
    ("url", "run"),
    [
        (f"https://fal.ai/models/{APP}/llms.txt", f"https://fal.run/{APP}"),
        ("https://fal.ai/models/110602490-lcm-sd15-i2i/llms.txt", f"https://fal.run/{APP}"),
        (f"http://localhost:8000/models/{APP}/llms.txt", f"http://localhost:8000/run/{APP}"),
    ],
)
async def test_it_says_where_to_post_without_a_key(tmp_path, url, run):
    assert f"curl {run} -H" in await read(tmp_path, url)


async def test_it_has_every_field_with_its_limits(tmp_path):
    said = await read(tmp_path, f"/models/{APP}/llms.txt")

    lines = {line.split("`")[1]: line for line in said.splitlines() if line.startswith("- **`")}
    assert lines.keys() == LcmInput.model_fields.keys() | LcmOutput.model_fields.keys()
    assert lines["prompt"].startswith("- **`prompt`** (`string`, required): The prompt")
    assert lines["strength"].endswith("Default: `0.8`. From 0 to 1.")
    assert lines["images"].startswith("- **`images`** (`list of Image`, required):")
    assert "An image has `url`, `width`, `height`, `content_type`." in said


async def test_it_says_that_the_queue_wants_the_key_at_every_call(tmp_path):
    said = " ".join((await read(tmp_path, f"/models/{APP}/llms.txt")).split())

    assert "`GET` the `response_url`. Every call needs the same `Authorization` header." in said


@pytest.mark.parametrize("path", ["/models/fal-ai/flux/llms.txt", f"/models/{APP}/api/llms.txt", f"/models/{APP}"])
async def test_other_models_have_none(tmp_path, path):
    async with serving(tmp_path) as web:
        answer = await web.call("GET", f"https://fal.ai{path}")

    assert answer.status == 404
    assert answer.headers["content-type"] == "application/json"
