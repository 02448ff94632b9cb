"""A server whose machine's clock is wrong: the environment in which the C library gives a process another time.

libfaketime breaks Python's `time.sleep`, which waits by the monotonic clock until a time; here that clock stays true.
"""

import shutil
import subprocess
from pathlib import Path

COMPILER = shutil.which("g++")

_SOURCE = r"""
#include <cstdlib>
#include <ctime>
#include <sys/syscall.h>
#include <sys/time.h>
#include <unistd.h>

static long off() {
    static const long seconds = atol(getenv("CLOCK_OFF_BY"));
    return seconds;
}

extern "C" int clock_gettime(clockid_t clock, timespec *now) noexcept {
    const int failed = syscall(SYS_clock_gettime, clock, now);
    if (!failed && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE)) now->tv_sec += off();
    return failed;
}

extern "C" int gettimeofday(timeval *now, void *) noexcept {
    timespec exact;
    const int failed = clock_gettime(CLOCK_REALTIME, &exact);
    *now = {exact.tv_sec, exact.tv_nsec / 1000};
    return failed;
}

extern "C" time_t time(time_t *told) noexcept {
    timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (told) *told = now.tv_sec;
    return now.tv_sec;
}
"""


def library(folder: Path) -> Path:
    """Make the library that `off_by` needs, in this folder."""
    assert COMPILER
    made = folder / "wrong_clock.so"
    command = [COMPILER, "-shared", "-fPIC", "-O1", "-x", "c++", "-", "-o", str(made)]
    subprocess.run(command, input=_SOURCE, text=True, check=True)
    return made


def off_by(made: Path, seconds: int) -> dict[str, str]:
    """Return the variables of a process whose clock is off by so many seconds. Waits, and files' times, stay true."""
    return {"LD_PRELOAD": str(made), "CLOCK_OFF_BY": str(seconds)}
