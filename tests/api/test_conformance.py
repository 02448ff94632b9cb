"""The ledger in `conformance.txt` is whole, what it names exists, and each statement is shown of several servers."""

import ast
import functools
import re
from fnmatch import fnmatch
from pathlib import Path

import pytest

from tests.nodes.alone import reason

TESTS = Path(__file__).parents[1]
STATEMENTS = 143
NOT_COVERED = "not covered: "
# By what a server is started on a socket, which is three with `--fleet`; by what it is three in any case.
STARTS_ONE = frozenset({"tests.support.server_process.serving", "tests.support.server_process.PROGRAM"})
STARTS_SEVERAL = frozenset({"tests.nodes.boxes.taken_for_one"})


def read_ledger() -> dict[int, list[str]]:
    """What stands below each statement's number: tests, or one reason."""
    ledger: dict[int, list[str]] = {}
    number = 0
    for line in Path(__file__).with_name("conformance.txt").read_text().splitlines():
        if line.startswith("    "):
            ledger[number].append(line.strip())
        elif line and not line.startswith("#"):
            number = int(line.partition(" ")[0])
            assert number not in ledger, f"statement {number} is there twice"
            ledger[number] = []
    return ledger


LEDGER = read_ledger()


@functools.cache
def functions(file: str) -> frozenset[str]:
    """Names of the functions in a file of tests."""
    tree = ast.parse((TESTS / file).read_text())
    return frozenset(node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))


def uses(path: Path) -> dict[str, set[str]]:
    """What each function of a module names, imports in full but for those of a conftest; fixtures under their names."""
    tree = ast.parse(path.read_text())
    full = {
        alias.asname or alias.name: f"{node.module}.{alias.name}"
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and not node.module.endswith("conftest")
        for alias in node.names
    }
    found: dict[str, set[str]] = {}
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            words = [word for each in node.decorator_list if isinstance(each, ast.Call) for word in each.keywords]
            called = next((word.value.value for word in words if word.arg == "name"), node.name)
            names = [getattr(each, "arg", None) or getattr(each, "id", "") for each in ast.walk(node)]
            found.setdefault(called, set()).update(full.get(name, name) for name in names)
    return found


@functools.cache
def reaching(file: str, starts: frozenset[str]) -> set[str]:
    """Functions in a file of tests that name one of `starts`, or a fixture or function there that does."""
    path = TESTS / file
    shared = [each / "conftest.py" for each in path.parents if each.is_relative_to(TESTS)]
    found = {name: names for each in [*reversed(shared), path] if each.exists() for name, names in uses(each).items()}
    reached = set(starts)
    while more := {name for name, names in found.items() if names & reached} - reached:
        reached |= more
    return reached


def is_of_several_servers(entry: str) -> bool:
    """Whether a test of the ledger is run against several servers, by itself or by `make test-fleet`."""
    file, name = entry.split("::")
    [run] = re.findall("pytest --fleet (.*)", (TESTS.parent / "Makefile").read_text())
    chosen = any(fnmatch(f"tests/{file}", f"{path}*") for path in run.split()) and not reason(f"tests/{entry}")
    return name in reaching(file, STARTS_SEVERAL | (STARTS_ONE if chosen else frozenset()))


def test_every_statement_is_in_the_ledger():
    assert list(LEDGER) == list(range(1, STATEMENTS + 1))


@pytest.mark.parametrize("number", LEDGER)
def test_a_statement_has_tests_that_exist_or_a_reason(number):
    entries = LEDGER[number]
    reasons = [entry for entry in entries if entry.startswith(NOT_COVERED)]
    tests = [entry.split("::") for entry in entries if entry not in reasons]

    assert (len(reasons), bool(tests)) in {(0, True), (1, False)}
    assert [name for file, name in tests if name not in functions(file)] == []


@pytest.mark.parametrize("number", LEDGER)
def test_a_statement_is_shown_of_several_servers_too(number):
    entries = [entry for entry in LEDGER[number] if not entry.startswith(NOT_COVERED)]

    assert not entries or any(map(is_of_several_servers, entries))
