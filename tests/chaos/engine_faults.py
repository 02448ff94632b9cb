"""R2: requests that make the engine fail in every way it can, each beside requests that must not be affected."""

import itertools
import signal
import time
from concurrent.futures import ThreadPoolExecutor

from tests.chaos.harness import PICTURE, Victim, call
from tests.support.server_process import APP

# Prompt to the faulty engine: the status that its caller gets, and whether the engine is lost.
ENDS = {
    "raise": (500, False),
    "nan": (500, False),
    "huge": (500, False),  # out of memory even alone
    "hungry": (200, False),  # out of memory in company only: the batch is halved
    "crash": (500, True),
    "lost": (500, True),
    "hang": (500, True),
}
OFTEN = ("raise", "raise", "nan", "huge", "hungry", "raise", "crash", "nan", "hungry", "huge")
ALL = (*OFTEN, "lost", *OFTEN[:-2], "hang")
BRIEF = ("raise", "nan", "huge", "hungry", "crash")
NEIGHBOURS = 3
RETURN_S = 2.0  # beyond loading
PATIENCE_S = 3.0  # as shipped: 30; R1 has that


def infected(folder, injections, *, faults=ALL, one_try=False):
    """Inject faults one after the other; return counts of what went wrong with them, their neighbours and the engine.

    `slowest_return_s`: from the end of a poison request to the first answer of the next engine.
    """
    seen = {"wrong_ends": 0, "neighbours_hurt": 0, "needless_restarts": 0}
    with Victim(folder, "--model", "instant:20", faulty=True, patience_s=PATIENCE_S, one_try=one_try) as victim:
        victim.wait_ready()
        load_s = replacement_s(victim)
        with ThreadPoolExecutor(1 + NEIGHBOURS) as callers:
            chosen = itertools.islice(itertools.cycle(faults), injections)
            returns = [inject(victim, callers, fault, seed, seen) for seed, fault in enumerate(chosen)]
        restarts = engine(victim)["restarts"]
        victim.stop()
    return {
        "injections": injections,
        "restarts": restarts,
        **seen,
        "load_s": load_s,
        "slowest_return_s": round(max(returns), 2),
        "late_returns": sum(took > load_s + RETURN_S for took in returns),
    }


def replacement_s(victim):
    """Return the seconds from an engine's death until the next one is ready: how long loading takes here."""
    began = time.monotonic()
    victim.wait_ready(but_not=victim.signal_engine(signal.SIGKILL))
    return round(time.monotonic() - began, 2)


def inject(victim, callers, fault, seed, seen):
    """Send a fault and its neighbours at once. Return the seconds until an engine worked again, 0.0 if none ended."""
    status, lost = ENDS[fault]
    before = engine(victim)["pid"]
    poison = callers.submit(ask, victim, fault, seed)
    neighbours = [callers.submit(ask, victim, "", seed).result for _ in range(NEIGHBOURS)]
    ended, *answer = poison.result()
    answers = [neighbour() for neighbour in neighbours]
    seen["wrong_ends"] += answer[0] != status
    seen["neighbours_hurt"] += sum(answer != [200, seed] for _, *answer in answers)
    if not lost:
        seen["needless_restarts"] += engine(victim)["pid"] != before
        return 0.0
    victim.wait_ready()
    worked = ask(victim, "", seed)[0]
    return min([worked, *(at for at, *_ in answers if at > ended)]) - ended


def ask(victim, prompt, seed):
    """Return when one call was answered, its status and its seed."""
    body = {"prompt": prompt, "image_url": PICTURE, "seed": seed}
    status, answer = call(victim.port, "POST", f"/run/{APP}", body, timeout=120)
    return time.monotonic(), status, answer.get("seed")


def engine(victim):
    return victim.health()["engines"][0]
