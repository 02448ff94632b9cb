"""The words: identifiers and texts of the product use the field's terms, and tests leave its constants alone."""

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PRODUCT = ("server", "pipelines")

FORBIDDEN = set(
    re.findall(
        r"\w+",
        """
        hands board boards shelf shelves attic attics ticket tickets doors street streets lane lanes gallery galleries
        hang hangs develop develops fitting fittings outfit outfits allot allots rehearse rehearses footprint footprints
        pace paces recipe recipes strike strikes ward wards mend mends
        """,
    )
)

# (module, identifier): why it stays.
KEPT_IDENTIFIERS = {("server/transport/tls.py", "num_tickets"): "the `ssl` module's own name"}

PHRASES = re.compile(r"\b(in hand|so many|for people|nobody|mend(s|ed|ing)?)\b", re.IGNORECASE)
# (module, phrase): why it stays.
KEPT_PHRASES: dict[tuple[str, str], str] = {}

# Constants that are reached through a module of ours and are huggingface_hub's: tests turn them to a hub of their own.
FOREIGN = {
    f"client.constants.{each}" for each in ("ENDPOINT", "HF_HUB_CACHE", "HF_HUB_OFFLINE", "HUGGINGFACE_CO_URL_TEMPLATE")
}


def modules(*tops: str) -> Iterator[Path]:
    for top in tops:
        yield from sorted((ROOT / top).rglob("*.py"))


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def words(identifier: str) -> set[str]:
    """The words of an identifier: split at underscores, points and capitals, in lower case."""
    return {word.lower() for word in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", identifier)}


def identifiers(source: str) -> set[str]:
    """Every name in a module's code."""
    return {token.string for token in tokens(source) if token.type == tokenize.NAME}


def texts(source: str) -> str:
    """Comments and literal texts, docstrings among them, each line's break a space."""
    kinds = {tokenize.COMMENT, tokenize.STRING} | {
        getattr(tokenize, kind) for kind in ("FSTRING_MIDDLE",) if hasattr(tokenize, kind)
    }
    found = "\n".join(token.string.lstrip("# ") for token in tokens(source) if token.type in kinds)
    return re.sub(r"\s+", " ", found)


def tokens(source: str) -> list[tokenize.TokenInfo]:
    return list(tokenize.generate_tokens(io.StringIO(source).readline))


def old_words(source: str) -> set[str]:
    """Identifiers with an old word in them."""
    return {each for each in identifiers(source) if words(each) & FORBIDDEN}


def phrases(source: str) -> set[str]:
    """Forbidden phrases in comments and texts."""
    return {match.lower() for match, _ in PHRASES.findall(texts(source))}


def patched_constants(source: str) -> set[str]:
    """Constants of ours which a test replaces, by a patch or by an assignment."""
    tree = ast.parse(source)
    nodes = list(ast.walk(tree))
    ours = set().union(*(names_of_ours(node) for node in nodes if isinstance(node, ast.Import | ast.ImportFrom)))
    replaced = [replaced_by_call(node) for node in nodes if isinstance(node, ast.Call)]
    replaced += [ast.unparse(target) for node in nodes if isinstance(node, ast.Assign) for target in node.targets]
    return {
        path
        for path in replaced
        if "." in path and is_constant(path.rpartition(".")[2]) and path.partition(".")[0] in ours | {*PRODUCT}
    }


def names_of_ours(node: ast.Import | ast.ImportFrom) -> set[str]:
    """The names that an import gives to what is ours."""
    source = node.module or "" if isinstance(node, ast.ImportFrom) else None
    return {
        alias.asname or (alias.name if source is not None else alias.name.partition(".")[0])
        for alias in node.names
        if (source if source is not None else alias.name).partition(".")[0] in PRODUCT
    }


def replaced_by_call(call: ast.Call) -> str:
    """What `setattr(owner, "NAME", …)`, `patch.object(…)` or `setattr("a.b.NAME", …)` replaces; "" if nothing."""
    if not ast.unparse(call.func).endswith(("setattr", "patch", "patch.object")):
        return ""
    match call.args:
        case [ast.Constant(value=str(path)), *_]:
            return path
        case [owner, ast.Constant(value=str(attribute)), *_]:
            return f"{ast.unparse(owner)}.{attribute}"
    return ""


def is_constant(attribute: str) -> bool:
    return re.fullmatch(r"_{0,2}[A-Z][A-Z0-9_]*", attribute) is not None


def test_no_identifier_has_an_old_word() -> None:
    found = {(name(path), each) for path in modules(*PRODUCT) for each in old_words(path.read_text())}

    assert found - KEPT_IDENTIFIERS.keys() == set()
    assert KEPT_IDENTIFIERS.keys() - found == set()


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("class JobBoard: ...", {"JobBoard"}),
        ("self._ward = 1", {"_ward"}),
        ("MENDS = 1", {"MENDS"}),
        ("def f(in_hands): ...", {"in_hands"}),
        ("onboarding = keyboard = forward = space = recommend = handset = 1", set()),
        ("hand = 'board'  # shelf", set()),
    ],
)
def test_old_words_are_found(source: str, found: set[str]) -> None:
    assert old_words(source) == found


def test_no_text_has_a_forbidden_phrase() -> None:
    found = {(name(path), each) for path in modules(*PRODUCT) for each in phrases(path.read_text())}

    assert found - KEPT_PHRASES.keys() == set()
    assert KEPT_PHRASES.keys() - found == set()


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ('"""What it has in\n    hand."""', {"in hand"}),
        ("x = 1  # Nobody asks", {"nobody"}),
        ("raise ValueError(f'mend {this}')", {"mend"}),
        ("# so\n# many", {"so many"}),
        ("nobody = 1  # so many-sided", {"so many"}),
        ("'recommended in handbooks'", set()),
    ],
)
def test_phrases_are_found(source: str, found: set[str]) -> None:
    assert phrases(source) == found


def test_tests_replace_no_constant_of_ours() -> None:
    found = {name(path): patched_constants(path.read_text()) for path in modules("tests")}

    assert {path: names - FOREIGN for path, names in found.items() if names - FOREIGN} == {}


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("from server.jobs import queue\nmonkeypatch.setattr(queue, 'LEASE_S', 1)", {"queue.LEASE_S"}),
        ("from server.jobs import queue as q\nsetattr(q, '_LEASE_S', 1)", {"q._LEASE_S"}),
        ("from pipelines.model.lcm import Lcm\npatch.object(Lcm, 'MOST', 1)", {"Lcm.MOST"}),
        ("monkeypatch.setattr('server.jobs.queue.LEASE_S', 1)", {"server.jobs.queue.LEASE_S"}),
        ("import server.jobs\nserver.jobs.LEASE_S = 1", {"server.jobs.LEASE_S"}),
        ("from server.jobs import queue\nmonkeypatch.setattr(queue, 'claim', 1)", set()),
        ("from PIL import Image\nmonkeypatch.setattr(Image, 'MAX_IMAGE_PIXELS', 1)", set()),
    ],
)
def test_replaced_constants_are_found(source: str, found: set[str]) -> None:
    assert patched_constants(source) == found
