"""R8: the disk is repeatedly filled under load and freed; what was acknowledged must be there and undamaged.

The server's data folder is a tmpfs of 64 MB in its own mount namespace. This module runs as a program inside it,
started by `full_disk`. In each cycle a ballast file leaves little room; queue jobs, uploads and stored results fill the
rest and are still tried while nothing fits; then the ballast is deleted.
"""

import argparse
import contextlib
import http.client
import itertools
import json
import os
import random
import shutil
import sqlite3
import subprocess
import sys
import threading
import time
from pathlib import Path

from tests.chaos.harness import POLL_S, Failed, Victim, history, until
from tests.support.server_process import APP

SIZE = "64m"
LEFT = 2 * 1024 * 1024  # bytes that the ballast leaves for the load to fill
SETTLE_S = {False: 60.0, True: 3.0}  # for the last jobs; by whether it is the control, whose jobs never end
FULL_S = 1.5  # how long the load continues on a full disk
WORKERS = 3  # of each kind
PADDING = 40_000  # bytes of an input, and of an upload
KINDS = frozenset({"submit", "upload", "run"})
FINE = (200, 202, 429)  # any other answer is a fault

IN_NAMESPACE = 'mount -t tmpfs -o size="$0" fourstep "$1" && shift && exec "$@"'


class NoMount(Exception):
    """No mount can be made on this machine."""


def full_disk(folder, cycles, **differences):
    """Run R8 in a namespace with the small disk; return the figures. Raises `NoMount`."""
    program = [sys.executable, "-m", "tests.chaos.full_disk", str(folder), str(cycles), json.dumps(differences)]
    return with_small_disk(folder / "disk", SIZE, program)


def with_small_disk(disk, size, program):
    """Run a program that finds a small file system at `disk`, which is made; return the JSON that it prints.

    Raises `NoMount`.
    """
    disk.mkdir()
    namespace = ["unshare", "--mount", "--map-root-user", "sh", "-c", IN_NAMESPACE, size, str(disk)]
    try:
        subprocess.run([*namespace, "true"], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise NoMount(error) from error
    return json.loads(subprocess.run([*namespace, *program], stdout=subprocess.PIPE, check=True).stdout)


class Load:
    """Threads that submit jobs, upload files and run requests until closed, and record acknowledgements and refusals.

    `jobs`: request id → seed. `files`: URL path → bytes. `refused`: kind → answers of 429. `faults`: any other refusal.
    """

    def __init__(self, port):
        self.jobs, self.files = {}, {}
        self.refused = dict.fromkeys(KINDS, 0)
        self.faults = []
        self._port = port
        self._seeds = itertools.count(1)
        self._over, self._going = threading.Event(), threading.Event()
        self._resting = 0
        self._lock = threading.Lock()
        kinds = [self._submit, self._upload, self._run] * WORKERS
        self._threads = [threading.Thread(target=self._work, args=[kind]) for kind in kinds]
        for thread in self._threads:
            thread.start()

    def go(self):
        self._going.set()

    def rest(self):
        """Pause the load; return when no call is in flight."""
        self._going.clear()
        until(lambda: self._resting == len(self._threads), "the load rests")

    def close(self):
        self._over.set()
        self._going.set()
        for thread in self._threads:
            thread.join()

    def _work(self, kind):
        with self._lock:
            self._resting += 1
        while self._going.wait() and not self._over.is_set():
            with self._lock:
                self._resting -= 1
            while self._going.is_set() and not self._over.is_set():
                self._count(kind.__name__.strip("_"), kind())
                time.sleep(POLL_S)
            with self._lock:
                self._resting += 1

    def _count(self, what, status):
        with self._lock:
            self.refused[what] += status == 429
            if status not in FINE:
                self.faults.append(f"{what}: {status}")

    def _submit(self):
        seed = next(self._seeds)
        status, answer = call(self._port, "POST", f"/queue/{APP}", picture(seed))
        if status == 200:
            self.jobs[json.loads(answer)["request_id"]] = seed
        return status

    def _upload(self):
        content = random.randbytes(PADDING)
        status, answer = call(self._port, "POST", "/cdn/files/upload", content)
        if status == 200:
            self.files[path_of(json.loads(answer)["access_url"])] = content
        return status

    def _run(self):
        status, answer = call(self._port, "POST", f"/run/{APP}", picture(next(self._seeds)))
        if status == 200:
            self.files[path_of(json.loads(answer)["images"][0]["url"])] = None
        return status


def picture(seed):
    """Return an input of `PADDING` bytes, which an instant engine does not decode."""
    return json.dumps({"prompt": "", "image_url": "data:image/jpeg;base64," + "A" * PADDING, "seed": seed}).encode()


def path_of(url):
    return "/" + url.split("/", 3)[3]


def call(port, method, path, body=None):
    """Return status and body of one call; 0 if the connection broke, 599 if an error is not in fal's format."""
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=60)) as connection:
        try:
            connection.request(method, path, body, {"Content-Type": "application/json"})
            answer = connection.getresponse()
            content = answer.read()
        except (OSError, http.client.HTTPException):
            return 0, b""
    if answer.status >= 400 and "detail" not in json.loads(content):
        return 599, content
    return answer.status, content


def fill_and_free(folder, cycles, differences):
    """Run all cycles and the audit, inside the namespace; return the figures."""
    disk, back_s, hasty = folder / "disk", [], "hasty" in differences
    bound = KINDS - {"submit"} if hasty else KINDS  # hasty submits do not notice a full disk
    victim = Victim(disk, "--model", "instant:5", **differences)
    victim.log = folder / "log"
    with victim:
        victim.wait_ready()
        pid = victim.health()["engines"][0]["pid"], victim._process.pid
        load = Load(victim.port)
        try:
            for _ in range(cycles):
                fullest = fill(disk, load, bound)
                (disk / "ballast").unlink()
                back_s.append(seconds_until_it_works(victim.port))
        finally:
            load.close()
        with contextlib.suppress(Failed):  # jobs left then count as lost
            idle = {"waiting": 0, "running": 0}
            until(lambda: victim.health()["queue"] == idle, "the queue is worked off", SETTLE_S[hasty])
        same = pid == (victim.health()["engines"][0]["pid"], victim._process.pid)
        seen = audit(victim, load)
        victim.stop()
    return {
        "cycles": cycles,
        "free_when_full": fullest,
        "slowest_return_s": round(max(back_s), 2),
        "restarts": int(not same),
        **seen,
        **inspect_stopped(victim),
    }


def fill(disk, load, bound):
    """Fill the disk until each kind of call in `bound` has been refused; return the bytes still free.

    Without any, until not one more picture fits.
    """
    free = shutil.disk_usage(disk).free
    with (disk / "ballast").open("wb") as ballast:
        os.posix_fallocate(ballast.fileno(), 0, max(free - LEFT, 4096))
    before = dict(load.refused)
    load.go()

    def full():
        if not bound:
            return shutil.disk_usage(disk).free < PADDING
        return all(load.refused[kind] > before[kind] for kind in bound)

    until(full, "the disk is full to every kind of call")
    time.sleep(FULL_S)
    load.rest()
    return shutil.disk_usage(disk).free


def seconds_until_it_works(port):
    """Return the seconds until a job, an upload and a run have each been accepted and answered."""
    began = time.monotonic()
    probe = Load(port)
    probe.go()
    try:
        until(lambda: probe.jobs and len(probe.files) > 1, "it works again")
        probe.rest()  # on a slow machine it would fill the disk again
        request_id = next(iter(probe.jobs))
        until(lambda: call(port, "GET", f"/queue/{APP}/requests/{request_id}")[0] == 200, "a job is answered again")
    finally:
        probe.close()
    return time.monotonic() - began


def audit(victim, load):
    """Request everything that was acknowledged; return the counts of lost and damaged items."""
    lost = wrong = 0
    for request_id, seed in load.jobs.items():
        status, content = call(victim.port, "GET", f"/queue/{APP}/requests/{request_id}")
        answer = json.loads(content)
        if status != 200 or answer["seed"] != seed:
            lost += 1
        else:
            load.files[path_of(answer["images"][0]["url"])] = None
    for path, content in load.files.items():
        status, found = call(victim.port, "GET", path)
        lost += status != 200
        wrong += status == 200 and (found != content if content is not None else not whole_jpeg(found))
    return {
        "jobs": len(load.jobs),
        "files": len(load.files),
        "refusals": sum(load.refused.values()),
        "lost": lost,
        "damaged": wrong,
        "wrong_answers": len(load.faults),
    }


def whole_jpeg(content):
    return content.startswith(b"\xff\xd8") and content.endswith(b"\xff\xd9")


def inspect_stopped(victim):
    """Return the figures of the database and the log of a stopped server."""
    with contextlib.closing(sqlite3.connect(victim.database)) as connection:
        [(verdict,)] = connection.execute("PRAGMA integrity_check").fetchall()
    jobs = history(victim.database)
    return {
        "corrupt": int(verdict != "ok"),
        "published_twice": sum(job.published > 1 for job in jobs),
        "never_published": sum(job.published == 0 for job in jobs),
        "tracebacks": victim.log.read_text().count("Traceback"),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("cycles", type=int)
    parser.add_argument("differences", type=json.loads)
    asked = parser.parse_args()
    print(json.dumps(fill_and_free(asked.folder, asked.cycles, asked.differences)))


if __name__ == "__main__":
    main()
