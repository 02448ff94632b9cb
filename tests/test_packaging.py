"""The wheel: what it holds, and that what finds a file by its place finds it there."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from hatchling.builders.wheel import WheelBuilder

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory):
    """The wheel of this tree, unpacked as an installation would be."""
    target = tmp_path_factory.mktemp("wheel")
    (built,) = WheelBuilder(str(ROOT)).build(directory=str(target), versions=["standard"])
    with zipfile.ZipFile(built) as wheel:
        wheel.extractall(target / "installed")
    return target / "installed"


def test_the_wheel_holds_the_two_packages_and_nothing_beside_them(unpacked):
    found = {path.name for path in unpacked.iterdir() if not path.name.endswith(".dist-info")}

    assert found == {"server", "pipelines"}


@pytest.mark.parametrize(
    ("module", "place"),
    [
        ("server.api.playground", "server/static/index.html"),
        ("server.outbound.fetch", "server/static/beach.jpg"),
        ("server.cli.demo", "server/cli/example_client.py"),
        ("pipelines.weights.demo", "pipelines/demo_model/model_index.json"),
    ],
)
def test_a_module_finds_its_files_in_the_wheel(unpacked, tmp_path, module, place):
    look = (
        f"import pathlib; import {module} as m; known = list(vars(m).values());"
        "known += [path for value in known if isinstance(value, dict) for path in value.values()];"
        "paths = [path for path in known if isinstance(path, pathlib.Path)];"
        "assert paths and all(path.exists() for path in paths), paths; print(*paths, sep='\\n')"
    )
    environment = {**os.environ, "PYTHONPATH": str(unpacked)}

    done = subprocess.run(
        [sys.executable, "-P", "-c", look], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    )

    assert (unpacked / place).exists()
    assert all(Path(line).is_relative_to(unpacked) for line in done.stdout.splitlines())
