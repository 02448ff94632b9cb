"""One group of sections, in the process that its parent has started for it."""

import contextlib
import json
import time

import torch

from benchmarks.gpu import compiled, memory, networks, parts, product, self_test, smoke
from benchmarks.gpu.bench import make_bench
from benchmarks.gpu.clocks import Clocks
from benchmarks.gpu.guard import attempt, lost
from benchmarks.harness import device

# In order of importance, with the seconds that each may take.
SECTIONS = {
    "smoke": {
        smoke.numbers: 10,
        smoke.demo: 25,
        smoke.engine: 40,
        smoke.waits: 30,
        smoke.pictures: 30,
    },
    "1": {
        parts.floors: 12,
        networks.rows: 60,
        parts.norms: 15,
        parts.attention: 20,
        parts.convolutions: 45,
        networks.kernels: 20,
        parts.upsampling: 10,
    },
    "2": {
        product.full: 100,
        product.diffusers: 20,
        product.taesd: 35,
        memory.card_8_gb: 30,
        memory.card_6_gb: 30,
        product.one_stream: 25,
        product.streams_equal: 25,
        product.steps_first: 25,
        product.start: 100,
    },
    "3": {
        compiled.diffusers: 100,
        compiled.ours: 150,
    },
}
# Of a dry run, and only by name: what goes wrong on purpose, so that a test sees what is kept of it.
SELF_TESTS = {
    self_test.fails: 10,
    self_test.hangs: 0.1,
    self_test.is_late_in_a_thread: 0.1,
    self_test.loses_the_device: 10,
    self_test.never_ends: 10,
}


def run(name, until, options):
    """Run a group's sections until that time of the clock (`time.time`), and write its file after each figure."""
    file = options.out / f"{name}.json"
    machine = {"dry": options.dry, **device.machine()}
    kept = json.loads(file.read_text()) if file.exists() else {}
    report = kept if {key: kept.get(key) for key in machine} == machine else machine
    sections = SECTIONS[name] | (SELF_TESTS if options.dry and options.sections else {})
    wanted = [
        section
        for section in sections
        if (section.__name__ in options.sections if options.sections else not is_done(report, section))
    ]
    print(machine, flush=True)
    # Networks and parts alone are measured with kernels chosen by timing, as the product captures them. In the other
    # groups counts what the product itself sets.
    torch.backends.cudnn.benchmark = name in {"1", "3"}
    with own_stream(options), torch.inference_mode(), Clocks(dry=options.dry) as clocks:
        bench = make_bench(
            dry=options.dry,
            short=options.short,
            deadline=time.monotonic() + until - time.time(),
            save=lambda: file.write_text(json.dumps(report, indent=2) + "\n"),
        )
        for section in wanted:
            # Of a dry run only groups have boxes: its machine may be busy with anything.
            allowed = bench.left if options.dry and section not in SELF_TESTS else sections[section]
            attempt(section, bench, allowed, report, clocks)
            show(section.__name__, report[section.__name__])
            if lost(report[section.__name__]):
                break  # no later section would find a device


def is_done(report, section):
    return report.get(section.__name__, {}).get("ended") == "done"


def show(name, found, indent=0):
    """Print a section as indented lines."""
    flat = {key: value for key, value in found.items() if not isinstance(value, dict)}
    figures = "  ".join(f"{key} {value}" for key, value in flat.items())
    print(f"{' ' * indent}{name:<{24 - indent}} {figures}", flush=True)
    for key, value in found.items():
        if isinstance(value, dict):
            show(key, value, indent + 2)


def own_stream(options):
    """Nothing can be captured on the stream that every program starts with."""
    return contextlib.nullcontext() if options.dry else torch.cuda.stream(torch.cuda.Stream())
