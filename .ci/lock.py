"""requirements.lock: each version that a server needs at run time, with the hashes of all its files.

    python .ci/lock.py            write it, by uv, which asks the package index
    python .ci/lock.py --check    exit 1 when it has not the versions of constraints.txt; asks no one

Left out are torch, whose builds have other hashes on other indexes, and what only torch brings.
"""

import argparse
import re
import subprocess
import sys
from importlib.metadata import distribution
from itertools import product
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent
CONSTRAINTS, LOCK = ROOT / "constraints.txt", ROOT / "requirements.lock"
HEAD = (
    "# Written by `make lock`: what constraints.txt pins of a server without torch, and the hashes of all its files.\n"
)
LEFT_OUT = "torch"
# Where a server may run: a package which only one of these needs is locked for all.
ENVIRONMENTS = [
    {
        "python_version": f"3.{minor}",
        "python_full_version": f"3.{minor}.0",
        "sys_platform": system,
        "platform_machine": cpu,
    }
    for minor, (system, cpu) in product((11, 12, 13), (("linux", "x86_64"), ("linux", "aarch64"), ("darwin", "arm64")))
]


def main() -> None:
    """Write the lock, or check it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    if not parser.parse_args().check:
        LOCK.write_text(HEAD + hashed(wanted(CONSTRAINTS.read_text())))
    elif difference := differing(LOCK.read_text(), CONSTRAINTS.read_text()):
        sys.exit(f"requirements.lock is not of constraints.txt: {', '.join(difference)}. Hint: make lock")


def differing(lock: str, constraints: str) -> list[str]:
    """Return the pins which only one of lock and constraints has."""
    return sorted("==".join(pin) for pin in set(pins(lock).items()) ^ set(wanted(constraints).items()))


def pins(text: str) -> dict[str, str]:
    """Return the version of each package that is pinned in a file of pip's."""
    found = re.findall(r"^([A-Za-z0-9._-]+)==([^\s;\\]+)", text, re.MULTILINE)
    return {canonicalize_name(name): version for name, version in found}


def wanted(constraints: str) -> dict[str, str]:
    """Return the pins of what a server needs at run time, but for what is left out."""
    pinned = pins(constraints)
    return {name: pinned[name] for name in sorted(needed("fourstep") - {"fourstep"})}


def needed(package: str) -> set[str]:
    """Return the names of a package, and of what it needs in any environment, at any depth."""
    found: set[tuple[str, frozenset[str]]] = set()
    todo = [(canonicalize_name(package), frozenset[str]())]
    while todo:
        name, extras = todo.pop()
        if name == LEFT_OUT or (name, extras) in found:
            continue
        found.add((name, extras))
        for line in distribution(name).requires or ():
            requirement = Requirement(line)
            if applies(requirement, extras):
                todo.append((canonicalize_name(requirement.name), frozenset(requirement.extras)))
    return {name for name, _ in found}


def applies(requirement: Requirement, extras: frozenset[str]) -> bool:
    """Return whether a requirement counts in any of the environments."""
    marker = requirement.marker
    tries = product(ENVIRONMENTS, {"", *extras})
    return marker is None or any(marker.evaluate({**environment, "extra": extra}) for environment, extra in tries)


def hashed(pinned: dict[str, str]) -> str:
    """Return the pins with the hashes of all their files, as uv finds them in the index."""
    lines = "\n".join(f"{name}=={version}" for name, version in pinned.items())
    options = ["--no-deps", "--generate-hashes", "--no-header", "--no-annotate", "--quiet"]
    command = [sys.executable, "-m", "uv", "pip", "compile", *options, "-"]
    return subprocess.run(command, input=lines, capture_output=True, text=True, check=True).stdout


if __name__ == "__main__":
    main()
