"""Groups of sections in processes of their own. Imports no torch: what starts groups must not touch the device."""

import contextlib
import importlib
import json
import multiprocessing
import os
import signal
import time

# For what does not look at the time: a call of the driver that does not return.
GRACE = 5


def run(name, box, options):
    """Run a group in a process of its own for at most `box` seconds; return its report, whatever has become of it."""
    begun = time.time()
    print(f"== group {name}, at most {box:.0f} s", flush=True)
    context = multiprocessing.get_context("fork" if options.short else "spawn")
    process = context.Process(target=run_group, args=(name, begun + box, options))
    process.start()
    try:
        process.join(box + GRACE)
        late = process.is_alive()
    finally:
        kill_all_of(process)
    ended = f"killed after {time.time() - begun:.0f} s" if late else "done"
    if process.exitcode and not late:
        ended = f"died: status {process.exitcode}"
    file = options.out / f"{name}.json"
    report = json.loads(file.read_text()) if file.exists() else {}
    report |= {"ended": ended, "took_s": round(time.time() - begun, 1)}
    file.write_text(json.dumps(report, indent=2) + "\n")
    print(f"== group {name}: {ended}, {report['took_s']} s", flush=True)
    return report


def run_group(name, until, options):
    """Run a group in this process, which leads a group of processes: compilers start some."""
    os.setsid()
    importlib.import_module("benchmarks.gpu.group").run(name, until, options)


def kill_all_of(process):
    """End a process and all that it has started."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.kill()  # before it leads a group
    process.join()
