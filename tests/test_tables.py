"""Tables stay readable: few columns, few words a cell."""

from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
COLUMNS, WORDS = 6, 12
LOGS = [*sorted((ROOT / "benchmarks").rglob("*.md")), ROOT / "training/LOG.md"]
# The layers on architecture.md are one line, as the import contracts have them.
PAGES = [ROOT / "README.md", *sorted({*(ROOT / "docs").glob("*.md")} - {ROOT / "docs/architecture.md"})]


def unreadable(text: str) -> list[str]:
    """Rows with too many columns, and cells with too many words."""
    rows = [line.strip().strip("|").split("|") for line in text.splitlines() if line.startswith("|")]
    wide = [" | ".join(row) for row in rows if len(row) > COLUMNS]
    return wide + [cell for row in rows for cell in row if len(cell.split()) > WORDS]


@pytest.mark.parametrize("path", LOGS + PAGES, ids=lambda path: path.name)
def test_tables_are_readable(path: Path) -> None:
    assert unreadable(path.read_text()) == []


def test_unreadable_tables_are_found() -> None:
    assert unreadable("| a " * 6 + "|\n| " + "a " * 12 + "|\n") == []
    assert len(unreadable("| a " * 7 + "|")) == 1
    assert len(unreadable("| " + "a " * 13 + "|")) == 1
