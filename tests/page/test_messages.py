"""What the page says is in one module, each fault with what would do; docs/troubleshooting.md has the same faults."""

import re
from pathlib import Path

import pytest

from tests.page.packages import STATIC

PAGE = STATIC / "page"
WORDS = PAGE / "words.js"
DOCS = Path(__file__).parents[2] / "docs" / "troubleshooting.md"

ENTRY = re.compile(r"""  (\w+): (?:\([^=]*\) => )?(["`])(.+)\2,""")
PLACE = re.compile(r"\$\{[^}]*\}")
# Where a text begins that the page will show.
LITERALS = [
    re.compile(pattern)
    for pattern in (
        r"""\b(?:say|sayWrong|stopLive|setFailed)\(\s*["'`][^"'`]""",
        r"""\b(?:Refusal|Lost|Unreadable|RangeError|Error)\(\s*["'`]""",
        r"""\bsaid(?: =|:) ["'`][^"'`]""",
        r"""class="(?:notice|wrong|unsafe)[^>]*>\s*\w""",
        r"""role="alert"[^>]*>\s*\w""",
    )
]


def faults(source: str) -> dict[str, str]:
    """The faults of the module, by name; values in them are `…`. Raises `AssertionError` for a line of another form."""
    body = source.partition("export const faults = {\n")[2].partition("\n};")[0]
    lines = [line for line in body.splitlines() if line and not line.startswith("  // ")]
    entries = [ENTRY.fullmatch(line) for line in lines]
    assert [line for line, entry in zip(lines, entries, strict=True) if entry is None] == []
    return {entry[1]: PLACE.sub("…", entry[3].replace("\\`", "`")) for entry in entries if entry}


def happened(words: str) -> str:
    """What has happened: all before the colon."""
    return words.partition(":")[0]


def literals(source: str) -> list[str]:
    """Lines with a text for the page in them."""
    return [found.group() for pattern in LITERALS for found in pattern.finditer(source)]


def told(page: str) -> list[str]:
    """The first cells of the table of what the page says."""
    table = page.partition("## What the page says")[2].partition("\n## ")[0]
    return re.findall(r"^\| (?!---|it says)(.+?) \|", table, re.MULTILINE)


def test_each_fault_is_in_the_documents_and_no_other():
    rows = told(DOCS.read_text())

    assert sorted(rows) == sorted({happened(words) for words in faults(WORDS.read_text()).values()})


def test_each_fault_says_what_would_do():
    # What would do for an engine that has stopped is the server's own words, which follow.
    silent = {name for name, words in faults(WORDS.read_text()).items() if not words.partition(": ")[2].strip()}

    assert silent == {"defunct"}


@pytest.mark.parametrize("kind", ["faults", "news"])
def test_all_words_are_used_by_the_page(kind: str):
    body = WORDS.read_text().partition(f"export const {kind} = {{\n")[2].partition("\n};")[0]
    source = "".join(path.read_text() for path in PAGE.rglob("*.js"))

    assert set(re.findall(r"^  (\w+): ", body, re.MULTILINE)) == set(re.findall(rf"\b{kind}\.(\w+)", source))


@pytest.mark.parametrize("path", sorted({*PAGE.rglob("*.js")} - {WORDS}), ids=lambda path: path.stem)
def test_no_other_module_has_words_of_its_own(path: Path):
    assert literals(path.read_text()) == []


@pytest.mark.parametrize(
    "line",
    [
        'say("Done")',
        "stopLive(`It has stopped`)",
        'new Refusal(\n  "No")',
        'source.set({ said: "No picture" })',
        '<p class="notice bad" role="alert">\n  The engine has stopped</p>',
        '<p class="wrong" id="x">No</p>',
    ],
)
def test_words_in_another_module_are_found(line: str):
    assert literals(line) != []


def test_a_fault_is_read_with_its_values_left_out():
    entries = ["  // Server", '  a: "No: wait",', "  b: (/** @type {number} */ n) => `No \\`x\\` ${n + 1}: go`,"]
    module = "\n".join(["export const faults = {", *entries, "};"])

    assert faults(module) == {"a": "No: wait", "b": "No `x` …: go"}
    with pytest.raises(AssertionError, match="c: name"):
        faults(module.replace("\n};", "\n  c: name,\n};"))
