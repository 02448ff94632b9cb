"""The comparison of contenders on tiny weights: they run in turn, compute the same, and say what they could not do."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support import checkpoint_layouts

ROOT = Path(__file__).parents[1]
# OpenVINO is no dependency: its pair is measured where it is installed, and left out with a hint where it is not.
HAS_OPENVINO = importlib.util.find_spec("openvino") is not None

pytestmark = [pytest.mark.slow, pytest.mark.long]

Report = dict[str, Any]


def run(*options: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "benchmarks.peers", *options]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Report:
    """Return the last line of a short run in an emulated instruction set."""
    weights = tmp_path_factory.mktemp("weights")
    checkpoint_layouts.write_folder(weights / "sd15", parts=("unet", "vae", "text_encoder"))
    short = ["--rounds", "2", "--side", "64", "--sizes", "128", "--vae", "full", "--isa", "avx2"]
    done = run("--weights", str(weights), "--only", "diffusers-f32", "openvino-f32", *short)
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout.splitlines()[-1])


def pair(report: Report, peer: str) -> Report:
    [found] = [pair for pair in report["pairs"] if pair["peer"] == peer]
    return found


def test_ours_and_diffusers_compute_the_same_in_every_stage(report: Report) -> None:
    found = pair(report, "diffusers-f32")
    apart = {stage: taken["apart"] for stage, taken in found["stages"].items()}

    assert (found["ours"], found["threads"]) == ("ours-f32", 1)
    assert apart.keys() == {"unet", "encode", "decode", "request"}
    assert max(apart.values()) < 1e-3


def test_every_stage_has_the_processor_seconds_of_both(report: Report) -> None:
    for taken in pair(report, "diffusers-f32")["stages"].values():
        assert taken["ours_cpu_s"] > 0
        assert taken["peer_cpu_s"] > 0
        assert taken["cpu_ratio"] > 0


def test_the_worst_of_the_other_sizes_is_told(report: Report) -> None:
    found = pair(report, "diffusers-f32")

    assert found["sizes"].keys() == {"64", "128"}
    assert found["worst_other_size"] == found["sizes"]["128"]["cpu_ratio"]


def test_a_size_is_told_in_parts_of_its_share_by_operations(report: Report) -> None:
    sizes = pair(report, "diffusers-f32")["sizes"]
    ratio = sizes["128"]["ours_cpu_s"] / sizes["64"]["ours_cpu_s"]

    assert sizes["64"]["share"] == 1
    assert ratio / 5 < sizes["128"]["share"] < ratio / 4  # four times the pixels, and attention by their square


def test_loading_and_memory_of_both_are_told(report: Report) -> None:
    found = pair(report, "diffusers-f32")

    assert {role: loaded["precision"] for role, loaded in found["loaded"].items()} == {
        "ours": "float32",
        "peer": "float32",
    }
    assert min(memory["peak_gb"] - memory["own_gb"] for memory in found["memory"].values()) > 0


def test_an_emulated_instruction_set_is_told(report: Report) -> None:
    assert report["emulated"]["ONEDNN_MAX_CPU_ISA"] == "AVX2"
    assert report["failed"] == {}


def test_openvino_computes_the_same_or_refuses_or_is_left_out(report: Report) -> None:
    if not HAS_OPENVINO:
        assert report["left_out"].keys() == {"openvino-f32"}
        assert "Hint: " in report["left_out"]["openvino-f32"]
        return
    taken = pair(report, "openvino-f32")["stages"]["unet"]

    assert taken.get("apart", 1) < 1e-3 or "AVX2" in taken["refused"]["peer"]


def test_a_folder_without_weights_is_refused_with_a_hint(tmp_path: Path) -> None:
    done = run("--weights", str(tmp_path))

    assert done.returncode == 2
    assert "Hint: python -m benchmarks.harness.fake_weights" in done.stderr
