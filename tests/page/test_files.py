"""The page's files: libraries as their packages have them, types that are checked, modules that stay short."""

import gzip
import json
from pathlib import Path

import pytest

from tests.clients.kit import npm_ci
from tests.page.packages import JS, MODULES, STATIC, VENDOR, check_types, described, vendored

# As a browser gets it: compressed. Comments and names cost next to nothing then, and stay readable without a build.
OWN_BYTES = 75_000
# Documents beside the page, which it does not load.
DOCUMENTS = {"docs.html", "docs.js", "try.js", "trust.html", "trust.js"}
DOCUMENTS_BYTES = 9_000
LINES_IN_A_MODULE = 250
OWN = [
    path for path in sorted(STATIC.rglob("*")) if path.suffix in {".html", ".css", ".js"} and VENDOR not in path.parents
]


def test_a_type_that_does_not_hold_is_found(tmp_path: Path):
    (tmp_path / "wrong.js").write_text('/** @type {number} */\nexport const wrong = "one";\n')
    (tmp_path / "tsconfig.json").write_text(json.dumps({"extends": str(JS / "tsconfig.json"), "include": ["*.js"]}))

    assert "wrong.js" in check_types(tmp_path / "tsconfig.json")


@pytest.mark.parametrize("row", vendored(), ids=lambda row: row["file"])
def test_a_library_is_what_the_table_says(row):
    assert described(row, (VENDOR / row["file"]).read_bytes(), row["version"]) == row


@pytest.mark.parametrize("row", vendored(), ids=lambda row: row["file"])
def test_a_library_is_what_its_package_has(row):
    npm_ci(JS)
    package = MODULES / row["package"]

    assert (VENDOR / row["file"]).read_bytes() == (package / row["path"]).read_bytes()
    assert row["version"] == json.loads((package / "package.json").read_text())["version"]
    assert row["licence"] == json.loads((package / "package.json").read_text())["license"]


def test_every_library_is_in_the_table_and_has_its_licence():
    rows = vendored()
    wanted = {row["file"] for row in rows} | {f"LICENSE.{row['package']}" for row in rows} | {"vendor.json"}

    assert {path.name for path in VENDOR.iterdir()} == wanted


def test_the_page_is_small():
    sent = {path: len(gzip.compress(path.read_bytes())) for path in OWN}

    assert sum(size for path, size in sent.items() if path.name not in DOCUMENTS) <= OWN_BYTES
    assert sum(size for path, size in sent.items() if path.name in DOCUMENTS) <= DOCUMENTS_BYTES


@pytest.mark.parametrize("path", OWN, ids=lambda path: path.relative_to(STATIC).as_posix())
def test_a_module_of_the_page_is_short(path: Path):
    assert len(path.read_text().splitlines()) <= LINES_IN_A_MODULE


def test_no_module_of_the_page_is_left_over():
    texts = {path: path.read_text() for path in OWN}
    named = {path for path in OWN if any(f"/{path.name}" in text for other, text in texts.items() if other != path)}

    assert set(OWN) - named == {STATIC / "index.html", STATIC / "docs.html", STATIC / "trust.html"}
