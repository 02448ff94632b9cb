"""Which of several forms of a computation is faster on this machine: timed once, then kept and the same for ever.

All forms compute the same to rounding, but not to the bit. So an answer is kept in a file of the data folder, shared by
all engines of the machine: neither a restart nor another engine changes a picture. Another processor or another torch
asks anew. Without a file, as in tests and with `--max-batch 1`, a fixed rule answers, and nothing is timed.
"""

from __future__ import annotations

import fcntl
import json
import logging
import platform
import time
from pathlib import Path
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import TypeAlias

    Run: TypeAlias = Callable[[], object]

logger = logging.getLogger(__name__)

CPUINFO = Path("/proc/cpuinfo")

# Seconds for which each form is run at most, and the number of its runs at least: the first is not counted.
_TIMED_S = 0.05
_RUNS = 3


class Choices:
    """Answers to questions like "product float32": the name of the fastest form. `path`: where they are kept."""

    def __init__(self, path: Path | None = None, *, machine: str = "") -> None:
        self._path = path
        self._machine = machine or this_machine()
        self._known: dict[str, str] = self._read() if path else {}

    def choose(self, question: str, forms: Mapping[str, Callable[[], Run]], *, rule: str) -> str:
        """Return the name of the form that is fastest here; `rule`, one of the names, where nothing is to be timed.

        `forms`: for each name what makes the form ready and returns what is timed. Called only where that is to be.
        """
        if self._path is None:
            return rule
        if self._known.get(question) not in forms:
            seconds = {name: fastest_run(make()) for name, make in forms.items()}
            self._keep(question, min(seconds, key=lambda name: seconds[name]))
            told = ", ".join(f"{name} {1e3 * spent:.1f} ms" for name, spent in seconds.items())
            logger.info("kernels: %s: %s of %s", question, self._known[question], told)
        return self._known[question]

    def _read(self) -> dict[str, str]:
        assert self._path is not None
        try:
            kept = json.loads(self._path.read_bytes())
            return {str(question): str(answer) for question, answer in kept[self._machine].items()}
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return {}  # none yet, or damaged: asked again

    def _keep(self, question: str, answer: str) -> None:
        """Add an answer to the file, unless another engine has answered meanwhile: then that one counts."""
        assert self._path is not None
        self._known[question] = answer
        try:
            with self._path.with_suffix(".lock").open("w") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                self._known = {question: answer, **self._read()}
                partial = self._path.with_suffix(".partial")
                partial.write_text(json.dumps({self._machine: self._known}, indent=1))
                partial.replace(self._path)
        except OSError as error:
            logger.warning(
                "%s can't be written (%s): after a restart pictures may differ by rounding", self._path, error
            )


def fastest_run(run: Run) -> float:
    """Return the processor seconds of the fastest of a few runs of this thread."""
    run()
    fastest, runs, end = float("inf"), 0, time.monotonic() + _TIMED_S
    while runs < _RUNS or time.monotonic() < end:
        began = time.perf_counter()
        run()
        fastest, runs = min(fastest, time.perf_counter() - began), runs + 1
    return fastest


def this_machine() -> str:
    """Return what an answer depends on: processor, threads and torch."""
    name = platform.processor() or platform.machine()
    if CPUINFO.is_file():
        lines = CPUINFO.read_text().splitlines()
        name = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), name)
    capability = torch.backends.cpu.get_cpu_capability()
    return f"{name}, {capability}, {torch.get_num_threads()} threads, torch {torch.__version__}"


_current = Choices()


def current() -> Choices:
    """Return the choices of this process."""
    return _current


def use(choices: Choices) -> None:
    """Have all kernels that are made from now on ask `choices`."""
    global _current  # noqa: PLW0603 – a process has one model, and its layers are made by plain functions
    _current = choices
