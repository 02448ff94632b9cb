"""The tie of a process to the one that started it. For processes that are told over a socket what to do."""

import ctypes
import signal
import sys

# linux/prctl.h: the signal that a process gets when its parent dies.
PR_SET_PDEATHSIG = 1


def follow_parent() -> None:
    """Never outlive the parent, and end only when the parent says so.

    The signals that a terminal or a service manager sends to the whole group are ignored. The end of the socket's
    stream ends the process too, on every system, but only once it reads.
    """
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
