"""Sections that fail on purpose: their earlier findings must be kept, and other sections must not be affected."""

import contextlib
import os
import signal
import time

from benchmarks.gpu.parts import in_new_thread


def fails(bench, found):
    """Raise an exception."""
    found["before"] = 1
    raise ValueError("no")


def hangs(bench, found):
    """Exceed the time limit in code that catches exceptions, as compilers do."""
    found["before"] = 2
    with contextlib.suppress(Exception):
        time.sleep(60)
    found["after"] = 2


def is_late_in_a_thread(bench, found):
    """Exceed the time limit while a thread is at work."""

    def work():
        time.sleep(0.5)
        found["thread"] = "ended"

    in_new_thread(work)


def loses_the_device(bench, found):
    """Raise what torch raises for a device that computes nothing any more."""
    found["before"] = 3
    raise RuntimeError("CUDA error: an illegal memory access was encountered")


def never_ends(bench, found):
    """Wait in a call that no signal interrupts, as the driver's may be."""
    found["before"] = 4
    bench.save()
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGALRM})
    os.read(os.pipe()[0], 1)
