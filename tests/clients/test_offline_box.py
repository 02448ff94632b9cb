"""The lines for a box with no network, run as they stand with packages that are small.

Each wheel but our own is empty, and the one named torch leads to the packages of this environment. The hub is on
loopback, with a tiny model.
"""

import base64
import hashlib
import re
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest
from packaging.markers import default_environment
from packaging.requirements import Requirement
from safetensors.torch import save_file

from pipelines.hub import layout, sd15
from tests.support import checkpoint_layouts, fake_hub
from tests.support.server_process import clean_env

ROOT = Path(__file__).parents[2]
SECTION = (ROOT / "docs/gpu-box.md").read_text().partition("## A box with no network at all")[2]
CARRY, INSTALL = re.findall(r"^```sh\n(.*?)```", SECTION, re.DOTALL | re.MULTILINE)


BEACH = ROOT / "server/static/beach.jpg"
ASK = """
trap 'kill $!; wait' EXIT
python3 - "$FOURSTEP_DATA_DIR/server.json" "$PICTURE" <<'END'
import base64, json, pathlib, sys, time, urllib.request
run_file, picture = map(pathlib.Path, sys.argv[1:])
while not run_file.exists():
    time.sleep(0.1)
data = base64.b64encode(picture.read_bytes()).decode()
body = {"prompt": "a beach", "image_url": f"data:image/jpeg;base64,{data}", "sync_mode": True}
url = json.loads(run_file.read_text())["url"] + "/run/fal-ai/lcm-sd15-i2i"
request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
print(urllib.request.urlopen(request, timeout=100).read().decode()[:200])
END"""


def wheel(folder: Path, name: str, version: str, files: dict[str, str] | None = None) -> str:
    """Write a wheel of these files, and return its hash as pip wants it."""
    about = f"{name.replace('-', '_')}-{version}"
    files = {
        **(files or {}),
        f"{about}.dist-info/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
        f"{about}.dist-info/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = f"{about}.dist-info/RECORD"
    digests = {name: base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()) for name, text in files.items()}
    rows = [f"{name},sha256={digest.decode().rstrip('=')},{len(files[name])}" for name, digest in digests.items()]
    path = folder / f"{about}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for place, text in {**files, record: "\n".join([*rows, f"{record},,\n"])}.items():
            archive.writestr(place, text)
    return f"sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}"


@pytest.fixture
def clone(tmp_path):
    """What the lines need of this repository, with a lock of small packages, and the index that has these."""
    clone, index = tmp_path / "clone", tmp_path / "index"
    clone.mkdir()
    index.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE", "constraints.txt"):
        shutil.copy(ROOT / name, clone)
    for name in ("server", "pipelines"):
        shutil.copytree(ROOT / name, clone / name, ignore=shutil.ignore_patterns("__pycache__"))
    pins = [Requirement(line) for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line[:60]]
    pins = [pin for pin in pins if pin.marker is None or pin.marker.evaluate(dict(default_environment()))]
    versions = {pin.name: next(iter(pin.specifier)).version for pin in pins}
    here = sysconfig.get_path("purelib")
    wheel(index, "torch", versions.pop("torch"), {"packages.pth": f"{here}\n"})
    lines = [f"{name}=={version} --hash={wheel(index, name, version)}" for name, version in versions.items()]
    (clone / "requirements.lock").write_text("\n".join(lines))
    return clone


@pytest.fixture
def hub(tmp_path):
    base, lora = tmp_path / "base", tmp_path / "lora"
    base.mkdir()
    lora.mkdir()
    weights = checkpoint_layouts.write_folder(base, variants=("", "fp16"))
    factors = checkpoint_layouts.lora_factors(weights["unet"], rank=4)
    save_file(checkpoint_layouts.kohya(factors, alpha=8.0), lora / layout.LORA)
    with fake_hub.serving({sd15.BASE: base, sd15.LCM_LORA: lora}) as hub:
        yield hub


def run(lines: str, folder: Path, **env: str) -> "subprocess.CompletedProcess[str]":
    """Run the lines by a shell that stops at the first failure, and finds no package but by `env`."""
    inherited = {name: text for name, text in clean_env().items() if not name.startswith("PIP_")}
    path = f"{Path(sys.executable).parent}:/usr/bin:/bin"
    env = inherited | {"PATH": path, "HOME": str(folder), "PIP_CONFIG_FILE": "/dev/null", "NO_PROXY": "*"} | env
    return subprocess.run(
        ["sh", "-euc", lines], cwd=folder, env=env, capture_output=True, text=True, timeout=120, check=False
    )


@pytest.mark.long
@pytest.mark.slow
def test_wheels_and_weights_are_carried_to_a_box_that_serves_with_them(clone, hub, tmp_path):
    index = {"PIP_FIND_LINKS": str(tmp_path / "index"), "PIP_NO_INDEX": "1", "PIP_NO_BUILD_ISOLATION": "0"}
    # As the page says of a machine whose box computes in 16 bits.
    assert "`pull --dtype float16`" in SECTION
    carry = CARRY.replace("fourstep pull", "fourstep pull --dtype float16")
    packed = run(carry, clone, **index, HF_ENDPOINT=hub.url)
    assert packed.returncode == 0, packed.stdout + packed.stderr

    box = tmp_path / "box"
    shutil.copytree(clone / "carry", box / "carry", symlinks=True)
    shutil.rmtree(clone)
    hub.down, asked = True, len(hub.requests)
    assert INSTALL.endswith("\nvenv/bin/fourstep serve\n")
    data = box / "data"
    # The last line stays: in the background, until it has made a picture.
    served_by = f"serve --port 0 --dtype float16 &\n{ASK}\n"  # as `auto` would on the box's card
    lines = INSTALL.replace("doctor", "doctor --port 0 --dtype float16").replace("serve\n", served_by)
    env = {"HF_ENDPOINT": hub.url, "FOURSTEP_DATA_DIR": str(data), "OMP_NUM_THREADS": "1", "PICTURE": str(BEACH)}
    served = run(lines, box, **env)

    assert served.returncode == 0, served.stdout + served.stderr
    assert '"images":[{"url":"data:image/jpeg;base64,' in served.stdout
    assert len(hub.requests) == asked
