"""Fault injection: each guarantee of the server under its fault, and controls in which it must fail.

    python -m tests.chaos [--jobs 2000]        (--jobs 150 is the short form, with fewer controls)
    python -m tests.chaos --fleet              R1c and R13 alone

R1   queue jobs over HTTP while the server is SIGKILLed and engines are SIGKILLed and SIGSTOPped. Controls: submits
     answered before they are on disk must lose some; workers without the fence must publish some twice.
     The same with the server frozen past every lease, ping and deadline. Control: a server that renews its leases too
     late must run jobs again.
R1c  the same of three servers behind HAProxy on one PostgreSQL, which is SIGKILLed too and whose answers are lost.
     Controls: without the fence some must be published twice; a heartbeat by the server's name must keep a job for
     ever whose claim went unheard; results judged by what was last heard must change. The first two have
     a counterpart under the very same faults: the fence alone, and the server as it ships.
R2   requests that make the engine fail, hang and die, batched with others. Control: without a second try others must
     fail too.
R3   webhooks to failing and hanging receivers while the server is SIGKILLed. Controls: without retries some must stay
     undelivered; a changed body must not pass for signed.
R3c  the same of three servers behind HAProxy on one PostgreSQL. Control: without the lease some must come twice.
R8   a disk that fills up under load and is freed, with jobs, uploads and results. Control: submits answered before they
     are on disk must lose some. Skipped, with a message, where no mount can be made.
R8c  the same with the files that two servers share on that disk, or their PostgreSQL. Control: submits and files that
     are answered before they are stored.
R10  SIGTERM under load.
R10c three servers on one PostgreSQL behind HAProxy, restarted in turn under runs, sockets, jobs and streams. The same
     with a balancer that tries no other box.
     Control: then some calls must fail without the lame duck.
R13  three servers on one PostgreSQL behind HAProxy, upgraded in turn from the first release for several, led back, and
     upgraded again after a step of the next release's schema. Control: a step that serves no release before its own
     must leave clients unserved.

All of it uses loopback and `--model instant`. Prints a table; the last line is JSON; exits 1 if a bound does not hold.
"""

import argparse
import json
import operator
import os
import sys
import tempfile
import time
from pathlib import Path

from pipelines.messages import PATIENCE_S
from tests.chaos import engine_faults
from tests.chaos.fencing import frozen_workers
from tests.chaos.frozen_server import frozen
from tests.chaos.full_disk import NoMount, full_disk
from tests.chaos.full_stores import full_store
from tests.chaos.queue_kills import drained, killed_under_load
from tests.chaos.rolling import rolled
from tests.chaos.webhook_delivery import delivered, delivered_by_several

# With fewer jobs, those hit by a single kill are too large a percentage: such figures are shown and not judged.
JUDGED_FROM = 1000
SHORT_PATIENCE_S = 3.0

RELATIONS = {"=": operator.eq, "<": operator.lt, "≤": operator.le, "≥": operator.ge}

# Fewer give a frozen worker no job to lose on a busy machine.
STORE_JOBS = 200

NOTHING_LOST = {"lost": "= 0", "unfinished": "= 0", "changed_results": "= 0", "never_published": "= 0"}


def parts(jobs):
    """Yield each part: its name, the function that runs it in a folder, and the bounds of its figures."""
    short = jobs < JUDGED_FROM
    patience_s = SHORT_PATIENCE_S if short else PATIENCE_S

    def in_full(bound):
        return {} if short else bound

    yield (
        "R1",
        lambda folder: killed_under_load(folder, jobs, patience_s=patience_s),
        NOTHING_LOST | {"published_twice": "= 0"} | in_full({"run_again_percent": "< 3"}),
    )
    yield (
        "R1 control: hasty answers",
        lambda folder: killed_under_load(folder, 60, patience_s=patience_s, faults=["server killed"] * 2, hasty=True),
        {"lost": "≥ 1"},
    )
    yield (
        "R1 at the store",
        lambda folder: frozen_workers(folder, STORE_JOBS, fenced=True),
        {"claimed_again": "≥ 1", "published_twice": "= 0", "never_published": "= 0"},
    )
    if not short:  # tests/jobs has this control too
        yield (
            "R1 control: no fence",
            lambda folder: frozen_workers(folder, STORE_JOBS, fenced=False),
            {"published_twice": "≥ 1"},
        )
    yield (
        "R1 frozen server",
        lambda folder: frozen(folder, 1 if short else 10),
        dict.fromkeys(("sockets_lost", "calls_lost", "uploads_lost", "engines_replaced", "claimed_again"), "= 0")
        | {"published_twice": "= 0", "never_published": "= 0", "undelivered": "= 0"},
    )
    if not short:
        yield (
            "R1 control: lets its leases go",
            lambda folder: frozen(folder, 1, lets_go_first=True),
            {"claimed_again": "≥ 1"},
        )
    yield (
        "R2",
        lambda folder: (
            engine_faults.infected(folder, 5, faults=engine_faults.BRIEF)
            if short
            else engine_faults.infected(folder, jobs // 10)
        ),
        {"wrong_ends": "= 0", "neighbours_hurt": "= 0", "needless_restarts": "= 0"} | in_full({"late_returns": "= 0"}),
    )
    yield (
        "R2 control: one try",
        lambda folder: engine_faults.infected(folder, 2, faults=["crash"], one_try=True),
        {"neighbours_hurt": "≥ 1"},
    )
    yield (
        "R3",
        lambda folder: delivered(folder, jobs, kills=max(2, jobs // 200)),
        {"undelivered": "= 0", "bad_signatures": "= 0", "tampered_passed": "= 0"} | in_full({"twice_percent": "≤ 1"}),
    )
    yield (
        "R3 control: no retries",
        lambda folder: delivered(folder, 60, kills=1, no_retries=True),
        {"undelivered": "≥ 1"},
    )
    if not short:
        yield (
            "R3c",
            lambda folder: delivered_by_several(folder, jobs, kills=jobs // 200),
            {"undelivered": "= 0", "bad_signatures": "= 0", "tampered_passed": "= 0", "twice_percent": "≤ 1"},
        )
        yield (
            "R3c control: no lease of webhooks",
            lambda folder: delivered_by_several(folder, 200, kills=1, broken_promise="not_leased"),
            {"twice_percent": "≥ 2"},
        )
    yield (
        "R8",
        lambda folder: full_disk(folder, 1 if short else 10),
        dict.fromkeys(
            ("lost", "damaged", "corrupt", "wrong_answers", "tracebacks", "restarts", "published_twice"), "= 0"
        )
        | {"never_published": "= 0", "slowest_return_s": "< 10"},
    )
    if not short:  # R1 has hasty answers too
        yield (
            "R8 control: hasty answers",
            lambda folder: full_disk(folder, 1, hasty=True),
            {"lost": "≥ 1"},
        )
    for what in () if short else ("files", "database"):
        yield (
            f"R8c {what}",
            lambda folder, what=what: full_store(folder, 6, what),
            dict.fromkeys(("lost", "damaged", "wrong_answers", "tracebacks", "restarts", "unfinished"), "= 0")
            | {"slowest_return_s": "< 10"},
        )
        yield (
            f"R8c control: hasty {what}",
            lambda folder, what=what: full_store(folder, 1, what, broken_promise="hasty"),
            {"lost": "≥ 1"},
        )
    yield (
        "R10",
        lambda folder: drained(folder, 2 if short else jobs // 40),
        NOTHING_LOST | {"published_twice": "= 0", "slowest_stop_s": "< 20"},
    )
    yield (
        "R10c",
        lambda folder: rolled(folder, 1, restarts=2, wait_s=3) if short else rolled(folder, 3000),
        {"failed": "= 0", "closed_otherwise": "= 0", "sockets_moved": "≥ 2", "streams_cut": "= 0"}
        | in_full({"slowest_move_ms": "≤ 100"}),
    )
    if not short:
        yield (
            "R10c without a second try",
            lambda folder: rolled(folder, 3000, one_try=True),
            {"failed": "= 0", "closed_otherwise": "= 0"},
        )
        yield (
            "R10c control: little time for streams",
            lambda folder: rolled(folder, 1, drain_timeout=4),
            {"streams_cut": "≥ 1"},
        )
        yield (
            "R10c control: no lame duck",
            lambda folder: rolled(folder, 1, lameduck=0, one_try=True),
            {"failed": "≥ 1"},
        )


def fleet_parts(jobs):
    """Yield the parts of several servers as `parts` does."""
    from tests.chaos import upgrade  # what they need is an extra
    from tests.chaos.fleet import tormented

    short = jobs < JUDGED_FROM
    times = {"database_killed_every_s": 8.0, "patience_s": SHORT_PATIENCE_S} if short else {}
    again = {} if short else {"run_again_percent": "< 3"}
    quiet = {"database_killed_every_s": 3600.0, "broken": 0.0, "count": 2}
    yield (
        "R1c",
        lambda folder: tormented(folder, jobs, **times),
        NOTHING_LOST
        | dict.fromkeys(("published_twice", "answers_5xx", "tracebacks"), "= 0")
        | {"database_killed": "≥ 1", "connections_broken": "≥ 1"}
        | again,
    )
    # Long enough for a freeze to find some. Their engine goes on, and its answers meet a server that has lost them.
    freezes = quiet | {"faults": ["box frozen"] * (2 if short else 4), "work_ms": 1000}
    if not short:
        yield (
            "R1c by the fence alone",
            lambda folder: tormented(folder, 60, **freezes, broken_promise="no_stop"),
            NOTHING_LOST | {"published_twice": "= 0", "taken_over": "≥ 1"},
        )
    yield (
        "R1c control: no fence",
        lambda folder: tormented(folder, 20 if short else 60, **freezes, broken_promise="no_fence"),
        {"published_twice": "≥ 1"},
    )
    # Of all answers only a claim's has a job's input.
    unheard = quiet | {"broken": 1.0, "answer": b"image_url", "most_broken": 8, "faults": ()}
    yield (
        "R1c claims that go unheard",
        lambda folder: tormented(folder, 40, **unheard),
        NOTHING_LOST | {"published_twice": "= 0", "claims_unheard": "≥ 1"},
    )
    yield (
        "R1c control: heartbeat by the server's name",
        lambda folder: tormented(folder, 40, **unheard, wait_s=6, broken_promise="by_node"),
        {"unfinished": "≥ 1"},
    )
    yield (
        "R1c control: results as last heard",
        lambda folder: tormented(folder, 40, **quiet, faults=(), broken_promise="cached"),
        {"changed_results": "≥ 1"},
    )
    if short:  # tests/nodes/test_upgrade.py is the short form
        return
    yield (
        "R13",
        lambda folder: upgrade.upgraded(folder, jobs),
        NOTHING_LOST
        | dict.fromkeys(("unserved", "published_twice", "answers_5xx", "tracebacks"), "= 0")
        | {"steps": "≥ 2"},
    )
    yield (
        "R13 control: a step that serves no other release",
        lambda folder: upgrade.upgraded(folder, 90, step=upgrade.BAD, last=1, wait_s=10),
        {"unserved": "≥ 1"},
    )


def holds(value, bound):
    relation, limit = bound.split()
    return RELATIONS[relation](value, float(limit))


def main():
    """Run the parts, and print the figures of each as it ends."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=2000)
    parser.add_argument("--only", default="", help="run the parts whose names begin with this")
    parser.add_argument("--fleet", action="store_true", help="several servers on one database (R1c, R13) alone")
    asked = parser.parse_args()
    report, broken, load = {}, [], os.getloadavg()[0]
    for name, run, bounds in (fleet_parts if asked.fleet else parts)(asked.jobs):
        if not name.startswith(asked.only):
            continue
        began = time.monotonic()
        try:
            with tempfile.TemporaryDirectory(prefix="fourstep-chaos-") as folder:
                figures = run(Path(folder))
        except NoMount as error:
            print(f"{name} left out: {error}", flush=True)
            report[name] = "left out"
            continue
        assert bounds.keys() <= figures.keys()
        print(f"{name} ({time.monotonic() - began:.0f} s)")
        for figure, value in figures.items():
            bound = bounds.get(figure, "")
            verdict = "" if not bound else "holds" if holds(value, bound) else "BROKEN"
            print(f"    {figure:<22}{value:>10}   {bound:<6} {verdict}", flush=True)
            broken += [f"{name}: {figure} is {value}, not {bound}"] if verdict == "BROKEN" else []
        report[name] = figures
    if not report:
        parser.error(f"no part's name begins with {asked.only!r}")
    print(*broken, sep="\n", end="\n" if broken else "")
    print(json.dumps({"benchmark": "chaos", "load_before": round(load, 1), "held": not broken, **report}))
    sys.exit(1 if broken else 0)


if __name__ == "__main__":
    main()
