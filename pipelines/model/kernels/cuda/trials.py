"""Trials of kernels that a card may not survive.

A kernel that reads where it must not ends all computing of its process, and the next engine would try it again, for
ever. So a file of the data folder notes what is being tried. What did not come back twice is not tried again.
"""

from __future__ import annotations

import contextlib
import json
import logging
from typing import TYPE_CHECKING

import torch
from filelock import FileLock

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

logger = logging.getLogger(__name__)

FILE = "kernel-trials.json"

# Trials that may end their process: the first may have been stopped by who stopped the server.
_MOST = 2

# Seconds to wait for another engine that writes.
_WAIT_S = 5.0


class Trials:
    """How often each trial has been begun and did not come back. `path`: where that is kept; None: nowhere."""

    def __init__(self, path: Path | None = None) -> None:
        self._path = path

    @contextlib.contextmanager
    def trial(self, name: str) -> Iterator[bool]:
        """Give whether to try. What counts is a process that ends in the context, or loses its card there."""
        begun = self._begun().get(name, 0)
        if begun >= _MOST:
            yield False
            return
        self._note(name, begun + 1)
        lost = False
        try:
            yield True
        except torch.AcceleratorError:
            lost = True
            raise
        finally:
            if not lost:
                self._note(name, 0)

    def _begun(self) -> dict[str, int]:
        try:
            kept = json.loads(self._path.read_bytes()) if self._path else {}
            return {str(name): int(count) for name, count in kept.items()}
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, TypeError, AttributeError) as error:
            logger.warning("%s can't be read (%s): kernels are tried anew", self._path, error)
            return {}

    def _note(self, name: str, count: int) -> None:
        if self._path is None:
            return
        partial = self._path.with_suffix(".partial")
        try:
            # The engines of all cards start together, and note in one file.
            with FileLock(self._path.with_suffix(".lock"), mode=0o600, timeout=_WAIT_S, fallback_to_soft=False):
                kept = self._begun() | {name: count}
                partial.write_text(json.dumps({name: count for name, count in kept.items() if count}, indent=1))
                partial.replace(self._path)
        except OSError as error:
            logger.warning("%s can't be written (%s): a kernel that ends the engine is tried again", self._path, error)


_current = Trials()


def current() -> Trials:
    """Return the trials of this process."""
    return _current


def use(trials: Trials) -> None:
    """Have all kernels that are tried from now on noted in `trials`."""
    global _current  # noqa: PLW0603 – a process has one device, and its layers are made by plain functions
    _current = trials
