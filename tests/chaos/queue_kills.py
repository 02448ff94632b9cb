"""R1 and R10: queue jobs over HTTP, while the server and its engines are killed, frozen, or told to stop."""

import itertools
import random
import signal
import statistics
import time

from tests.chaos.harness import Clients, Failed, Victim, call, digest, history, shares
from tests.support.server_process import APP

FAULTS = ("server killed", "engine killed", "engine frozen")
WORK_S = (0.1, 0.8)  # how long the clients submit and poll before each fault


def killed_under_load(folder, jobs, *, patience_s, faults=FAULTS, per_fault=150, hasty=False):
    """R1. Cause the `faults` in turn, one for every `per_fault` jobs and each at least once; return what was seen."""
    chance = random.Random(jobs)
    count = max(len(faults), jobs // per_fault)
    done = dict.fromkeys(faults, 0)
    with Victim(folder, "--model", "instant", patience_s=patience_s, hasty=hasty) as victim:
        victim.wait_ready()
        clients = Clients(victim.port)
        try:
            for fault, share in zip(itertools.cycle(faults), shares(jobs, count), strict=False):
                clients.allow(share)
                clients_work(clients, chance.uniform(*WORK_S))
                cause(victim, fault, chance)
                done[fault] += 1
            clients.join(timeout=60 + jobs / 5)
        finally:
            clients.close()
        seen = audit(victim, clients)
    return {**done, "median_start_s": round(statistics.median(victim.back_s), 2), **seen}


def drained(folder, stops, *, per_stop=40):
    """R10. SIGTERM under load, `stops` times."""
    took = []
    with Victim(folder, "--model", "instant:20") as victim:
        victim.wait_ready()
        clients = Clients(victim.port, count=8)
        chance = random.Random(stops)
        try:
            for _ in range(stops):
                clients.allow(per_stop)
                clients_work(clients, chance.uniform(*WORK_S))
                took.append(victim.stop())
                victim.start()
                victim.wait_ready()
            clients.join(timeout=60 + stops * per_stop / 5)
        finally:
            clients.close()
        seen = audit(victim, clients)
    return {"stops": stops, "slowest_stop_s": round(max(took), 2), **seen}


def clients_work(clients, seconds):
    """Return after that many seconds, or when few jobs are left."""
    end = time.monotonic() + seconds
    while time.monotonic() < end and clients.left() > 8:
        time.sleep(0.01)


def cause(victim, fault, chance):
    """Cause one fault and wait until an engine serves again: killing an idle server would show nothing."""
    if fault == "server killed":
        victim.kill()
        victim.start()
        if chance.random() < 0.3:  # again, while it still recovers
            victim.kill()
            victim.start()
        victim.wait_ready()
    else:
        number = signal.SIGKILL if fault == "engine killed" else signal.SIGSTOP
        victim.wait_ready(but_not=victim.signal_engine(number))


def audit(victim, clients):
    """Ask for every accepted job once more, end the server, and read the witness in its database."""
    lost = changed = 0
    for request_id, seed in clients.accepted.items():
        status, result = call(victim.port, "GET", f"/queue/{APP}/requests/{request_id}")
        if status != 200 or result["seed"] != seed:
            lost += 1
        elif digest(status, result) != clients.results[request_id]:
            changed += 1
    victim.stop()
    jobs = history(victim.database)
    if not jobs:
        raise Failed("no job was accepted")
    unanswered = {job.id for job in jobs} - clients.accepted.keys()
    again = sum(job.claims > 1 or job.reruns > 0 for job in jobs)
    return {
        "accepted": len(clients.accepted),
        "unanswered_submits": len(unanswered),  # stored, but the answer was lost with the server
        "lost": lost,
        "unfinished": sum(job.status != "COMPLETED" for job in jobs),
        "changed_results": changed,
        "published_twice": sum(job.published > 1 for job in jobs),
        "never_published": sum(job.published == 0 for job in jobs),
        "run_again_percent": round(100 * again / len(jobs), 2),
    }
