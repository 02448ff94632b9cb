"""Processor seconds and memory of a process, as Linux tells them. Imports nothing heavy."""

import os
from pathlib import Path


def processor_seconds(pid):
    """Return user and system seconds of a process so far; 0 where there is no /proc."""
    stat = Path(f"/proc/{pid}/stat")
    if not stat.exists():
        return 0.0
    fields = stat.read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def memory(pid):
    """Return peak and anonymous resident memory of a process, in GB; empty where there is no /proc."""
    status = Path(f"/proc/{pid}/status")
    if not status.exists():
        return {}
    fields = dict(line.split(":", 1) for line in status.read_text().splitlines())
    return {f"{name}_gb": int(fields[key].split()[0]) / 1e6 for name, key in (("peak", "VmHWM"), ("own", "RssAnon"))}


def memory_mib(pid):
    """Return the resident memory of a process, shared pages included, in MiB."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20
