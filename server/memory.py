"""The memory of this process: how much it may use, and its end when there is no more.

After a `MemoryError` nothing is known of the process: a callback of the event loop, a library in C or another thread
may have met the same and dropped what it was doing. So it ends at once, also where a single huge request was the cause,
and the service manager starts it anew, which loses nothing that was acknowledged. Sockets close with the process, and
the engines end with their sockets.
"""

import os
import resource
from pathlib import Path

EXIT_NO_MEMORY = 71
_STDERR = 2

# Made before it is needed: there is no memory to make it then.
_LAST_WORDS = (
    b"CRITICAL fourstep: there is no memory left; the process ends, to be started again by its service manager."
    b" Hint: allow it more, or lower --body-budget-bytes\n"
)

_CGROUPS = "sys/fs/cgroup"


def end_if_exhausted(error: BaseException | None) -> None:
    """End the process if `error` is a `MemoryError`."""
    if isinstance(error, MemoryError):
        try:
            os.write(_STDERR, _LAST_WORDS)
        finally:  # whoever read the log may have left
            os._exit(EXIT_NO_MEMORY)


def limit_bytes(root: Path = Path("/")) -> int | None:
    """Return the bytes that this process may use; None: no limit. `root`: where /proc and /sys are.

    It is the least of its control groups' limits and RLIMIT_AS.
    """
    soft, _ = resource.getrlimit(resource.RLIMIT_AS)
    limits = [] if soft == resource.RLIM_INFINITY else [soft]
    for file in _limit_files(root):
        try:
            text = file.read_text().strip()
        except OSError:  # no such controller, or not ours to read
            continue
        if text.isdecimal():  # not “max”
            limits.append(int(text))
    return min(limits, default=None)


def _limit_files(root: Path) -> list[Path]:
    """Return the files with the limits of this process's control groups and of those above: versions 2 and 1."""
    files = []
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:  # not Linux
        return []
    for line in lines:
        _, controllers, group = line.split(":", 2)
        if not controllers:
            top, name = root / _CGROUPS, "memory.max"
        elif "memory" in controllers.split(","):
            top, name = root / _CGROUPS / "memory", "memory.limit_in_bytes"
        else:
            continue
        inner = top / group.lstrip("/")
        # In a container the group's path may be the host's, and the mount the container's own.
        files += [folder / name for folder in (inner, *inner.parents) if folder.is_relative_to(top)]
    return files
