"""Sections that fail on purpose: their earlier findings must be kept, and other sections must not be affected."""

import contextlib
import time


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
