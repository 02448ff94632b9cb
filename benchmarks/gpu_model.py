"""What the model costs a GPU, by arithmetic: operations, bytes and launches of its networks, and times by chip.

    python -m benchmarks.gpu_model [--write]

No GPU is needed: a trace of the full-size networks without values gives every operation and its shapes. A kernel takes
the longer of its products and its traffic, and the gap until the next one of a CUDA graph. What is assumed of a chip
stands in `CHIPS`; a range is from the hopeful to the cautious set. `--write` puts the tables into benchmarks/README.md.
Prints the tables; the last line is JSON.
"""

import argparse
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from benchmarks.harness.launches import Form, kernels
from benchmarks.harness.trace import Networks
from tests.support.published_configs import FULL

README = Path(__file__).parent / "README.md"
BEGIN, END = "<!-- python -m benchmarks.gpu_model --write -->", "<!-- end -->"
SIDE, STEPS, ROWS = 512, 4, 8


class Chip(NamedTuple):
    """What is assumed of a chip.

    `tflops`: of tensor cores in 16 bits with float32 sums, dense, sustained; without them, of float32. `products`: the
    share of it that products and convolutions reach on full tiles, hopeful and cautious; `flash`: that of fused
    attention with full heads.
    `gb_s`: of memory; `cache_gb_s`: of a cache of `cache_mb`. `gap_us`: from one kernel of a graph to the next.
    """

    name: str
    tflops: float
    products: tuple[float, float]
    flash: float
    gb_s: float
    cache_gb_s: float
    cache_mb: float
    processors: int
    gap_us: float
    width: int = 1  # in float32 2: bytes of a number against float16's


CHIPS = (
    Chip("H100", 790, (0.72, 0.55), 0.45, 3000, 5500, 50, 132, 1.3),
    Chip("RTX 4090", 165, (0.85, 0.65), 0.75, 930, 3500, 72, 128, 1.3),
    Chip("RTX 3060 12 GB", 25, (0.8, 0.6), 0.75, 330, 1000, 3, 28, 1.8),
    Chip("T4", 40, (0.75, 0.55), 0.35, 260, 900, 4, 40, 2.5),
    Chip("GTX 1660, float32", 5, (0.8, 0.6), 0.4, 180, 600, 1.5, 22, 2.5, width=2),
)
TRAFFIC = (0.9, 0.8)  # share of `gb_s` that a kernel reaches, hopeful and cautious
BLOCK_SHARE = 1.6  # one block takes more of the traffic than its processor's part
# Rows and columns of a tile of results, and the share of the speed that a processor reaches with it.
TILES = ((256, 128, 1.0), (128, 128, 0.95), (128, 64, 0.8), (64, 64, 0.65))
# Fused attention with wider heads than it has registers for.
WIDE_HEADS = 0.1
# The host's part of a request, in ms: two JPEGs, the loop, waiting for a copy; and of it what may go.
HOST_MS, NOISE_MS = 5.0, 0.6
# Operations beside the captured networks, and once their glue is captured too: counted, of an encode for two pictures.
# Each takes this many microseconds of the host.
GLUE = {"step": (23, 6), "encode": (24, 13), "decode": (14, 4)}
GLUE_US = 5.0


TODAY = Form()
PLAN = {
    "as it was": TODAY,
    "torch 2.15's group norm": replace(TODAY, norm="kept"),
    "own norm kernels instead": replace(TODAY, norm="own"),
    "and VAE attention in products": replace(TODAY, norm="own", attention_in_products=True),
    "and TAESD's ReLUs fused": (third := replace(TODAY, norm="own", attention_in_products=True, fused_relu=True)),
    "and glue captured, noise ahead": replace(third, captured_glue=True, noise_ahead=True),
}


class Timed:
    """Times of one chip's kernels, in seconds; `outlook`: 0 hopeful, 1 cautious."""

    def __init__(self, chip, outlook):
        self._chip, self._products, self._traffic = chip, chip.products[outlook], TRAFFIC[outlook]

    def stages(self, launched):
        """Return each stage's seconds from its launches."""
        return {stage: sum(map(self.kernel, each)) for stage, each in launched.items()}

    def kernel(self, kernel):
        """Return the longer of products and traffic, and the gap to the next kernel."""
        return max(self._computing(kernel), self._moving(kernel)) + self._chip.gap_us * 1e-6

    def _computing(self, kernel):
        return kernel.flops / (self._chip.tflops * 1e12 * self._share(kernel)) if kernel.flops else 0.0

    def _share(self, kernel):
        if kernel.wide:
            return WIDE_HEADS
        if kernel.flash:
            return self._chip.flash * kernel.flash
        return self._products * max(self._filled(kernel.tiles, tile) for tile in TILES)

    def _filled(self, results, tile):
        """Return a tile's share of the speed: whole tiles, in whole rounds of all processors, sums split in two."""
        high, wide, speed = tile
        tiles = math.ceil(results[0] / high) * math.ceil(results[1] / wide)
        used = results[0] * results[1] / (tiles * high * wide)
        split = tiles <= self._chip.processors / 2
        rounds = tiles * (1 + split) / self._chip.processors
        return speed * used * rounds / math.ceil(rounds) * (0.9 if split else 1.0)

    def _moving(self, kernel):
        cached = self._chip.cache_mb * 1e6 * 0.4 / self._chip.width  # what is left of a tensor when its reader comes
        moved = kernel.weights / self._chip.gb_s
        for nbytes in (*kernel.read, kernel.written):
            moved += nbytes / (self._chip.cache_gb_s if nbytes <= cached else self._chip.gb_s)
        spread = min(1.0, BLOCK_SHARE * kernel.blocks / self._chip.processors) if kernel.blocks else 1.0
        return self._chip.width * moved / (self._traffic * spread * 1e9)


class Model:
    """Predictions for one form: `launched` has each stage's kernels by rows and bytes of a number against float16's."""

    def __init__(self, traces, form):
        self.form = form
        forms = {1: form, 2: replace(form, attention_in_products=False)}  # float32 has none of it
        self.launched = {
            (rows, width): {stage: kernels(ops, forms[width]) for stage, ops in traces[rows, form.norm].items()}
            for rows in (1, ROWS)
            for width in forms
        }

    def request(self, chip, outlook, tiny=""):
        """Return the milliseconds of a request alone; `tiny`: "tiny " for TAESD."""
        glue = {stage: counts[self.form.captured_glue] * GLUE_US / 1e3 for stage, counts in GLUE.items()}
        host = HOST_MS - (NOISE_MS if self.form.noise_ahead else 0.0)
        host += STEPS * glue["step"] + glue["encode"] + glue["decode"]
        return 1e3 * self._device(chip, outlook, tiny, 1) + host

    def images_s(self, chip, outlook, tiny=""):
        """Return images a second of a device that is never without work."""
        return ROWS / self._device(chip, outlook, tiny, ROWS)

    def _device(self, chip, outlook, tiny, rows):
        seconds = Timed(chip, outlook).stages(self.launched[rows, chip.width])
        return STEPS * seconds["unet"] + sum(seconds[stage] for stage in (f"{tiny}encode", f"{tiny}decode", "safety"))


def predicted():
    """Return the model of each step of the plan."""
    networks = {norm: Networks(FULL, norm=norm) for norm in ("torch", "kept", "own")}
    traces = {(rows, norm): made.traced(rows, SIDE, SIDE) for rows in (1, ROWS) for norm, made in networks.items()}
    return {name: Model(traces, form) for name, form in PLAN.items()}


def networks_table(models):
    """Return the table of what the networks are: operations, traffic, launches, at first and at last."""
    first, *_, last = models.values()
    lines = [
        "| network, one row | TFLOP | GB moved | at last | launches | at last |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for stage, before in first.launched[1, 1].items():
        after = last.launched[1, 1][stage]
        lines.append(
            f"| {stage} | {sum(kernel.flops for kernel in before) / 1e12:.2f} | {gigabytes(before):.1f}"
            f" | {gigabytes(after):.1f} | {len(before)} | {len(after)} |"
        )
    return lines


def gigabytes(launched):
    return sum(kernel.weights + sum(kernel.read) + kernel.written for kernel in launched) / 1e9


def predictions_table(models, title, figure, form):
    """Return a table of a range for each step of the plan and each chip."""
    lines = [
        f"| {title} | {' | '.join(chip.name for chip in CHIPS)} |",
        f"| {' | '.join(['---'] * (1 + len(CHIPS)))} |",
    ]
    for name, model in models.items():
        ranges = [[figure(model, chip, outlook) for outlook in (0, 1)] for chip in CHIPS]
        cells = [" to ".join(dict.fromkeys(form(value) for value in sorted(each))) for each in ranges]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines


def brief(value):
    """Write a figure with two digits, three from 100."""
    return f"{value:.1f}" if value < 10 else f"{value:.0f}"


def tables(models):
    """Return all tables as Markdown."""
    small = {name: models[name] for name in (next(iter(PLAN)), list(PLAN)[-1])}
    parts = [
        networks_table(models),
        predictions_table(models, "p50 alone, ms", Model.request, brief),
        predictions_table(models, "images/s, saturated", Model.images_s, brief),
        predictions_table(small, "TAESD: p50 alone, ms", lambda *given: Model.request(*given, "tiny "), brief),
        predictions_table(small, "TAESD: images/s", lambda *given: Model.images_s(*given, "tiny "), brief),
    ]
    return "\n\n".join("\n".join(lines) for lines in parts)


def figures(models):
    """Return the predictions as numbers, for the last line."""
    return {
        chip.name: {
            name: {
                "p50_ms": [round(model.request(chip, outlook), 1) for outlook in (0, 1)],
                "images_s": [round(model.images_s(chip, outlook), 1) for outlook in (0, 1)],
                "stages_ms": {
                    stage: round(1e3 * seconds, 2)
                    for stage, seconds in Timed(chip, 0).stages(model.launched[1, chip.width]).items()
                },
            }
            for name, model in models.items()
        }
        for chip in CHIPS
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", action="store_true", help="put the tables into benchmarks/README.md")
    options = parser.parse_args()
    models = predicted()
    text = tables(models)
    print(text)
    if options.write:
        before, _, rest = README.read_text().partition(BEGIN)
        README.write_text(f"{before}{BEGIN}\n\n{text}\n\n{END}{rest.partition(END)[2]}")
    print(json.dumps(figures(models)))


if __name__ == "__main__":
    main()
