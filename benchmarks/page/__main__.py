"""The page in Chromium with its fake camera: how immediate live is, how soon the form is usable, whether memory grows.

    python -m benchmarks.page [--seconds 20] [--starts 5] [--minutes 0] [--camera-fps 60] [--fault busy …]

- live, `--seconds` of it after a warm-up, on an engine of 20 ms: frames answered a second; the round trip from sending
  a frame to its answer; from taking the picture off the canvas to its answer being painted; then, as long again in a
  trace, the tasks of the main thread. Of its tasks only those of a millisecond or more count: most are empty;
- usable, `--starts` times while the built-in model loads: from the server's sockets being bound until the form is there
  and its button may be pressed, in a fresh profile; the median;
- memory, for `--minutes` on the built-in model: of the page's heap (after a collection), its process, the API's and the
  engine's. Flat: over the last four fifths the median slope (Theil and Sen) adds less than 16 MiB or a twentieth. The
  newest wins: a picture is taken after the last frame was sent, and sent within half a round trip, at the 95th
  percentile. No error may be shown, not even for a moment.

0 leaves a part out. `--fault` breaks something on purpose, for which the gate must be missed. Prints a table; the last
line is JSON. The status is 1 if a gate is missed.
"""

import argparse
import bisect
import itertools
import json
import os
import statistics
import sys
import time

from benchmarks.harness.http import serving
from benchmarks.harness.process import memory_mib
from benchmarks.page.visit import Visit, browser
from benchmarks.peers import processor
from server.cli.launcher import RUN_FILE
from tests.support.browsers.chromium import said_by
from tests.support.server_process import free_port

# Gate and goal; whether more is better.
GATES = {
    "frames_s": (25, 40, True),
    "round_trip_ms": (35, 25, False),
    "task_p95_ms": (16, 8, False),
    "usable_s": (0.5, 0.5, False),
    "heap_growth": (1, 1, False),
    "renderer_growth": (1, 1, False),
    "server_growth": (1, 1, False),
    "engine_growth": (1, 1, False),
    "late_share": (0.5, 0.5, False),
    "errors": (0, 0, False),
}
FAULTS = {
    "slow": "an engine of 60 ms",
    "busy": "the main thread is held for 40 ms at each answer",
    "late": "the page's first module comes a second late",
    "leak": "the page keeps 8 MB with each answer",
    "stale": "frames are sent two seconds after their picture was taken",
    "lost": "the fifth answer is followed by the end of the socket",
}
SAMPLE_S = 5
FLAT_MIB, FLAT_SHARE = 16, 0.05


def quantile(values, q):
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, round(q * (len(ordered) - 1)))]


def until_next(times, later):
    """Return for each time how long it took until the next of `later`."""
    places = [(moment, bisect.bisect(later, moment)) for moment in times]
    return [later[place] - moment for moment, place in places if place < len(later)]


def live(chromium, options):
    """Measure live on an engine of 20 ms."""
    engine = "instant+jpeg:60" if "slow" in options.fault else "instant+jpeg:20"
    with serving("--model", engine) as server:
        visit = Visit(chromium, server.url, options.fault)
        visit.open()
        visit.go_live(options.warm_up)
        visit.wait(options.seconds)
        seen = visit.seen()
        tasks = [task for task in visit.tasks(options.seconds) if task[0] >= 1]
        visit.close()
    sent, taken = [moment for moment, *_ in seen["sent"]], [each[1] for each in seen["sent"]]
    trips, ages = until_next(sent, seen["heard"]), [moment - of for moment, of, _ in seen["sent"] if of]
    return {
        "frames_s": len(seen["heard"]) / seen["seconds"],
        "round_trip_ms": statistics.median(trips),
        "round_trip_p95_ms": quantile(trips, 0.95),
        "age_when_sent_ms": statistics.median(ages),
        "answer_to_painted_ms": statistics.median(until_next(seen["heard"], seen["painted"])),
        "task_p95_ms": quantile([wall for wall, _ in tasks], 0.95),
        "task_cpu_p95_ms": quantile([cpu for _, cpu in tasks], 0.95),
        "task_longest_ms": max(wall for wall, _ in tasks),
        "changes_s": seen["changed"] / seen["seconds"],
        "taken": len([moment for moment in taken if moment]),
    }


def usable(chromium, options):
    """Measure how soon the form may be used while a model loads."""
    took = []
    for _ in range(options.starts):
        port = free_port()
        visit = Visit(chromium, f"http://localhost:{port}", options.fault)  # who opens the page has a browser already
        with serving("--model", "demo", "--port", str(port), ready=False) as server:
            bound = (server.data_dir / RUN_FILE).stat().st_mtime
            visit.open()
            visit.page.get_by_label("Prompt", exact=True).fill("a cat")
            state = server.get("/health")["state"]
            if state != "STARTING":
                sys.exit(f"The model was there before the page ({state}): nothing is measured")
            took.append((visit.seen()["usable"] / 1e3, bound, said_by(visit.page, "performance.timeOrigin") / 1e3))
            visit.close()
    return {
        "usable_s": statistics.median(usable - bound for usable, bound, _ in took),
        "usable_longest_s": max(usable - bound for usable, bound, _ in took),
        "usable_of_the_page_s": statistics.median(usable - begun for usable, _, begun in took),
    }


def growth(moments, values):
    """Return what the last four fifths add by their median slope, as a share of what is flat."""
    first = len(values) // 5
    points = list(zip(moments[first:], values[first:], strict=True))
    slopes = [(b - a) / (then - now) for (now, a), (then, b) in itertools.combinations(points, 2)]
    added = statistics.median(slopes) * (points[-1][0] - points[0][0])
    return max(0.0, added / max(FLAT_MIB, FLAT_SHARE * statistics.median(values)))


def memory(chromium, options):
    """Measure memory, order and errors of live on the built-in model."""
    with serving("--model", options.model) as server:
        [engine] = [each["pid"] for each in server.get("/health")["engines"]]
        visit = Visit(chromium, server.url, options.fault)
        visit.open()
        visit.go_live(options.warm_up)
        moments, rows = [], []
        end = time.monotonic() + options.minutes * 60
        while time.monotonic() < end:
            visit.wait(min(SAMPLE_S, options.minutes * 4))
            moments.append(time.monotonic())
            rows.append(visit.memory() | {"server": memory_mib(server.pid), "engine": memory_mib(engine)})
            print(f"{len(rows):4}  " + "  ".join(f"{k} {v:.0f}" for k, v in rows[-1].items()), "MiB", file=sys.stderr)
        seen = visit.seen()
        errors = [*seen["errors"], *visit.watch.faults]
        visit.close()
    sent, heard = [each for each in seen["sent"] if each[1]], seen["heard"]
    trip = statistics.median(until_next([moment for moment, *_ in sent], heard))
    in_turn = [taken > before for (before, *_), (_, taken, _) in itertools.pairwise(sent)]
    return {
        **{f"{name}_growth": growth(moments, [row[name] for row in rows]) for name in rows[0]},
        **{f"{name}_mib": [round(rows[len(rows) // 5][name], 1), round(rows[-1][name], 1)] for name in rows[0]},
        "late_share": quantile([moment - taken for moment, taken, _ in sent], 0.95) / trip,
        "taken_in_turn": all(in_turn),
        "demo_frames_s": len(heard) / seen["seconds"],
        "demo_round_trip_ms": trip,
        "dropped": seen["changed"] - len(sent),
        "errors": len(errors),
        "said": errors,
    }


def missed(figures):
    """Return the names of the gates that are missed."""
    short = [
        name
        for name, (gate, _, more) in GATES.items()
        if name in figures and (figures[name] < gate if more else figures[name] > gate)
    ]
    return short + (["taken_in_turn"] if figures.get("taken_in_turn") is False else [])


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=20, help="of live, and again in the trace")
    parser.add_argument("--warm-up", type=float, default=5)
    parser.add_argument("--starts", type=int, default=5)
    parser.add_argument("--minutes", type=float, default=0, help="of live on --model")
    parser.add_argument("--model", default="demo", help="whose memory is watched")
    parser.add_argument("--camera-fps", type=int, default=60)
    parser.add_argument("--fault", action="append", default=[], choices=FAULTS, help=str(FAULTS))
    options = parser.parse_args()
    figures = {"load_before": os.getloadavg()[0]}
    with browser(options.camera_fps) as chromium:
        figures |= live(chromium, options) if options.seconds else {}
        figures |= usable(chromium, options) if options.starts else {}
        figures |= memory(chromium, options) if options.minutes else {}
        figures |= {"chromium": chromium.version}
    figures |= {"load_after": os.getloadavg()[0], "missed": missed(figures)}
    for name, value in figures.items():
        gate, goal, _ = GATES.get(name, ("", "", True))
        written = f"{value:10.2f}" if isinstance(value, float) else f"{value!s:>10}"
        print(f"{name:<22} {written}  {gate!s:>5} {goal!s:>5}{'  missed' if name in figures['missed'] else ''}")
    described = processor.describe("native")
    print(json.dumps(vars(options) | {key: described[key] for key in ("processor", "has")} | figures))
    return 1 if figures["missed"] else 0


if __name__ == "__main__":
    sys.exit(main())
