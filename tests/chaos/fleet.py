"""R1c: three servers on one PostgreSQL behind HAProxy, while all of them, their engines and the database are killed."""

import asyncio
import collections
import contextlib
import json
import math
import os
import random
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

from server.jobs.postgres.migrations import migrate
from tests.chaos.breaking_proxy import breaking_proxy
from tests.chaos.harness import Clients, Failed, call, digest, shares, until
from tests.chaos.queue_kills import WORK_S, clients_work
from tests.support.haproxy import BOXES, balancing
from tests.support.postgres import cluster
from tests.support.server_process import APP, clean_env, free_port

FAULTS = ("box killed", "box frozen", "engine killed", "engine frozen")
LEASE_S = 2
FROZEN_S = (LEASE_S + 1.5, LEASE_S + 2.5)  # past the lease, and until another box has done the jobs
STARTED_WITHIN_S = 120.0  # three at once, on a busy machine
BROKEN = 0.05  # of the connections to the database, twice a second

# Written by a trigger in the transaction that publishes a job or lets it wait again, whichever box's it is.
WITNESS = (
    "CREATE TABLE witness (job bigint NOT NULL, what text NOT NULL)",
    """CREATE FUNCTION witness() RETURNS trigger LANGUAGE plpgsql AS $$
       BEGIN INSERT INTO witness VALUES (NEW.seq, CASE
           WHEN NEW.status = 'COMPLETED' THEN 'published'
           WHEN NEW.attempts < OLD.attempts THEN 'unheard'
           WHEN OLD.lease_until < extract(epoch FROM now()) THEN 'taken over'
           ELSE 'given back' END); RETURN NULL; END $$""",
    """CREATE TRIGGER witness AFTER UPDATE OF status ON jobs
       FOR EACH ROW WHEN (NEW.status <> 'IN_PROGRESS') EXECUTE FUNCTION witness()""",
)
_HISTORY = """
SELECT jobs.id, jobs.status, jobs.attempts, ARRAY(SELECT what FROM witness WHERE job = seq),
    (SELECT count(*) FROM events WHERE job = seq AND message LIKE 'The engine ended%')
FROM jobs
"""


class Box:
    """One of the servers: it keeps its port and its folder over its lives."""

    def __init__(self, folder, env, command):
        folder.mkdir()
        self.folder = folder
        self.port = free_port()
        self.env = env
        self._command = [*command, "--data-dir", str(folder), "--port", str(self.port), "--node", folder.name]
        self._process = None

    def start(self):
        """Start it; return when an engine serves."""
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(self._command, stderr=log, env=self.env)
        self.wait_ready()

    def wait_ready(self, but_not=None):
        """Return when an engine serves that is not process `but_not`."""

        def ready():
            if self._process.poll() is not None:
                raise Failed(self.log()[-2000:])
            with contextlib.suppress(OSError):
                health = call(self.port, "GET", "/health")[1]
                return health["state"] in {"READY", "BUSY"} and health["engines"][0]["pid"] != but_not

        until(ready, f"{self.folder.name} is ready", STARTED_WITHIN_S)

    def works(self):
        """Return whether it runs a job now."""
        return call(self.port, "GET", "/health")[1]["queue"]["running"]

    @property
    def pid(self):
        """Process id of the server."""
        return self._process.pid

    def log(self):
        """Return what it has logged."""
        return (self.folder / "log").read_text()

    def kill(self):
        """Kill the server, as a power cut does its engine too."""
        if self._process is not None and self._process.poll() is None:
            self._process.kill()
            self._process.wait()

    def freeze(self, seconds):
        """Stop the server for that long; its engine goes on."""
        self._process.send_signal(signal.SIGSTOP)
        time.sleep(seconds)
        self._process.send_signal(signal.SIGCONT)

    def stop(self):
        """Send SIGTERM and wait. Raises `Failed` if it does not exit with 0."""
        self._process.send_signal(signal.SIGTERM)
        if self._process.wait(60):
            raise Failed(self.log()[-2000:])

    def hit_engine(self, number):
        """Send the engine a signal; return when another serves."""
        pid = call(self.port, "GET", "/health")[1]["engines"][0]["pid"]
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)
        self.wait_ready(but_not=pid)


def cause(box, fault, chance):
    """Cause one fault; return when an engine of the box serves again."""
    if fault == "box killed":
        box.kill()
        box.start()
    elif fault == "box frozen":
        with contextlib.suppress(Failed):  # idle it would lose nothing
            until(box.works, f"{box.folder.name} has a job", 1)
        box.freeze(chance.uniform(*FROZEN_S))
        box.wait_ready()
    else:
        box.hit_engine(signal.SIGKILL if fault == "engine killed" else signal.SIGSTOP)


class Power(threading.Thread):
    """Kills the database and starts it again, every so many seconds, until `stop`. `cuts`: how often."""

    def __init__(self, database, every_s):
        super().__init__()
        self.cuts = 0
        self._database = database
        self._every_s = every_s
        self._stopped = threading.Event()

    def run(self):
        while not self._stopped.wait(self._every_s):
            self._database.restart()
            self.cuts += 1

    def stop(self):
        self._stopped.set()
        self.join()


@contextlib.contextmanager
def boxes_on(folder, url, count, *, work_ms=20, flags=(), **differences):
    """Context of so many running servers on one database, those of `tests.chaos.modified_server`."""
    (folder / "shared").mkdir(exist_ok=True)
    env = clean_env({"FOURSTEP_DATABASE": url, "FOURSTEP_FILES": f"file://{folder / 'shared'}"})
    command = [sys.executable, "-m", "tests.chaos.modified_server", json.dumps(differences), "serve"]
    command += ["--model", f"instant:{work_ms}", "--lease", str(LEASE_S), "--lameduck", "0", *flags]
    boxes = [Box(folder / f"box{number}", env, command) for number in range(1, count + 1)]
    try:
        with ThreadPoolExecutor(count) as pool:  # together: each takes seconds
            list(pool.map(Box.start, boxes))
        yield boxes
    finally:
        for box in boxes:
            box.kill()


def tormented(
    folder,
    jobs,
    *,
    faults=FAULTS,
    per_fault=150,
    count=BOXES,
    database_killed_every_s=15.0,
    broken=BROKEN,
    answer=b"",
    most_broken=math.inf,
    work_ms=20,
    wait_s=None,
    **differences,
):
    """Cause the `faults` in turn, one for every `per_fault` jobs and each at least once; return what was seen.

    `count`: of servers. `broken`: part of the connections to the database that is broken twice a second, at an answer
    like `answer`, until there were `most_broken`. `work_ms`: what a job takes. `wait_s`: for all to end, beyond which
    jobs count as unfinished. `differences`: those of the modified server.
    """
    chance = random.Random(jobs)
    causes = max(len(faults), jobs // per_fault) if faults else 0
    done = dict.fromkeys(faults, 0)
    with contextlib.ExitStack() as stack:
        database = stack.enter_context(cluster())
        asyncio.run(migrate(database.url()))
        asyncio.run(database.execute(*WITNESS))
        proxy = stack.enter_context(breaking_proxy(database.port, broken, answer, most_broken))
        url = database.url(port=proxy.port)
        boxes = stack.enter_context(boxes_on(folder, url, count, work_ms=work_ms, **differences))
        balancer = stack.enter_context(balancing(folder / "balancer", [f"127.0.0.1:{box.port}" for box in boxes]))
        clients = Clients(balancer.http_port, count=6)
        stack.callback(clients.close)
        power = Power(database, database_killed_every_s)
        power.start()
        try:
            for number, share in enumerate(shares(jobs, max(1, causes))):
                clients.allow(share)
                if faults:
                    fault = faults[number % len(faults)]
                    clients_work(clients, chance.uniform(*WORK_S))
                    cause(boxes[number % count], fault, chance)
                    done[fault] += 1
            ended(clients, wait_s or 60 + jobs / 5)
        finally:
            power.stop()
        clients.close()
        seen = audit(database, balancer.http_port, clients)
        with ThreadPoolExecutor(count) as pool:
            list(pool.map(Box.stop, boxes))
        tracebacks = sum(box.log().count("Traceback") for box in boxes)
    return {**done, "database_killed": power.cuts, "connections_broken": proxy.broken, **seen, "tracebacks": tracebacks}


def ended(clients, wait_s):
    """Wait until all jobs have their results, or until that time is over."""
    with contextlib.suppress(Failed):
        until(lambda: clients.left() <= 0, "every client has its results", wait_s)


def audit(database, port, clients):
    """Ask for every accepted job once more, and read the witness."""
    lost = changed = errors = 0
    for request_id, seed in clients.accepted.items():
        if request_id not in clients.results:
            continue  # counts as unfinished
        status, result = call(port, "GET", f"/queue/{APP}/requests/{request_id}")
        errors += status >= 500
        if status != 200 or result["seed"] != seed:
            lost += 1
        elif digest(status, result) != clients.results[request_id]:
            changed += 1
    rows = asyncio.run(database.fetch(database.url(), _HISTORY))
    if not rows:
        raise Failed("no job was accepted")
    stored = {row[0] for row in rows}
    seen = [collections.Counter(what) for _, _, _, what, _ in rows]
    again = sum(attempts > 1 or reruns > 0 for _, _, attempts, _, reruns in rows)
    return {
        "accepted": len(clients.accepted),
        "unanswered_submits": len(stored - clients.accepted.keys()),  # stored, but the answer was lost with a box
        "lost": lost + len(clients.accepted.keys() - stored),
        "unfinished": sum(status != "COMPLETED" for _, status, *_ in rows),
        "changed_results": changed,
        "published_twice": sum(each["published"] > 1 for each in seen),
        "never_published": sum(each["published"] == 0 for each in seen),
        "run_again_percent": round(100 * again / len(rows), 2),
        "taken_over": sum(each["taken over"] > 0 for each in seen),
        "given_back": sum(each["given back"] > 0 for each in seen),
        "rerun_by_the_pool": sum(row[4] > 0 for row in rows),
        "claims_unheard": sum(each["unheard"] for each in seen),
        "answers_5xx": clients.server_errors + errors,
    }
