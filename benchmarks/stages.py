"""Duration of each stage of a request, drawn as a bar.

    python -m benchmarks.stages [--model demo] [--requests 20] [--out stages.png] [--device auto] [--dtype auto]

One request at a time through the engine loop, JPEG to JPEG; medians of every stage, drawn to scale on one bar. Needs
nothing of the web side. Prints the same as a table; the last line is JSON.
"""

import argparse
import json
import statistics
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from benchmarks.harness import device

# ASCII only, for Pillow's own font. Stages in a request's order, with descriptions; `wait` passes beside them.
STAGES = {
    "decode_image": ("JPEG to pixels", "#8d99ae"),
    "noise": ("noise", "#c9ada7"),
    "queue": ("waiting", "#dddddd"),
    "text": ("prompt to context", "#ffb703"),
    "encode": ("VAE encoder", "#219ebc"),
    "steps": ("UNet", "#d62839"),
    "decode": ("VAE decoder", "#126782"),
    "safety": ("safety checker", "#6a994e"),
    "encode_jpeg": ("pixels to JPEG", "#8d99ae"),
    "rest": ("between the stages", "#bbbbbb"),
}
WIDTH, BAR, LINE, MARGIN = 1200, 90, 30, 30


def measure(options):
    """Return median milliseconds by stage, and of the whole request."""
    config = device.config(options.model, lora="none", device=options.device, dtype=options.dtype)
    engine, data = device.Ours(config), device.picture(options.side, options.side)
    try:
        engine.one(device.request(), data)
        timings = [engine.one(device.request(seed), data).timings for seed in range(options.requests)]
    finally:
        engine.close()
    found = {name: statistics.median(each.get(name, 0.0) for each in timings) * 1e3 for name in STAGES}
    total = statistics.median(each["inference"] for each in timings) * 1e3
    found["rest"] = max(0.0, total - sum(found.values()))
    return found, total


def draw(found, total, title, path):
    """Draw one bar to scale, and a legend."""
    height = 2 * MARGIN + 2 * LINE + BAR + LINE * len(found)
    picture = Image.new("RGB", (WIDTH, height), "white")
    pen, large, small = ImageDraw.Draw(picture), ImageFont.load_default(22), ImageFont.load_default(17)
    pen.text((MARGIN, MARGIN), title, "black", large)
    left, top, scale = float(MARGIN), MARGIN + 2 * LINE - 10, (WIDTH - 2 * MARGIN) / sum(found.values())
    for row, (name, milliseconds) in enumerate(found.items()):
        what, colour = STAGES[name]
        right = left + milliseconds * scale
        pen.rectangle((left, top, right, top + BAR), colour)
        if right - left > 110:
            pen.text((left + 8, top + BAR / 2 - 10), f"{what}, {milliseconds:.0f} ms", "white", small)
        line = top + BAR + 16 + row * LINE
        pen.rectangle((MARGIN, line, MARGIN + 18, line + 18), colour)
        share = 100 * milliseconds / total
        pen.text((MARGIN + 30, line - 1), f"{what}: {milliseconds:.1f} ms, {share:.1f} %", "black", small)
        left = right
    picture.save(path)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="demo")
    parser.add_argument("--requests", type=int, default=20)
    parser.add_argument("--side", type=int, default=512)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--out", type=Path, default=Path("stages.png"))
    options = parser.parse_args()
    found, total = measure(options)
    machine = device.machine()
    title = (
        f"One request: {options.model}, {options.side}x{options.side}, 4 steps, {total:.0f} ms on {machine['device']}"
    )
    draw(found, total, title, options.out)
    for name, milliseconds in found.items():
        print(f"{STAGES[name][0]:<20} {milliseconds:9.2f} ms  {100 * milliseconds / total:5.1f} %")
    print(json.dumps({**machine, "model": options.model, "total_ms": total, "stages_ms": found}))


if __name__ == "__main__":
    main()
