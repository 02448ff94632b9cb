"""The benchmark for GPUs in a dry run: groups in processes of their own, whose faults and delays cost no other."""

import json
import re
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.support.program_start import start

# `make check` runs the whole of it in a part of its own.
pytestmark = pytest.mark.long

ROOT = Path(__file__).parents[1]
MEASURED = ("numbers", "floors", "norms", "kernels", "attention", "upsampling")


class Ran(NamedTuple):
    """Exit status, the report of all groups (the last line), and what was said on stderr."""

    status: int
    report: dict[str, Any]
    stderr: str
    out: Path


def run(out: Path, *options: str) -> Ran:
    output, errors = out / "output", out / "errors"
    output.unlink(missing_ok=True)
    status = start("benchmarks.gpu", "--dry", "--short", "--out", str(out), *options, output=output, errors=errors)
    assert status is not None
    assert output.read_text(), errors.read_text()
    return Ran(status, json.loads(output.read_text().splitlines()[-1]), errors.read_text(), out)


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Ran:
    return run(tmp_path_factory.mktemp("gpu"), "--only", "smoke", "1", "--sections", *MEASURED)


@pytest.fixture(scope="module")
def faulty(tmp_path_factory: pytest.TempPathFactory) -> Ran:
    """Return a run whose first group fails, is late and loses its device; the second one hangs."""
    out = tmp_path_factory.mktemp("gpu")
    failing = ("fails", "hangs", "is_late_in_a_thread", "loses_the_device")
    # A group that went on after its device is lost would come to `never_ends`.
    first = run(out, "--only", "1", "3", "--sections", *failing, "upsampling", "never_ends")
    second = run(out, "--only", "2", "smoke", "--sections", "numbers", "never_ends", "--seconds", "12")
    return Ran(first.status + second.status, first.report | second.report, first.stderr, out)


def test_a_dry_run_measures_writes_and_prints_and_says_nothing_on_stderr(good: Ran) -> None:
    sections = good.report["smoke"] | good.report["1"]

    assert {name: sections[name]["ended"] for name in MEASURED} == dict.fromkeys(MEASURED, "done")
    assert {name: json.loads((good.out / f"{name}.json").read_text()) for name in ("smoke", "1")} == good.report
    assert (good.status, good.stderr) == (0, "")


def test_what_is_measured_is_there(good: Ran) -> None:
    sections = good.report["1"]

    assert sections["floors"].keys() >= {"matmul_tflops", "copy_gb_s", "launch_us", "graph_node_us"}
    assert any("61 × aten::native_group_norm" in line for line in sections["kernels"]["unet"]["top"])
    assert {"default_us", "math_us", "products_us", "chosen"} <= sections["attention"]["2 heads of 2, 64 to 77"].keys()
    assert sections["norms"]["own_kernels"] is False
    assert {"torch_us", "product_us", "product_error"} <= sections["norms"]["4 at 64×64"].keys()
    assert sections["kernels"]["clocks"]["sm_mhz"] == [1980, 1980, 1980]  # what the pretended card says


def test_a_section_that_fails_or_takes_too_long_keeps_what_it_found_and_stops_no_other(faulty: Ran) -> None:
    sections = faulty.report["1"]

    assert sections["upsampling"]["ended"] == "done"
    assert (sections["fails"]["ended"], sections["fails"]["before"]) == ("ValueError: no", 1)
    assert (sections["hangs"]["ended"], sections["hangs"]["before"]) == ("OutOfTime: stopped after 0 s", 2)
    assert "after" not in sections["hangs"]
    assert sections["is_late_in_a_thread"]["ended"].startswith("OutOfTime")
    assert sections["is_late_in_a_thread"]["thread"] == "ended"
    assert faulty.status == 2


def test_a_lost_device_ends_its_group_alone(faulty: Ran) -> None:
    for group in ("1", "3"):
        sections = faulty.report[group]
        assert sections["ended"] == "done"
        assert sections["loses_the_device"]["ended"].startswith("the device is lost: RuntimeError: CUDA error")
        assert [*sections].index("loses_the_device") > [*sections].index("hangs")
    assert "never_ends" not in faulty.report["1"]


def test_a_group_that_hangs_is_killed_and_what_it_found_is_kept(faulty: Ran) -> None:
    assert faulty.report["2"]["ended"].startswith("killed after 1")
    assert faulty.report["2"]["never_ends"] == {"ended": "running", "before": 4}
    assert faulty.report["smoke"]["numbers"]["ended"] == "done"
    assert faulty.report["smoke"]["ended"].startswith("killed")


def test_another_call_measures_what_is_missing(tmp_path: Path, good: Ran) -> None:
    kept = good.report["1"] | {name: {"ended": "done"} for name in ("rows", "convolutions")}
    (tmp_path / "1.json").write_text(json.dumps(kept | {"floors": {"ended": "ValueError: no"}}))

    again = run(tmp_path, "--only", "1")

    assert (again.status, again.report["1"]["floors"]["ended"]) == (0, "done")
    assert again.report["1"]["rows"] == {"ended": "done"}
    assert again.report["1"]["kernels"] == good.report["1"]["kernels"]


@pytest.mark.parametrize("groups", [("smoke",), ("1", "2", "3")])
def test_the_groups_fit_into_one_call_of_ten_minutes(groups: tuple[str, ...]) -> None:
    source = (ROOT / "benchmarks/gpu/__main__.py").read_text()
    boxes = json.loads(source.partition("BOXES = ")[2].partition("\n")[0])

    assert sum(boxes[group] for group in groups) < 590


def test_what_to_decide_from_each_section_is_written_down() -> None:
    table = (ROOT / "benchmarks/gpu/group.py").read_text().partition("SECTIONS = {")[2].partition("\n}\n")[0]
    sections = re.findall(r"^ +\w+\.(\w+): \d+,", table, re.MULTILINE)
    documented = (ROOT / "benchmarks/README.md").read_text().partition("what to decide from it")[2]

    assert len(sections) > 20
    assert {name for name in sections if f"`{name}`" not in documented} == set()
