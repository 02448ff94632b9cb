"""The documents name what is there, and stay as short as they promise to be."""

import importlib.util
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


# --- what the program itself knows ------------------------------------------------------------------------------------

SPEC = importlib.util.spec_from_file_location("documents", ROOT / ".ci" / "documents.py")
made = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(made)


@pytest.fixture(scope="module")
def parts(instant):
    return made.parts(made.exposition(instant))


@pytest.mark.parametrize("name", made.PLACES)
def test_what_a_page_says_of_the_program_is_current(name, parts):
    page = made.PLACES[name].read_text()

    assert made.with_part(page, name, parts[name]) == page, "Hint: make documents"


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("settings", "- `--port`"),
        ("commands", "- `fourstep pull`"),
        ("routes", "- `/ready`"),
        ("metrics", "- `fourstep_"),
    ],
)
def test_a_line_that_is_left_out_is_found(name, line, parts):
    page = made.PLACES[name].read_text()
    without = re.sub(rf"^{re.escape(line)}.*\n", "", page, count=1, flags=re.MULTILINE)

    assert without != page
    assert made.with_part(without, name, parts[name]) != without


def test_a_page_without_the_place_for_its_part_is_refused():
    with pytest.raises(ValueError, match="no place for metrics"):
        made.with_part("# Metrics\n", "metrics", "")


TEXTS = {path.relative_to(ROOT).as_posix(): path.read_text() for path in [ROOT / "README.md", *ROOT.glob("docs/*.md")]}
FLAGS = set(re.findall(r"--[a-z][a-z-]*", made.settings() + made.commands()))
# Flags of other programs, which the documents name beside ours.
OTHERS_FLAGS = set(
    re.findall(
        r"\S+",
        """
        --build-arg --constraint --dest --find-links --gpus --help --http --index-url --no-deps --no-index --requirement
        --require-hashes --upgrade --version --wheel-dir
        """,
    )
)


def unknown(text):
    """Flags, variables and metrics which a text names and the program lacks."""
    flags = set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", text)) - FLAGS - OTHERS_FLAGS
    variables = set(re.findall(r"FOURSTEP_[A-Z_]*[A-Z]", text)) - set(re.findall(r"FOURSTEP_\w+", made.settings()))
    metrics = {
        name
        for name in re.findall(r"\bfourstep_[a-z_]+[a-z]", text)
        if name.removesuffix("_bucket") not in re.findall(r"`(fourstep_\w+)`", TEXTS["docs/metrics.md"])
    }
    return flags | variables | metrics


@pytest.mark.parametrize("page", sorted(TEXTS.keys() - {"docs/reliability.md"}))
def test_the_names_on_a_page_are_the_programs(page):
    assert unknown(TEXTS[page]) == set()


def test_names_that_the_program_lacks_are_found():
    text = "`--prot 80`, `FOURSTEP_PROT`, `fourstep_queue_lenght`, `--port`, `FOURSTEP_PORT`, `fourstep_queue_length`"

    assert unknown(text) == {"--prot", "FOURSTEP_PROT", "fourstep_queue_lenght"}
