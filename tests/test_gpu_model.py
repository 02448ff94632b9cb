"""The cost model of a GPU: its table in the documents is the program's own, and its trace has known figures.

The trace is of the product's own networks: a launch more in one of them is found here.
"""

import json
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.support.program_start import start

pytestmark = pytest.mark.long

ROOT = Path(__file__).parents[1]
README = ROOT / "benchmarks" / "README.md"


class Told(NamedTuple):
    tables: str
    figures: dict[str, Any]


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> Told:
    """Return what the program prints."""
    output = tmp_path_factory.mktemp("model") / "output"
    status = start("benchmarks.gpu_model", output=output)
    assert status == 0, output.read_text()
    tables, _, figures = output.read_text().rstrip().rpartition("\n")
    return Told(tables, json.loads(figures))


def test_the_documents_have_the_tables_of_the_program(told: Told) -> None:
    assert told.tables in README.read_text(), "python -m benchmarks.gpu_model --write puts them there"


def row(told: Told, name: str) -> list[str]:
    """Return the cells of a network's row: TFLOP, GB and launches, at first and at last."""
    line = next(line for line in told.tables.splitlines() if line.startswith(f"| {name} |"))
    return [cell.strip() for cell in line.strip("|").split("|")]


@pytest.mark.parametrize(
    ("network", "figures"),
    [
        ("unet", ["0.76", "4.6", "4.0", "843", "571"]),
        ("encode", ["1.12", "8.2", "4.9", "211", "118"]),
        ("decode", ["2.13", "13.9", "7.8", "270", "141"]),
        ("tiny decode", ["0.13", "1.5", "0.7", "114", "52"]),
    ],
)
def test_the_trace_finds_what_a_gpu_computes_moves_and_launches(told: Told, network: str, figures: list[str]) -> None:
    assert row(told, network)[1:] == figures


@pytest.mark.parametrize("chip", ["H100", "RTX 4090", "RTX 3060 12 GB", "T4"])
def test_no_step_of_the_plan_costs_time(told: Told, chip: str) -> None:
    times = [step["p50_ms"] for step in told.figures[chip].values()]

    assert times == sorted(times, reverse=True)


def test_the_model_of_an_h100_is_where_its_arithmetic_was_checked(told: Told) -> None:
    first = next(iter(told.figures["H100"].values()))

    assert 38 < first["p50_ms"][0] < first["p50_ms"][1] < 48
    assert 30 < first["images_s"][1] < first["images_s"][0] < 41
