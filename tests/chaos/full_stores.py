"""R8c: the disk of the files that servers share, or of their database, is repeatedly filled under load and freed.

As R8 (`tests.chaos.full_disk`), of two servers on one PostgreSQL, with either in a small tmpfs. A PostgreSQL that has
ended because its log found no room is started again, as its machine would.
"""

import argparse
import asyncio
import contextlib
import json
import pwd
import sys
import threading
from pathlib import Path

from server.jobs.postgres.migrations import migrate
from tests.chaos.fleet import Box, boxes_on
from tests.chaos.full_disk import Load, audit, fill, seconds_until_it_works, with_small_disk
from tests.chaos.harness import Failed, call, until
from tests.support.postgres import USERS, cluster

SIZES = {"files": "32m", "database": "160m"}
# Refusals that must come before the disk counts as full; the control refuses nothing.
BOUND = {"files": {"upload", "run"}, "database": {"submit"}}
SETTLE_S = {False: 60.0, True: 5.0}  # for the last jobs; by whether it is the control, whose jobs never end
SMALL = ("min_wal_size=32MB", "max_wal_size=32MB", "shared_buffers=16MB")
LOOK_S = 0.5


def full_store(folder, cycles, what, **differences):
    """Run R8c with `files` or `database` on the small disk; return the figures. Raises `NoMount`."""
    # Root of the namespace, as which the mount was made, is nobody whom PostgreSQL would run for.
    user = next(pwd.getpwnam(name).pw_uid for name in reversed(USERS))
    unprivileged = ["unshare", "--user", f"--map-user={user}", f"--map-group={user}"]
    arguments = [str(folder), str(cycles), what, json.dumps(differences)]
    program = [*unprivileged, sys.executable, "-m", "tests.chaos.full_stores", *arguments]
    return with_small_disk(folder / ("shared" if what == "files" else what), SIZES[what], program)


class Keeper(threading.Thread):
    """Starts the database again when it has ended, until `stop`. `starts`: how often it has tried."""

    def __init__(self, database):
        super().__init__()
        self.starts = 0
        self._database = database
        self._stopped = threading.Event()

    def run(self):
        while not self._stopped.wait(LOOK_S):
            if not self._database.running:
                self.starts += 1
                with contextlib.suppress(AssertionError):  # there is still no room
                    self._database.start()

    def stop(self):
        self._stopped.set()
        self.join()


def fill_and_free(folder, cycles, what, differences):
    """Run all cycles and the audit, inside the namespace; return the figures."""
    disk, back_s, hasty = folder / ("shared" if what == "files" else what), [], "broken_promise" in differences
    with contextlib.ExitStack() as stack:
        database = stack.enter_context(cluster(*SMALL, disk=disk if what == "database" else None))
        asyncio.run(migrate(database.url()))
        keeper = Keeper(database)
        keeper.start()
        stack.callback(keeper.stop)
        boxes = stack.enter_context(boxes_on(folder, database.url(), 2, work_ms=5, **differences))
        began = [pids(box) for box in boxes]
        load = Load(boxes[0].port)
        try:
            for _ in range(cycles):
                fullest = fill(disk, load, set() if hasty else BOUND[what])
                (disk / "ballast").unlink()
                back_s.append(seconds_until_it_works(boxes[0].port))
        finally:
            load.close()
        with contextlib.suppress(Failed):  # jobs left then count as unfinished
            until(lambda: not any(map(busy, boxes)), "the queue is worked off", SETTLE_S[hasty])
        seen = audit(boxes[1], load)
        ended = [pids(box) for box in boxes]
        query = "SELECT count(*) FROM jobs WHERE status <> 'COMPLETED'"
        ((unfinished,),) = asyncio.run(database.fetch(database.url(), query))
        for box in boxes:
            box.stop()
    return {
        "cycles": cycles,
        "free_when_full": fullest,
        "slowest_return_s": round(max(back_s), 2),
        "restarts": sum(before != after for before, after in zip(began, ended, strict=True)),
        "database_starts": keeper.starts,
        **seen,
        "unfinished": unfinished,
        "tracebacks": sum(box.log().count("Traceback") for box in boxes),
    }


def pids(box: Box):
    """Return the process ids of a server and of its engine."""
    return box.pid, call(box.port, "GET", "/health")[1]["engines"][0]["pid"]


def busy(box: Box):
    """Return whether jobs wait or run."""
    return any(call(box.port, "GET", "/health")[1]["queue"].values())


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("cycles", type=int)
    parser.add_argument("what", choices=BOUND)
    parser.add_argument("differences", type=json.loads)
    asked = parser.parse_args()
    print(json.dumps(fill_and_free(asked.folder, asked.cycles, asked.what, asked.differences)))


if __name__ == "__main__":
    main()
