"""N1–N8: a good client beside neighbours and strangers who take all they can get.

    python -m tests.chaos.neighbours [--only status] [--rounds 3] [--seconds 8]        (--rounds 1 is the short form)

For each attack of `tests/chaos/attacks/`, a server with default limits and two keys, on an engine without a model. The
good client makes one run after the other, each on a new connection, and a probe asks `/health`. The attack has the
other key or none, and runs in a process of its own at the lowest CPU priority, as if on another machine. Cases:

    alone       before the attack
    attacked    under it, in turn with `alone`: p99 at most twice that of `alone`, and no call refused
    control     once, on a server without the protection: p99 at least twice, calls refused, or the attack's own harm

A call that is not answered 200 within ten seconds is refused. The short form judges p50, as a single late answer would
decide its p99. Prints a table; the last line is JSON; exits 1 if a bound does not hold.
"""

import argparse
import asyncio
import contextlib
import dataclasses
import importlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from tests.chaos.attack import Target
from tests.chaos.good_client import GOOD, Seen, observed, picture_server, run_of, stored_picture, tried
from tests.chaos.harness import Failed, Victim, until
from tests.fuzz.values import data_uri_of, pictures

BAD = "bad:b"
FLAGS = ("--model", "instant+jpeg", "--keys", f"{GOOD},{BAD}", "--allow-net", "127.0.0.0/8")
UNDER_WAY_S = 60.0  # an attack prepares its pictures, or its thousand connections
FULL_ROUNDS = 3
WORSE = 2.0
HARM = 10


def attacks():
    """Return all attacks, in the order of their modules' names."""
    names = sorted(path.stem for path in (Path(__file__).parent / "attacks").glob("*.py"))
    return [attack for name in names for attack in importlib.import_module(f"tests.chaos.attacks.{name}").ATTACKS]


# --- the attack


@contextlib.contextmanager
def under(attack, victim):
    """Run an attack in a process of its own; yield its lines once it is under way."""
    command = [sys.executable, "-m", "tests.chaos.neighbours", "--attack", attack.name, str(victim.port)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    said, under_way = [], threading.Event()

    def listen():
        for line in process.stdout:
            said.append(line)
            under_way.set()

    listener = threading.Thread(target=listen)
    listener.start()
    try:
        if not under_way.wait(UNDER_WAY_S):
            raise Failed(f"{attack.name}: not under way within {UNDER_WAY_S:.0f} s")
        yield said
        if process.poll() is not None:
            raise Failed(f"{attack.name}: ended by itself")
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(UNDER_WAY_S)
        listener.join()


async def attack_until_told(run, target):
    """Attack until SIGTERM."""
    attacking = asyncio.ensure_future(run(target))
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, attacking.cancel)
    with contextlib.suppress(asyncio.CancelledError):
        await attacking
    sys.stdout.flush()
    os._exit(0)  # its thousand connections end with the process


# --- the cases


def measured(attack, rounds, seconds):
    """Return what was seen by case, and the attack's own last report."""
    cases = {case: Seen() for case in ("alone", "attacked", "control")}
    reports = {}

    def take(case, port, request):
        seen = asyncio.run(observed(port, request, seconds))
        for field in dataclasses.fields(Seen):
            setattr(cases[case], field.name, getattr(cases[case], field.name) + getattr(seen, field.name))

    def request_to(port, named):
        picture = {"inline": lambda: data_uri_of(pictures()["jpeg"]), "named": lambda: named}
        return run_of(picture.get(attack.good, lambda: stored_picture(port))())

    with picture_server() as named:
        with victim(*attack.flags, **attack.changes) as server:
            request = request_to(server.port, named)
            asyncio.run(observed(server.port, request, 1.0))  # to warm up
            for _ in range(rounds):
                recovered(server, request)
                take("alone", server.port, request)
                with under(attack, server) as said:
                    take("attacked", server.port, request)
                reports["attacked"] = report_in(said)
        with victim(*attack.flags, *attack.control_flags, **attack.control_changes) as server:
            request = request_to(server.port, named)
            with under(attack, server) as said:
                take("control", server.port, request)
            reports["control"] = report_in(said)
    return cases, {case: report for case, report in reports.items() if report}


@contextlib.contextmanager
def victim(*flags, **differences):
    """Yield a server whose engine is ready."""
    with (
        tempfile.TemporaryDirectory(prefix="fourstep-neighbours-") as folder,
        Victim(Path(folder), *FLAGS, *flags, **differences) as server,
    ):
        server.wait_ready()
        yield server


def recovered(server, request):
    """Return once the good client is served again."""
    until(lambda: asyncio.run(tried(server.port, request)), "the server has recovered")


def report_in(said):
    """Return what an attack reported in JSON at its end, None if nothing."""
    return json.loads(said[-1]) if said and said[-1].startswith("{") else None


def judged(cases, harmed, *, full):
    """Return for each case its row of figures, and whether the row is as it must be.

    `harmed`: whether the control did the attack's own harm.
    """
    rows = {}
    q = 0.99 if full else 0.5
    for case, seen in cases.items():
        worse = seen.quantile(q) / cases["alone"].quantile(q)
        refused = seen.refused + seen.probes_refused
        slowest = seen.quantile(0.99) / cases["alone"].quantile(0.99)
        good = {"attacked": worse <= WORSE and not refused, "control": slowest >= WORSE or refused > 0 or harmed}
        rows[case] = {
            "runs": len(seen.walls),
            "refused": seen.refused,
            "probes": seen.probes,
            "probes_refused": seen.probes_refused,
            "p50_ms": seen.quantile(0.5),
            "p99_ms": seen.quantile(0.99),
            "p99_ratio": round(slowest, 2),
            "holds": good.get(case, not refused),
        }
    return rows


def main():
    """Run the attacks one after the other; print each one's table as it ends."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", default=[""], help="run the attacks whose names begin with one of these")
    parser.add_argument("--rounds", type=int, default=FULL_ROUNDS)
    parser.add_argument("--seconds", type=float, default=8)
    parser.add_argument("--attack", nargs=2, metavar=("NAME", "PORT"), help="be the attacker of one attack")
    asked = parser.parse_args()
    if asked.attack:
        name, port = asked.attack
        [attack] = [one for one in attacks() if one.name == name]
        os.nice(19)
        target = Target(port=int(port), key=BAD)
        asyncio.run(attack_until_told(attack.run, target))
        return
    chosen = [attack for attack in attacks() if attack.name.startswith((*asked.only,))]
    if not chosen:
        parser.error(f"no attack's name begins with any of {asked.only}")
    report, held, load = {}, True, os.getloadavg()[0]
    for attack in chosen:
        began = time.monotonic()
        cases, said = measured(attack, asked.rounds, asked.seconds)
        harmed = attack.harm and said["control"][attack.harm] >= HARM * said["attacked"][attack.harm]
        rows = judged(cases, harmed, full=asked.rounds >= FULL_ROUNDS)
        print(f"{attack.name} ({time.monotonic() - began:.0f} s)")
        for case, row in rows.items():
            held = held and row["holds"]
            probes = f"/health refused {row['probes_refused']:>3} of {row['probes']:>3}"
            times = f"p50 {row['p50_ms']:>8} ms, p99 {row['p99_ms']:>8} ms ({row['p99_ratio']}×)"
            verdict = "" if row["holds"] else "   BROKEN"
            print(
                f"    {case:<10}{row['runs']:>6} runs, refused {row['refused']:>4}; {probes}; {times}{verdict}",
                flush=True,
            )
        for case, figures in said.items():
            print(f"    {case}: {json.dumps(figures)}", flush=True)
        report[attack.name] = {"cases": rows, "said": said}
    print(json.dumps({"benchmark": "neighbours", "load_before": round(load, 1), "held": held, "attacks": report}))
    sys.exit(0 if held else 1)


if __name__ == "__main__":
    main()
