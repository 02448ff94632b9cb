"""The programs in examples/, each run as a newcomer would: with the sample picture, and with a picture of one's own."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.clients.kit import JS, install_javascript, node
from tests.support.server_process import clean_env

EXAMPLES = Path(__file__).parents[2] / "examples"
BEACH = Path(__file__).parents[2] / "server/static/beach.jpg"


def python_command(folder):
    return [sys.executable, str(EXAMPLES / "python.py")]


def javascript_command(folder):
    install_javascript()
    (folder / "node_modules").symlink_to(JS / "node_modules")
    # Node looks for packages beside the program.
    return [node(), "--no-warnings", shutil.copy(EXAMPLES / "javascript.mjs", folder)]


def curl_command(folder):
    return ["sh", str(EXAMPLES / "curl.sh")]


@pytest.mark.parametrize("own", [[], [str(BEACH)]], ids=["sample", "own picture"])
@pytest.mark.parametrize("command", [python_command, javascript_command, curl_command])
def test_the_example_writes_a_picture(command, own, instant, by_environment, tmp_path):
    env = clean_env({**by_environment.env, "SERVER_URL": instant.url})

    done = subprocess.run(
        [*command(tmp_path), *own], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=60, check=False
    )

    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[-1].startswith("output.jpg")
    assert "seed 42" in done.stdout
    assert (tmp_path / "output.jpg").read_bytes().startswith(b"\xff\xd8")


def test_every_example_is_tried():
    assert sorted(path.name for path in EXAMPLES.iterdir()) == ["curl.sh", "javascript.mjs", "python.py"]
