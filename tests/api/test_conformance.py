"""The ledger in `conformance.txt` is whole, and what it points at exists. And: no route redirects (statement 6)."""

import ast
import functools
from pathlib import Path

import pytest

from tests.api.test_closed import CALLS, concrete
from tests.support.app_client import INPUT, serving

TESTS = Path(__file__).parents[1]
STATEMENTS = 143
NOT_COVERED = "not covered: "


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


def test_every_statement_is_in_the_ledger():
    assert list(LEDGER) == list(range(1, STATEMENTS + 1))


@pytest.mark.parametrize("number", LEDGER)
def test_a_statement_has_tests_that_exist_or_a_reason(number):
    entries = LEDGER[number]
    reasons = [entry for entry in entries if entry.startswith(NOT_COVERED)]
    tests = [entry.split("::") for entry in entries if entry not in reasons]

    assert (len(reasons), bool(tests)) in {(0, True), (1, False)}
    assert [name for file, name in tests if name not in functions(file)] == []


@pytest.mark.anyio
@pytest.mark.parametrize("slash", ["", "/"])
async def test_no_route_redirects(tmp_path, slash):
    headers = {"x-fal-target-url": "https://fal.run/fal-ai/lcm-sd15-i2i"}
    async with serving(tmp_path) as web:
        answers = {
            (method, path): (await web.call(method, concrete(path) + slash, body=INPUT, headers=headers)).status
            for method, path in CALLS
        }

    assert {call: status for call, status in answers.items() if 300 <= status < 400} == {}
