"""All measurements on a GPU, in one run of under eight minutes.

    python -m benchmarks.gpu [--out gpu.json] [--minutes 7.5]        on the GPU
    python -m benchmarks.gpu --dry                                   the same code on a CPU, tiny sizes, a fake capture

Needs torch, diffusers, transformers, msgspec, Pillow and this repository; nothing of the web side, no weights (they are
random, full-size, made on the device) and no network. Sections run in order of importance, each with its own time
limit. The file is written after each section, with the findings of failed and stopped sections too. A second call runs
only the sections that the file lacks. Milliseconds are medians with the device synchronised. Prints a table; the last
line is JSON.
"""

import argparse
import contextlib
import json
from pathlib import Path

import torch

from benchmarks.gpu import compiled, parts, requests, self_test
from benchmarks.gpu.bench import make_bench
from benchmarks.gpu.guard import attempt
from benchmarks.harness import device

# In order of importance, with the seconds that each may take.
SECTIONS = {
    parts.floors: 15,
    parts.unet: 60,
    requests.end_to_end: 70,
    requests.tiny_vae: 50,
    requests.pictures: 40,
    requests.waits: 20,
    parts.stages: 50,
    requests.warm_up: 120,
    requests.one_stream: 40,
    compiled.compiled_diffusers: 120,
    parts.norms: 15,
    parts.upsampling: 15,
    parts.attention: 15,
    parts.memory: 5,
}
# Of a dry run, and only by name: what goes wrong on purpose, so that a test sees what is kept of it.
SELF_TESTS = {self_test.fails: 10, self_test.hangs: 0.1}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("gpu.json"), help="sections that are done there are kept")
    parser.add_argument("--minutes", type=float, default=7.5)
    parser.add_argument("--dry", action="store_true", help="on a CPU, at tiny sizes")
    parser.add_argument(
        "--only", nargs="*", default=[], help="names of sections, done or not", choices=names(SECTIONS | SELF_TESTS)
    )
    options = parser.parse_args()
    machine = {"dry": options.dry, **device.machine()}
    kept = json.loads(options.out.read_text()) if options.out.exists() else {}
    report = kept if {key: kept.get(key) for key in machine} == machine else machine
    print(machine, flush=True)
    with own_stream(options), torch.inference_mode():
        bench = make_bench(dry=options.dry, minutes=options.minutes)
        for section, allowed in (SECTIONS | (SELF_TESTS if options.dry and options.only else {})).items():
            name = section.__name__
            if name not in options.only if options.only else report.get(name, {}).get("ended") == "done":
                continue
            report[name] = attempt(section, bench, allowed)
            show(name, report[name])
            options.out.write_text(json.dumps(report, indent=2) + "\n")
    print(json.dumps(report))


def names(sections):
    return [section.__name__ for section in sections]


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


if __name__ == "__main__":
    main()
