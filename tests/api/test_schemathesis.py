"""Schemathesis reads our own OpenAPI document and finds nothing that the server breaks of it."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.server_process import clean_env, serving

# An invalid input is accepted by the queue and is its own result, as at fal: the document can't say so, hence not here
# the checks that a schema-violating body is refused at submit.
CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_headers_conformance",
    "response_schema_conformance",
    "ignored_auth",
)


@pytest.mark.slow
def test_schemathesis_finds_nothing(tmp_path):
    with serving("--model", "instant:1", env={"FOURSTEP_KEYS": "me:secret"}) as server:
        done = subprocess.run(
            [
                Path(sys.executable).with_name("schemathesis"),
                "run",
                f"{server.url}/api/openapi/queue/openapi.json",
                f"--url={server.url}/queue",
                "--header=Authorization: Key me:secret",
                f"--checks={','.join(CHECKS)}",
                "--max-examples=10",
                "--suppress-health-check=all",
                "--no-color",
            ],
            cwd=tmp_path,
            env=clean_env(),
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )

    assert done.returncode == 0, done.stdout[-3000:]
    assert "Tested: 4" in done.stdout
