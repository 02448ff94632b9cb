"""Limits of folders and modules, imports that the import contracts do not cover, and module names in texts."""

import ast
import io
import re
import tokenize
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PRODUCT = ("server", "pipelines", "training")
PROGRAMS = ("tests", "benchmarks")
MODULES_IN_A_FOLDER = dict.fromkeys(PRODUCT, 12) | dict.fromkeys(PROGRAMS, 24)
LINES_IN_A_MODULE = 300
DOCUMENTED = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


def modules(*tops: str) -> Iterator[Path]:
    """Every module below these folders."""
    for top in tops:
        yield from sorted((ROOT / top).rglob("*.py"))


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def crowded(paths: list[str], most: int) -> dict[str, int]:
    """Folders with more than `most` modules, `__init__` not counted."""
    counts = Counter(path.rpartition("/")[0] for path in paths if not path.endswith("/__init__.py"))
    return {folder: count for folder, count in counts.items() if count > most}


def imported(source: str) -> set[str]:
    """Full names of what a module imports, at any depth; `from a import b` gives `a.b`."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def below(names: set[str], package: str) -> set[str]:
    return {each for each in names if f"{each}.".startswith(f"{package}.")}


# A dotted name of ours in code marks, or what a command starts: `server.jobs.queue`, `python -m training`.
NAMED = re.compile(rf"(?:-m |`)((?:{'|'.join((*PRODUCT, *PROGRAMS))})(?:\.\w+)*)")


def docstrings_and_comments(source: str) -> str:
    """Return all docstrings and comments of a module, one after the other."""
    nodes = [node for node in ast.walk(ast.parse(source)) if isinstance(node, DOCUMENTED)]
    found = [ast.get_docstring(node) or "" for node in nodes]
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    return "\n".join(found + [token.string for token in tokens if token.type == tokenize.COMMENT])


def is_there(dotted: str) -> bool:
    """Return whether a dotted name is a package, a module, or names that its module has."""
    words = dotted.split(".")
    for count in range(len(words), 0, -1):
        path = ROOT.joinpath(*words[:count])
        if (module := path.with_suffix(".py")).exists():
            source = module.read_text()
            return all(re.search(rf"\b{word}\b", source) for word in words[count:])
        if path.is_dir():
            return count == len(words)
    return False


def is_docstring_alone(source: str) -> bool:
    body = ast.parse(source).body
    return len(body) == 1 and ast.get_docstring(ast.parse(source)) is not None


def test_no_folder_is_crowded() -> None:
    found = {}
    for top, most in MODULES_IN_A_FOLDER.items():
        found |= crowded([name(path) for path in modules(top)], most)

    assert found == {}


def test_crowded_folders_are_found() -> None:
    paths = ["a/__init__.py", "a/x.py", "a/y.py", "a/b/z.py"]

    assert crowded(paths, 1) == {"a": 2}
    assert crowded(paths, 2) == {}


def test_no_module_outside_tests_is_long() -> None:
    lines = {name(path): len(path.read_text().splitlines()) for path in modules(*PRODUCT, "benchmarks")}

    assert {path: count for path, count in lines.items() if count > LINES_IN_A_MODULE} == {}


def test_tests_import_nothing_of_benchmarks() -> None:
    found = {name(path): below(imported(path.read_text()), "benchmarks") for path in modules("tests")}

    assert {path: names for path, names in found.items() if names} == {}


def test_benchmarks_import_of_tests_only_the_support() -> None:
    found = {}
    for path in modules("benchmarks"):
        names = imported(path.read_text())
        found[name(path)] = below(names, "tests") - below(names, "tests.support")

    assert {path: names for path, names in found.items() if names} == {}


@pytest.mark.parametrize(
    ("source", "package", "names"),
    [
        ("import benchmarks.gpu as g", "benchmarks", {"benchmarks.gpu"}),
        ("def f():\n    from benchmarks import gpu", "benchmarks", {"benchmarks.gpu"}),
        ("from benchmarks.gpu import main", "benchmarks", {"benchmarks.gpu.main"}),
        ("import benchmarks_of_others", "benchmarks", set()),
        ("from tests import support", "tests.support", {"tests.support"}),
        ("from tests.supportive import x", "tests.support", set()),
    ],
)
def test_imports_are_found(source: str, package: str, names: set[str]) -> None:
    assert below(imported(source), package) == names


def test_packages_hold_a_docstring_and_nothing_else() -> None:
    inits = [path for path in modules(*PRODUCT) if path.name == "__init__.py"]

    assert inits
    assert [name(path) for path in inits if not is_docstring_alone(path.read_text())] == []


@pytest.mark.parametrize(
    ("source", "alone"), [('"""A package."""', True), ("", False), ("import a", False), ('"""A."""\nimport a', False)]
)
def test_what_is_no_docstring_alone_is_found(source: str, alone: bool) -> None:  # noqa: FBT001
    assert is_docstring_alone(source) is alone


def test_no_folder_of_tests_hides_a_package() -> None:
    folders = [folder for folder in (ROOT / "tests").rglob("*") if folder.is_dir()]

    assert [name(folder) for folder in folders if folder.name in {"server", "pipelines"}] == []
    assert [name(path) for path in modules("tests") if path.name == "__init__.py"] == []


def test_modules_that_docstrings_and_comments_name_exist() -> None:
    found = {
        name(path): {each for each in NAMED.findall(docstrings_and_comments(path.read_text())) if not is_there(each)}
        for path in modules(*PRODUCT, *PROGRAMS)
    }

    assert {path: names for path, names in found.items() if names} == {}


@pytest.mark.parametrize(
    ("text", "missing"),
    [
        ("`server.jobs.queue`", []),
        ("`server.cli.launcher.RUN_FILE`", []),
        ("python -m tests.chaos.full_disk", []),
        ("`server.attic`", ["server.attic"]),
        ("`server.cli.launcher.NOTHING`", ["server.cli.launcher.NOTHING"]),
        ("python -m benchmarks.chaos [--jobs 2000]", ["benchmarks.chaos"]),
        ("server.url, `servers.py`", []),
    ],
)
def test_names_of_modules_that_are_gone_are_found(text: str, missing: list[str]) -> None:
    source = f'"""Text: {text}."""\n'

    assert [each for each in NAMED.findall(docstrings_and_comments(source)) if not is_there(each)] == missing
