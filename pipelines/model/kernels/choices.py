"""Which of several forms of a computation is faster on this machine: timed once, then kept and the same for ever.

All forms compute the same to rounding, but not to the bit. So an answer is kept in a file of the data folder, shared by
all engines of the machine: neither a restart nor another engine changes a picture. Another processor, another number of
threads, another card or another torch asks anew. Without a file, as in tests and with `--max-batch 1`, a fixed rule
answers, and nothing is timed.

On a machine that is busy with other things forms are compared by what one thread computes: the first start must not
decide for all time by who was interrupted.
"""

from __future__ import annotations

import contextlib
import json
import logging
import platform
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import torch
from filelock import FileLock

from pipelines.model.kernels import instructions

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping

    Run: TypeAlias = Callable[[], object]
    # Machine → question → answer.
    Answers: TypeAlias = dict[str, dict[str, str]]

logger = logging.getLogger(__name__)

FILE = "kernels.json"
CPUINFO = Path("/proc/cpuinfo")
THREADS = Path("/proc/self/task")

# Seconds for which each form is run at most, and the number of its runs at least: the first is not counted.
_TIMED_S = 0.05
_RUNS = 3

# Where the timed threads waited for a processor for this share of the time, others use it: measured is then who was
# interrupted less, and would be kept for ever. Seconds below which nothing was measured at all.
_DISTURBED, _MEASURED_S = 0.1, 0.001

# Seconds to wait for an engine that is timing. One that is stopped meanwhile must not keep all others from starting.
_WAIT_S = 20.0


class UnfitError(Exception):
    """A form can't be used here, or computes wrong numbers."""


class Choices:
    """Answers to questions like "product float32": the name of the fastest form.

    `path`: where they are kept; None: nowhere, the rule answers. `keep`: whether new answers are written there.
    """

    def __init__(
        self, path: Path | None = None, *, machine: str = "", keep: bool = True, wait: float = _WAIT_S
    ) -> None:
        self._path = path
        self._machine = machine
        self._keep = keep
        self._said = set[str]()
        self._known: dict[str, str] = {}
        if path:
            self._machine = machine or this_machine()
            self._known = self._read(path).get(self._machine, {})
            # One lock of this process, so that a form which asks a question of its own may do so while it is timed.
            self._lock = FileLock(path.with_suffix(".lock"), mode=0o600, timeout=wait, fallback_to_soft=False)

    def choose(
        self,
        question: str,
        forms: Mapping[str, Callable[[], Run]],
        *,
        rule: str,
        handicaps: Mapping[str, float] | None = None,
        seconds: Callable[[Run], float] | None = None,
    ) -> str:
        """Return the name of the form that is fastest here; `rule`, one of the names, where nothing is to be timed.

        `forms`: for each name what makes the form ready and returns what is timed; called only where that is to be. It
        raises `UnfitError` where the form can't be used; if none can, the rule answers.
        `handicaps`: factors by which some forms must be faster than the others to be taken. `seconds`: measures a run
        that is not the processor's.
        """
        if self._path is None:
            return rule
        if self._known.get(question) not in forms:
            find = partial(_fastest, question, forms, rule, handicaps or {}, seconds)
            self._known[question] = self._ask(self._path, question, forms, find)
        return self._known[question]

    def _ask(self, path: Path, question: str, forms: Collection[str], find: Callable[[], str]) -> str:
        """Return the answer that another engine has kept meanwhile; if there is none, time the forms and keep it."""
        if not self._keep:
            return find()
        answer = ""
        try:
            # Held while timing, so that engines that start together neither disturb nor contradict each other.
            with self._lock:
                answer = self._read(path).get(self._machine, {}).get(question, "")
                if answer not in forms:
                    self._say(logging.INFO, f"kernels: timing which are faster here, this once; kept in {path}")
                    answer = find()
                    kept = self._read(path)
                    # Also what could not be written before.
                    kept[self._machine] = self._known | kept.get(self._machine, {}) | {question: answer}
                    _write(path, kept)
        except OSError as error:
            self._say(
                logging.WARNING, f"{path} can't be written ({error}): after a restart pictures may differ by rounding"
            )
        return answer if answer in forms else find()

    def _read(self, path: Path) -> Answers:
        """Return the answers of all machines; none from a file that is damaged."""
        try:
            kept = json.loads(path.read_bytes())
            return {
                str(machine): {str(question): str(answer) for question, answer in answers.items()}
                for machine, answers in kept.items()
            }
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, AttributeError) as error:
            self._say(logging.WARNING, f"{path} can't be read ({error}): which kernels are faster is timed anew")
            return {}

    def _say(self, level: int, words: str) -> None:
        """Log it, once: every kernel of a model may ask."""
        if words not in self._said:
            logger.log(level, "%s", words)
        self._said.add(words)


def _write(path: Path, answers: Answers) -> None:
    """Replace the file at once, whole."""
    partial = path.with_suffix(".partial")
    try:
        partial.write_text(json.dumps(answers, indent=1))
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _fastest(
    question: str,
    forms: Mapping[str, Callable[[], Run]],
    rule: str,
    handicaps: Mapping[str, float],
    measure: Callable[[Run], float] | None,
) -> str:
    runs: dict[str, Run] = {}
    for name, make in forms.items():
        try:
            runs[name] = make()
        except UnfitError as error:
            logger.debug("kernels: %s: not %s: %s", question, name, error)
    if not runs:
        logger.warning("kernels: %s: none can be used; going on with %s", question, rule)
        return rule
    seconds, how = _timed(runs) if measure is None else ({name: measure(run) for name, run in runs.items()}, "")
    answer = min(seconds, key=lambda name: seconds[name] * handicaps.get(name, 1.0))
    told = ", ".join(f"{name} {1e3 * spent:.3g} ms" for name, spent in seconds.items())
    logger.debug("kernels: %s: %s of %s%s", question, answer, told, how)
    return answer


def _timed(runs: Mapping[str, Run]) -> tuple[dict[str, float], str]:
    """Return the seconds that the processor takes for each run, and how they were measured if that is unusual."""
    began, waited = time.monotonic(), seconds_waited()
    seconds = {name: fastest_run(run) for name, run in runs.items()}
    took, waited = time.monotonic() - began, seconds_waited() - waited
    if took <= _MEASURED_S or waited <= _DISTURBED * took:
        return seconds, ""
    seconds = {name: fastest_run_of_one_thread(run) for name, run in runs.items()}
    return seconds, " (processor time of one thread: other programs use this machine)"


def fastest_run(run: Run, clock: Callable[[], float] = time.perf_counter) -> float:
    """Return the seconds of the fastest of a few runs: what else the machine does only makes runs slower."""
    run()
    fastest, runs, end = float("inf"), 0, time.monotonic() + _TIMED_S
    while runs < _RUNS or time.monotonic() < end:
        began = clock()
        run()
        fastest, runs = min(fastest, clock() - began), runs + 1
    return fastest


def fastest_run_of_one_thread(run: Run) -> float:
    """Return the processor seconds of the fastest of a few runs in this thread alone, whoever else uses the machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return fastest_run(run, time.thread_time)
    finally:
        torch.set_num_threads(threads)


def seconds_waited(threads: Path = THREADS) -> float:
    """Return for how long all threads of this process were ready to run, and had no processor; 0 except on Linux."""
    waited = 0
    for thread in threads.glob("*/schedstat"):
        with contextlib.suppress(OSError):  # one that has ended meanwhile
            waited += int(thread.read_text().split()[1])
    return waited / 1e9


def this_machine(cpuinfo: Path = CPUINFO) -> str:
    """Return what an answer depends on: processor, its instruction sets, threads and torch.

    Virtual machines call processors of many kinds by one name.
    """
    name = platform.processor() or platform.machine()
    if cpuinfo.is_file():
        lines = cpuinfo.read_text().splitlines()
        name = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), name)
    used = torch.backends.cpu.get_cpu_capability()
    return f"{name}, {instructions.names()}, {used} used, {torch.get_num_threads()} threads, torch {torch.__version__}"


def this_card(device: torch.device) -> str:
    """Return what an answer depends on that is timed on a CUDA device: card, torch and cuDNN."""
    name, version = torch.cuda.get_device_name(device), torch.backends.cudnn.version()  # type: ignore[no-untyped-call]
    return f"{name}, torch {torch.__version__}, cuDNN {version}"


_current = Choices()


def current() -> Choices:
    """Return the choices of this process."""
    return _current


def use(choices: Choices) -> None:
    """Have all kernels that are made from now on ask `choices`."""
    global _current  # noqa: PLW0603 – a process has one model, and its layers are made by plain functions
    _current = choices
