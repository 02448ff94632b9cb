"""Ours, diffusers and OpenVINO on the CPU, on the same full-size weights: stages, whole requests, sizes.

    python -m benchmarks.peers [--weights FOLDER] [--threads 1,2] [--rounds 3] [--only unet diffusers-f32 …]
                               [--isa avx2]

Stable Diffusion 1.5 at 512×512, four UNet calls, image to image, with the full autoencoder and the tiny one (TAESD).
For all alike without LoRA (a merged one costs nothing per call) and without safety checker. FOLDER is what
`benchmarks.harness.fake_weights` writes; without one, random weights are made in a temporary folder (6 GB). TAESD's are
random too.

Contenders run in pairs, ours against one peer, each in a process of its own: no more than two models are in memory. A
pair takes turns: each stage once unmeasured, then `--rounds` times. Figures are medians. Ratios, ours / peer, are
medians of the rounds' ratios: of processor seconds (user and system, all threads) and of wall time. `apart` is the
distance of our result from the peer's: root mean square, relative.

    unet, encode, decode    one call, inputs in memory; ours has the prompt's keys and values and the timestep's shifts
                            beforehand, as in a request
    request                 JPEG → JPEG: text (a new prompt each time), encode, 4 × unet, decode. diffusers: its
                            pipeline; OpenVINO: the same written out over its compiled models
    sizes                   unet calls of other sizes, in another order each round within one process; not OpenVINO,
                            whose shapes are static. Its share: ours at a size / at `--side`, in parts of the same
                            ratio of floating-point operations; 1 is in proportion

Load is processor seconds from the start of a process until it could make its first call. Ours includes the engine's
first run at 128×128; OpenVINO's does not include the conversion, which is told apart. Memory (the peak, and what is
anonymous: own) is of a process after its requests, before other sizes.

`--isa avx2` limits the libraries of all contenders to AVX2 by their variables: emulated. OpenVINO's convolutions heed
them, its matrix products (MLAS) do not: a stage with such a kernel is refused, not measured.
Prints a table; the last line is JSON. Ends with status 1 if a pair failed; the others are measured.
"""

import argparse
import contextlib
import json
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path

from benchmarks.peers import child, processor, report, turns

AUTOENCODERS = ("full", "tiny")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--weights", type=Path, help="what benchmarks.harness.fake_weights wrote")
    parser.add_argument("--converted", type=Path, help="folder that keeps OpenVINO's files; else a temporary one")
    parser.add_argument("--only", nargs="+", default=[], choices=turns.CHOICES, help="peers and stages; all of a kind")
    parser.add_argument("--ours", default="like", choices=["like", "auto"], help="our dtype: like the peer's, or auto")
    parser.add_argument("--vae", nargs="+", default=AUTOENCODERS, choices=AUTOENCODERS)
    parser.add_argument("--threads", type=numbers, default=[1], help="such as 1,2")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--side", type=int, default=512)
    parser.add_argument("--sizes", type=numbers, default=[128, 256, 384, 768])
    parser.add_argument("--isa", default="native", choices=["native", "avx2"])
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        child.run(json.loads(options.child))
        return
    if options.weights and not (options.weights / "sd15").is_dir():
        parser.error(
            f"{options.weights} has no sd15. Hint: python -m benchmarks.harness.fake_weights {options.weights}"
        )
    with contextlib.ExitStack() as stack:
        made = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        options.converted = (options.converted or made).resolve()
        options.converted.mkdir(parents=True, exist_ok=True)
        if options.weights is None:
            child.ask({"contender": "weights", "folder": str(made), "threads": 1}, processor.environment("native"))
        options.weights = (options.weights or made).resolve()
        described = processor.describe(options.isa)
        found = {"date": datetime.now(UTC).isoformat(timespec="minutes"), **described, "rounds": options.rounds}
        found |= turns.measure(options, described)
    print(report.table(found))
    print(json.dumps(found))
    if found["failed"]:
        sys.exit(1)


def numbers(text):
    return [int(word) for word in text.split(",")]


if __name__ == "__main__":
    main()
