"""An earlier release, for tests that run it beside this one: its files in a git worktree, with this one's packages."""

import contextlib
import re
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def first_of_several_boxes() -> str:
    """Return the commit of the first release for several boxes, as UPGRADING.md names it."""
    (commit,) = re.findall(r"`([0-9a-f]{12,40})`", (ROOT / "UPGRADING.md").read_text())
    return str(commit)


@contextlib.contextmanager
def worktree(commit: str) -> Iterator[Path]:
    """Context of a folder with the files of a commit, to be put first on a program's PYTHONPATH.

    Skips the test where this clone has no history. CI has it, so there the skip fails.
    """
    if _git("cat-file", "-e", f"{commit}^{{commit}}").returncode:
        pytest.skip(f"this clone lacks commit {commit}. Hint: git fetch --unshallow")
    with tempfile.TemporaryDirectory(prefix="fourstep-release-") as folder:
        files = Path(folder) / "files"
        made = _git("worktree", "add", "--detach", str(files), commit)
        assert made.returncode == 0, made.stderr
        try:
            yield files
        finally:
            _git("worktree", "remove", "--force", str(files))


def _git(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["git", "-C", str(ROOT), *words], capture_output=True, text=True, check=False)
