"""Time limit and error handling of a section: its findings are kept, however it ends."""

import contextlib
import gc
import logging
import signal
import time
import traceback

import torch

LOST = "the device is lost"


def attempt(section, bench, allowed, report, clocks):
    """Run a section, whose findings come into the report as it finds them, with how it ended."""
    found = report[section.__name__] = {"ended": "running"}
    if bench.left < 1:
        found["ended"] = "skipped: out of time"
        bench.save()
        return
    begun = time.monotonic()
    with Warnings() as warnings, clocks.beside(found):
        try:
            with at_most(min(allowed, bench.left)):
                section(bench, found)
            found["ended"] = "done"
        except (Exception, OutOfTime) as error:  # noqa: BLE001 – the other sections are worth having all the same
            traceback.print_exc()
            found["ended"] = f"{type(error).__name__}: {error}"[:500]
            if is_fault(error):
                found["ended"] = f"{LOST}: {found['ended']}"
    if warnings.lines:
        found["warnings"] = warnings.lines
    found["took_s"] = round(time.monotonic() - begun, 1)
    bench.save()
    gc.collect()
    if bench.device.type == "cuda" and not lost(found):
        torch.cuda.empty_cache()


def is_fault(error):
    """Return whether a device computes nothing after this error."""
    fault = isinstance(error, torch.AcceleratorError) or "CUDA error" in str(error)
    return fault and "out of memory" not in str(error)


def lost(found):
    return found["ended"].startswith(LOST)


class OutOfTime(BaseException):
    """A section has exceeded its time. It is no `Exception`, so that handlers in the section let it through."""


@contextlib.contextmanager
def at_most(seconds):
    """Raise `OutOfTime` within the context after the given seconds, so that the other sections keep their time."""

    def over(number, frame):
        raise OutOfTime(f"stopped after {seconds:.0f} s")

    before = signal.signal(signal.SIGALRM, over)
    signal.setitimer(signal.ITIMER_REAL, max(seconds, 0.01))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


class Warnings(logging.Handler):
    """Warnings that `pipelines` logs during a section: shapes that can't be captured."""

    def __init__(self):
        super().__init__(logging.WARNING)
        self.lines = []

    def emit(self, record):
        self.lines.append(record.getMessage()[:300])

    def __enter__(self):
        logging.getLogger("pipelines").addHandler(self)
        return self

    def __exit__(self, *exception):
        logging.getLogger("pipelines").removeHandler(self)
