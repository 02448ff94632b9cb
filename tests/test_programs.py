"""Every benchmark, training, fault injection and fuzzing program starts: `python -m NAME --help`, one process each."""

import ast
import re
from pathlib import Path

import pytest

from tests.support.program_start import start

ROOT = Path(__file__).parents[1]
# Variants of `fourstep` that other programs start, with its command line after a first argument.
VARIANTS = {"tests.chaos.modified_server", "tests.fuzz.isolated_server"}


def programs(*folders: str) -> list[str]:
    """Return the names for `python -m` of all modules that can be run."""
    files = [path for folder in folders for path in sorted((ROOT / folder).rglob("*.py")) if is_program(path)]
    names = [path.relative_to(ROOT).with_suffix("").as_posix().replace("/", ".") for path in files]
    return [name.removesuffix(".__main__") for name in names]


def is_program(path: Path) -> bool:
    return path.name == "__main__.py" or re.search(r"^if __name__ == ", path.read_text(), re.MULTILINE) is not None


MEASURING = programs("benchmarks")
PROGRAMS = [*MEASURING, *programs("training", "tests/chaos", "tests/fuzz")]


def test_programs_are_found() -> None:
    assert {"benchmarks.gpu", "benchmarks.option_quality", "training", "tests.chaos", "tests.fuzz"} <= {*PROGRAMS}
    assert {*PROGRAMS} > VARIANTS


@pytest.mark.parametrize("name", sorted({*PROGRAMS} - VARIANTS))
def test_a_program_starts(name: str, tmp_path: Path) -> None:
    output = tmp_path / "output"
    status = start(name, "--help", output=output)

    assert status == 0, output.read_text()
    assert "usage: " in output.read_text()


def test_a_program_that_cannot_start_is_found(tmp_path: Path) -> None:
    output = tmp_path / "output"

    assert start("benchmarks.pictures", "--help", output=output) == 1
    assert "No module named benchmarks.pictures" in output.read_text()


@pytest.mark.parametrize("name", MEASURING)
def test_a_benchmark_is_listed(name: str) -> None:
    assert f"`{name.removeprefix('benchmarks.')}`" in (ROOT / "benchmarks" / "README.md").read_text()


@pytest.mark.parametrize("path", sorted((ROOT / "benchmarks").rglob("*.py")), ids=lambda path: path.stem)
def test_what_a_benchmark_takes_from_another_is_there(path: Path) -> None:
    tree = ast.parse(path.read_text())
    asked = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.level == 0]
    imported = {
        alias.asname or alias.name: ROOT.joinpath(*(node.module or "").split("."), f"{alias.name}.py")
        for node in asked
        if (node.module or "").startswith("benchmarks")
        for alias in node.names
    }
    modules = {name: names_in(file) for name, file in imported.items() if file.exists()}
    taken = [
        (node.value.id, node.attr)
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in modules
    ]
    local = {node.arg for node in ast.walk(tree) if isinstance(node, ast.arg)}  # a `device` that is torch's

    assert [(name, attr) for name, attr in taken if attr not in modules[name] and name not in local] == []


def names_in(path: Path) -> set[str]:
    """Return what a module defines and imports."""
    found = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.Import | ast.ImportFrom):
            found |= {alias.asname or alias.name for alias in node.names}
        elif isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.add(node.name)
        elif isinstance(node, ast.Assign):
            found |= {target.id for target in node.targets if isinstance(target, ast.Name)}
    return found
