"""Schemathesis reads fal's document of the endpoint and our own, and finds nothing that the server breaks of them.

It makes the same requests at each run.
"""

import json
import re
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from tests.support.server_process import APP, clean_env, serving

KEY = {"Authorization": "Key me:secret"}


@pytest.fixture(scope="module")
def server():
    with serving("--model", "instant:1", env={"FOURSTEP_KEYS": "me:secret"}) as server:
        yield server


def rule(checks: str, *operations: str) -> str:
    """Some checks, as `a.enabled = false`, of operations by their names."""
    names = ", ".join(f'"{name}"' for name in operations)
    return f"[[operations]]\ninclude-name = [{names}]\nchecks = {{ {checks} }}\n"


# It can't make up pictures.
COMMON = "checks.positive_data_acceptance.enabled = false\n"
# A text that reads as a number is one, as for pydantic and fal; the queue accepts an invalid input, whose result is the
# error; an empty file is a file.
LENIENT = "negative_data_rejection.enabled = false"
FALS = rule(LENIENT, f"POST /{APP}", f"GET /{APP}/requests/{{request_id}}/status")
# GET is for old clients, and in no document.
GET_TOO = f"{LENIENT}, unsupported_method.enabled = false, allow_header_conformance.enabled = false"
OURS = rule(GET_TOO, f"POST /run/{APP}", f"POST /run/{APP}/stream") + rule(
    LENIENT, f"POST /queue/{APP}", "POST /rest/tokens", "PUT /cdn/upload/{name}"
)


def schemathesis(document: dict[str, Any], url: str, folder: Path, rules: str, *flags: str) -> str:
    """What it says of a server at `url`, as a text."""
    # The words of OpenAPI 3.1 for what an event's data holds: with them it reads that too.
    newer = '"contentMediaType": "application/json", "contentSchema":'
    (folder / "openapi.json").write_text(json.dumps(document).replace('"x-contentSchema":', newer))
    (folder / "schemathesis.toml").write_text(COMMON + rules)
    done = subprocess.run(
        [
            Path(sys.executable).with_name("schemathesis"),
            "--config-file=schemathesis.toml",
            "run",
            "openapi.json",
            f"--url={url}",
            *(f"--header={name}: {value}" for name, value in KEY.items()),
            "--max-examples=10",
            "--generation-deterministic",
            "--suppress-health-check=all",
            "--warnings=off",
            "--no-color",
            *flags,
        ],
        cwd=folder,
        env=clean_env(),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    return done.stdout + done.stderr


def faults(said: str) -> list[str]:
    """What it objects to, each by its first line."""
    return re.findall(r"^- (ST\d+ .*)$", said, re.MULTILINE)


@pytest.mark.slow
def test_nothing_is_wrong_with_fals_document(server, tmp_path):
    document = server.get("/api/openapi/queue/openapi.json")
    said = schemathesis(document, f"{server.url}/queue", tmp_path, FALS)

    assert faults(said) == [], said[-5000:]
    assert "Tested: 4" in said


@pytest.mark.slow
def test_nothing_is_wrong_with_our_own(server, tmp_path):
    ask = urllib.request.Request(f"{server.url}/rest/storage/upload/initiate", b"{}", KEY)
    with urllib.request.urlopen(ask, timeout=30) as answer:
        upload = urlsplit(json.load(answer)["upload_url"])
    given = {"path.name": upload.path.rpartition("/")[2], "query.ticket": upload.query.removeprefix("ticket=")}
    parameters = "[parameters]\n" + "".join(f'"{name}" = "{value}"\n' for name, value in given.items())
    said = schemathesis(server.get("/openapi.json"), server.url, tmp_path, parameters + OURS)

    assert faults(said) == [], said[-5000:]
    assert "Tested: 13" in said


def test_a_fault_in_what_an_event_holds_would_be_found(server, tmp_path):
    document = server.get("/openapi.json")
    stream = f"/run/{APP}/stream"
    document["paths"] = {stream: document["paths"][stream]}
    document["components"]["schemas"]["LcmSd15I2iOutput"]["required"].append("nothing")
    said = schemathesis(document, server.url, tmp_path, OURS, "--phases=examples")

    assert faults(said) == ["ST108 SSE event payload violates content schema"]
