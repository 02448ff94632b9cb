"""The documents name what is there, and stay as short as they promise to be."""

import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
DOCUMENTS = sorted({*ROOT.glob("docs/*.md"), *ROOT.glob("*.md"), ROOT / "benchmarks/README.md"})
PAGES = [pytest.param(path, id=str(path.relative_to(ROOT))) for path in DOCUMENTS]
FOLDERS = "server|pipelines|training|tests|benchmarks|docs|examples|deploy"

# A path of the project, in code marks or in a command: `server/api/run.py`, `tests/chaos/`.
PATH = re.compile(rf"(?<![\w/.~:-])((?:{FOLDERS})/[\w./-]*\w/?|(?:{FOLDERS})/)")
MODULE = re.compile(rf"(?:-m |`)((?:{FOLDERS})(?:\.[a-z_]\w*)+)")
LINK = re.compile(r"\]\(([^)#:]+)(?:#[^)]*)?\)")


def named(text: str) -> set[str]:
    """The paths that a text names."""
    modules = {name.replace(".", "/") for name in MODULE.findall(text)}
    return {path.rstrip(".") for path in PATH.findall(text)} | modules


def exists(path: str) -> bool:
    """Whether a file or folder is there; a module may be named without its ending."""
    return (ROOT / path).exists() or (ROOT / f"{path}.py").exists()


@pytest.mark.parametrize("document", PAGES)
def test_every_path_that_a_document_names_exists(document):
    assert {path for path in named(document.read_text()) if not exists(path)} == set()


@pytest.mark.parametrize("document", PAGES)
def test_every_link_inside_the_project_leads_somewhere(document):
    links = set(LINK.findall(document.read_text()))

    assert {link for link in links if not (document.parent / link).exists()} == set()


def test_a_path_that_is_not_there_is_found():
    assert not exists(*named("see `server/api/nothing.py`"))


@pytest.mark.parametrize(("name", "most"), [("docs/architecture.md", 128), ("CONTRIBUTING.md", 60)])
def test_a_page_stays_a_page(name, most):
    assert len((ROOT / name).read_text().splitlines()) <= most


def test_the_architecture_page_names_every_package():
    page = (ROOT / "docs/architecture.md").read_text()
    packages = {folder.parent.name for top in ("server", "pipelines") for folder in (ROOT / top).glob("*/__init__.py")}

    assert {name for name in packages if not re.search(rf"\b{name}\b", page)} == set()


PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
LAYERS = {
    contract["containers"][0]: re.findall(r"\w+", re.sub(r"\(.*?\)", "", " ".join(contract["layers"])))
    for contract in PROJECT["tool"]["importlinter"]["contracts"]
    if contract["type"] == "layers"
}


@pytest.mark.parametrize("package", LAYERS)
def test_the_architecture_page_has_the_layers_that_are_enforced(package):
    page = (ROOT / "docs/architecture.md").read_text()
    [told] = re.findall(rf"^\| inside `{package}/` \| downwards: (.*) \|$", page, re.MULTILINE)

    assert re.findall(r"\w+", told.replace(" and ", " ")) == LAYERS[package]


def test_the_newest_version_of_the_changelog_is_the_packages():
    versions = re.findall(r"^## \[(\d[^]]*)\]", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)

    assert versions[0] == PROJECT["project"]["version"]
