"""requirements.lock has the versions of constraints.txt, of all that a server needs but torch."""

import importlib.util
from pathlib import Path

ROOT = Path(__file__).parents[1]
SPEC = importlib.util.spec_from_file_location("lock", ROOT / ".ci" / "lock.py")
lock = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(lock)

LOCKED = (ROOT / "requirements.lock").read_text()
PINNED = (ROOT / "constraints.txt").read_text()


def test_the_lock_has_the_pinned_versions():
    assert lock.differing(LOCKED, PINNED) == []


def test_a_pin_that_moved_and_one_that_is_gone_are_found():
    moved = PINNED.replace("tqdm==4.70.1", "tqdm==4.70.2")
    without = LOCKED.replace("\nuvloop==", "\nother==")

    assert lock.differing(LOCKED, moved) == ["tqdm==4.70.1", "tqdm==4.70.2"]
    assert {difference.partition("==")[0] for difference in lock.differing(without, PINNED)} == {"other", "uvloop"}


def test_every_pin_of_the_lock_has_hashes():
    pins = LOCKED.split("\n", 1)[1].split("==")[1:]

    assert pins
    assert all("--hash=sha256:" in pin for pin in pins)


def test_neither_torch_nor_what_only_torch_brings_is_locked():
    names = lock.pins(LOCKED)

    assert not {"torch", "sympy", "networkx", "jinja2", "triton"} & names.keys()
    assert {"filelock", "fsspec", "fastapi", "pillow"} <= names.keys()
