"""`fourstep demo`, the first thing that a new user runs."""

import subprocess
import sys
from pathlib import Path

import pytest

import server.cli.demo
from pipelines.images.codec import decode
from pipelines.messages import EngineConfig
from server.settings import Settings
from tests.support import checkpoint_layouts
from tests.support.server_process import clean_env

FOURSTEP = Path(sys.executable).with_name("fourstep")


def demo(tmp_path, *flags, env=None):
    """Run the command in an empty folder."""
    command = [FOURSTEP, "demo", "--data-dir", str(tmp_path / "data"), *flags]
    return subprocess.run(
        command, cwd=tmp_path, env=clean_env(env), capture_output=True, text=True, timeout=240, check=False
    )


@pytest.mark.slow
def test_the_demo_writes_a_picture_and_tells_its_size_seed_and_times(tmp_path):
    done = demo(tmp_path, "--model", "demo")

    picture = tmp_path / "demo-output.jpg"
    assert done.returncode == 0, done.stderr
    assert decode(picture.read_bytes(), EngineConfig(model="", data_dir="")).shape == (512, 512, 3)
    assert f"{picture}: 512×512" in done.stdout
    assert "seed 42" in done.stdout
    assert all(stage in done.stdout for stage in ("steps", "decode", "inference"))
    assert "Next: `fourstep serve" in done.stdout.splitlines()[-1]


@pytest.mark.slow
def test_a_demo_of_weights_on_disk_needs_no_network(tmp_path):
    (tmp_path / "base").mkdir()
    checkpoint_layouts.write_folder(tmp_path / "base")
    model = ("--model", str(tmp_path / "base"), "--lora", "none", "--safety-checker", "none", "--dtype", "float32")

    done = demo(tmp_path, *model, env={"HF_HUB_OFFLINE": "1", "FOURSTEP_OUTBOUND_PROXY": "http://127.0.0.1:9"})

    assert done.returncode == 0, done.stderr
    assert (tmp_path / "demo-output.jpg").exists()


@pytest.mark.slow
def test_a_demo_of_the_real_weights_never_serves_the_built_in_model(tmp_path):
    done = demo(tmp_path, "--model", "sd15", env={"HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"})

    assert done.returncode == 1
    assert done.stderr.startswith("fourstep demo: SETUP_FAILED: The weights of stable-diffusion-v1-5/")
    assert "`fourstep pull`" in done.stderr
    assert not (tmp_path / "demo-output.jpg").exists()


def test_a_demo_without_its_model_says_what_to_do(tmp_path):
    done = demo(tmp_path, "--model", str(tmp_path / "nowhere"))

    assert done.returncode == 1
    assert "nowhere" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "demo-output.jpg").exists()


def test_a_demo_that_gets_no_picture_in_time_says_where_the_log_is(tmp_path, capsys):
    settings = Settings(model="instant:2000", data_dir=tmp_path / "data")

    status = server.cli.demo.run(settings, str(tmp_path / "out.jpg"), answer_timeout_s=1.0)

    assert status == 1
    assert "no picture within 1 s.\nThe server's log: " in capsys.readouterr().err
