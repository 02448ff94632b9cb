"""The most memory that this process has held. Not `ru_maxrss`: on Linux a child begins with its parent's."""

import re
import resource
import sys
from pathlib import Path

STATUS = Path("/proc/self/status")
CLEAR = Path("/proc/self/clear_refs")


def megabytes() -> float:
    """The peak so far, in MB."""
    if STATUS.exists():
        return int(re.search(r"VmHWM:\s+(\d+) kB", STATUS.read_text())[1]) / 1024
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return used / (1024 * 1024 if sys.platform == "darwin" else 1024)


def restart() -> None:
    """Measure from now on, where the system can."""
    if CLEAR.exists():
        CLEAR.write_text("5")
