"""R4: malformed requests to every route and websocket; the server must refuse them and go on serving.

    python -m tests.fuzz [--cases 20000] [--seed 1] [--replay NUMBER]

The target is a real server process on loopback, with the real image decoder and no model. Case NUMBER of a seed is
always the same bytes, except for the ids, tokens and names that the server has assigned. What must hold:

    no answer of 5xx, neither in websocket messages nor in the results of queued jobs
    no error in the server's log
    every request is answered and every websocket ends; errors are JSON with a `detail`; every answer has a request id
    API and engine processes together grow by less than 100 MB; no engine is restarted
    the server answers a valid request as before

Control: a server with one route that crashes must be detected. Prints a table; the last line is JSON; exits 1 if a
bound does not hold. `--replay` sends one case alone and shows both sides of it.
"""

import argparse
import asyncio
import collections
import contextlib
import dataclasses
import http.client
import json
import os
import random
import re
import sqlite3
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

from server.app import ROUTES
from server.cli.launcher import RUN_FILE, Server
from tests.fuzz import http_cases, values, websocket_cases
from tests.fuzz.oracle import Conversation, Findings
from tests.support.server_process import APP, clean_env, until

AT_ONCE = 32
GROWTH_MB = 100
WARM_UP = 0.1  # share of the cases after which libraries are loaded and allocators filled

# Short, so that incomplete requests are soon refused.
DEADLINES = ("--header-timeout", "1", "--body-timeout", "1", "--session-idle-timeout", "1", "--ping-interval", "1")

# Bounds of the figures.
BOUNDS = {
    "faults": ("= 0", lambda value: value == 0),
    "routes_missed": ("= 0", lambda value: value == 0),
    "failed_jobs": ("= 0", lambda value: value == 0),
    "engine_restarts": ("= 0", lambda value: value == 0),
    "memory_grown_mb": (f"< {GROWTH_MB}", lambda value: value < GROWTH_MB),
    "works_after": ("= 1", lambda value: value == 1),
    "control_faults": ("≥ 1", lambda value: value >= 1),
}


@dataclasses.dataclass(frozen=True)
class Case:
    """One connection: `opening` is sent, then `frames` if it becomes a websocket. `owed`: the frames need an answer."""

    number: int
    opening: bytes
    frames: bytes = b""
    owed: bool = False


def case(seed, number, live):
    """Return case `number` of `seed`."""
    rng = random.Random(f"{seed}/{number}")
    turn, every_third = divmod(number, 3)
    if every_third == 0:
        return Case(number, http_cases.request(rng, live, http_cases.HTTP_ROUTES[turn % len(http_cases.HTTP_ROUTES)]))
    if rng.random() < 0.6:
        return Case(number, http_cases.request(rng, live, rng.choice(http_cases.BUSY)))
    broken = rng.random() < 0.3
    opening = websocket_cases.handshake(rng, live, broken=broken)
    frames, owed = websocket_cases.conversation(rng, json_only=websocket_cases.RUN_OVER_SOCKET in opening)
    return Case(number, opening, frames, owed and not broken)


# --- the server


@contextlib.contextmanager
def attacked(folder, **differences):
    """Yield the server, with `differences` of `tests.fuzz.isolated_server`."""
    command = [sys.executable, "-m", "tests.fuzz.isolated_server", json.dumps(differences), "serve"]
    command += ["--data-dir", str(folder), "--port", "0", "--model", "instant+jpeg", *DEADLINES]
    with (folder / "log").open("ab") as log:
        process = subprocess.Popen(command, stderr=log, env=clean_env({"FOURSTEP_KEYS": http_cases.KEY}))
    try:
        until(lambda: (folder / RUN_FILE).exists() or process.poll() is not None)
        bound = json.loads((folder / RUN_FILE).read_text())
        server = Server(process, folder, bound["url"], bound["tls_url"])
        server.wait_ready()
        yield server
    finally:
        process.terminate()
        process.wait(30)


def call(server, method, path, body=None):
    """Return status and JSON of one valid call."""
    headers = {"Authorization": f"Key {http_cases.KEY}", "Content-Type": "application/json"}
    with contextlib.closing(http.client.HTTPConnection(server.host, timeout=60)) as connection:
        connection.request(method, path, body if isinstance(body, bytes) else json.dumps(body), headers)
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read())


def live_values(server):
    """Return the values of the route table's placeholders on this server."""
    _, upload = call(server, "POST", "/rest/storage/upload/initiate", {"content_type": "image/jpeg"})
    path, _, token = upload["upload_url"].removeprefix(server.url).partition("?ticket=")
    call(server, "PUT", f"{path}?ticket={token}", values.pictures()["jpeg"])
    _, job = call(server, "POST", f"/queue/{APP}", values.fields(random.Random(0), broken=False))
    return {
        "{app:path}": APP,
        "{request_id}": job["request_id"],
        "{name}": path.rpartition("/")[2],
        "{name:path}": "page/app.js",
        "{ticket}": token,
        "{number}": "1",
        "{rest:path}": "meta",
        "{host}": server.host,
    }


def memory_mb(server):
    """Return the resident memory of API and engine processes, in MB."""
    pids = [server.pid, *(engine["pid"] for engine in server.get("/health")["engines"])]
    pages = sum(int(Path(f"/proc/{pid}/statm").read_text().split()[1]) for pid in pids)
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def works(server):
    """Return whether a valid request succeeds."""
    status, answer = call(server, "POST", f"/run/{APP}", values.fields(random.Random(0), broken=False))
    return status == 200 and len(answer["images"]) >= 1


def failed_jobs(server):
    """Return the number of queued jobs that ended with 5xx."""
    with contextlib.closing(sqlite3.connect(server.data_dir / "jobs.sqlite")) as connection:
        return connection.execute("SELECT count(*) FROM jobs WHERE result_status >= 500").fetchone()[0]


def missed_routes(server):
    """Return the handlers of the route table that have answered nothing."""
    with urllib.request.urlopen(f"{server.url}/metrics") as answer:
        reached = set(re.findall(r'fourstep_requests_total{route="(\w+)"', answer.read().decode()))
    return sorted({route.endpoint.__name__ for route in ROUTES} - reached)


# --- the attack


async def attack(server, cases, findings):
    """Send the cases, `AT_ONCE` at a time."""
    coming = iter(cases)

    async def work():
        for one in coming:
            findings.begin(one)
            await hold(server, one, findings)
            findings.end(one)

    async with asyncio.TaskGroup() as group:
        for _ in range(AT_ONCE):
            group.create_task(work())


async def hold(server, one, findings):
    """Run one conversation; return the bytes received."""
    conversation = Conversation(int(server.host.rpartition(":")[2]), one, findings)
    await conversation.hold()
    return bytes(conversation.heard)


def fuzzed(folder, seed, numbers, **differences):
    """Send these cases to a new server; return the figures and the findings."""
    began = time.monotonic()
    warm_up = int(len(numbers) * WARM_UP)
    with attacked(folder, **differences) as server:
        live = live_values(server)
        findings = Findings(folder / "log")
        asyncio.run(attack(server, (case(seed, number, live) for number in numbers[:warm_up]), findings))
        before = memory_mb(server)
        asyncio.run(attack(server, (case(seed, number, live) for number in numbers[warm_up:]), findings))
        until(lambda: server.get("/health")["queue"] == {"waiting": 0, "running": 0})
        asyncio.run(findings.pin(lambda number: hold(server, case(seed, number, live), findings)))
        engines, missed = server.get("/health")["engines"], missed_routes(server)
        figures = {
            "cases": len(numbers),
            "memory_grown_mb": round(memory_mb(server) - before, 1),
            "routes_missed": " ".join(missed) or 0,
            "failed_jobs": failed_jobs(server),
            "engine_restarts": sum(engine["restarts"] for engine in engines),
            "works_after": int(works(server)),
        }
    kinds = collections.Counter(kind for kind, *_ in findings.found)
    return {
        **figures,
        "cases_per_s": round(len(numbers) / (time.monotonic() - began)),
        "faults": len(findings.found),
        **{f"faults: {kind}": count for kind, count in kinds.items()},
        **{f"answers {status}": count for status, count in sorted(findings.answers.items())},
    }, findings


def main():
    """Run the cases, then the control."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--replay", type=int, help="the number of one case")
    asked = parser.parse_args()
    if asked.replay is not None:
        replay(asked.seed, asked.replay)
        return
    with tempfile.TemporaryDirectory(prefix="fourstep-fuzz-") as folder:
        figures, findings = fuzzed(Path(folder), asked.seed, range(asked.cases))
    with tempfile.TemporaryDirectory(prefix="fourstep-fuzz-") as folder:
        control, _ = fuzzed(Path(folder), asked.seed, range(200), crashing=True)
    figures["control_faults"] = control["faults"]
    held = True
    for name, value in figures.items():
        bound, good = BOUNDS.get(name, ("", None))
        verdict = "" if good is None else "holds" if good(value) else "BROKEN"
        held = held and verdict != "BROKEN"
        print(f"{name:<32}{value:>8}   {bound:<6} {verdict}")
    findings.show(f"python -m tests.fuzz --seed {asked.seed} --replay")
    print(json.dumps({"benchmark": "fuzz", "seed": asked.seed, "held": held, **figures}))
    sys.exit(0 if held else 1)


def replay(seed, number):
    """Send one case alone; print what is sent, received and logged."""
    with tempfile.TemporaryDirectory(prefix="fourstep-fuzz-") as folder, attacked(Path(folder)) as server:
        findings = Findings(Path(folder) / "log")
        one = case(seed, number, live_values(server))
        print("sent:", one.opening, one.frames, sep="\n")
        print("heard:", asyncio.run(hold(server, one, findings)), sep="\n")
        findings.show("of case")
        print("logged:", findings.logged(), sep="\n")


if __name__ == "__main__":
    main()
