"""All measurements on a GPU, in one call: three groups, each in a process of its own, in under ten minutes.

    python -m benchmarks.gpu --only smoke          what must work at all, in two minutes
    python -m benchmarks.gpu [--only 1 2 3]        1 the parts (150 s), 2 the product (200 s), 3 compilers (200 s)
    python -m benchmarks.gpu --dry [--short]       all of it on a CPU, at tiny sizes, without captures

Needs torch, diffusers, transformers, msgspec, Pillow and this repository; nothing of the web side, no weights (they are
random, full-size, made on the device) and no network. A fault that a device does not survive costs one group; a group
that hangs is killed when its time is over. Findings are in OUT/GROUP.json as soon as they are measured. A second call
measures only what these files lack. What to decide from each figure stands in benchmarks/README.md. Prints tables; the
last line is JSON. The exit status is 1 unless every section is done.
"""

import argparse
import importlib
import json
import logging
import os
import sys
from pathlib import Path

from benchmarks.gpu.processes import run

# Seconds of each group's process, from its start. All but smoke fit into one call of ten minutes.
BOXES = {"smoke": 120, "1": 150, "2": 200, "3": 200}
MAIN = ("1", "2", "3")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=BOXES, help="groups to run; by default 1 2 3, of a dry run all")
    parser.add_argument("--sections", nargs="+", default=[], metavar="NAME", help="sections to run, done or not")
    parser.add_argument("--out", type=Path, default=Path("gpu"), help="a folder; what is done there is kept")
    parser.add_argument("--seconds", type=float, help="for each group, instead of its own time")
    parser.add_argument("--dry", action="store_true", help="on a CPU, at tiny sizes")
    parser.add_argument("--short", action="store_true", help="of a dry run: fewer rows, requests and compilers")
    options = parser.parse_args()
    if options.short and not options.dry:
        parser.error("--short is for --dry")
    options.out.mkdir(parents=True, exist_ok=True)
    # It warns of image processors that nothing here uses: as it is imported, or where it is imported already.
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    logging.getLogger("transformers").setLevel(logging.ERROR)
    if options.short:
        importlib.import_module("benchmarks.gpu.group")  # once for all groups, which are forks then
    groups = options.only or (list(BOXES) if options.dry else MAIN)
    report = {name: run(name, options.seconds or BOXES[name], options) for name in groups}
    print(json.dumps(report))
    sys.exit(0 if all(map(complete, report.values())) else 1)


def complete(report):
    sections = [each for each in report.values() if isinstance(each, dict) and "ended" in each]
    return report["ended"] == "done" and all(each["ended"] == "done" for each in sections)


if __name__ == "__main__":
    main()
