"""Repaint every picture of a folder, several at a time, through fal's Python client (`pip install fal-client`).

Start the server and set the variables as in examples/python.py, then:

    python examples/batch.py PICTURES OUTPUT "a watercolour of a harbour"

What is in OUTPUT already is left alone: after an interruption the same line goes on where it stopped.
"""

import os
import sys
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import fal_client

AT_ONCE = 8  # more than that only wait in the server's queue
KINDS = {".jpg", ".jpeg", ".png", ".webp", ".avif", ".tif", ".tiff", ".bmp", ".gif"}


def repaint(picture: Path, output: Path, prompt: str) -> str:
    """Write what the model makes of one picture, whole or not at all; return a line about it."""
    try:
        result = fal_client.subscribe(
            "fal-ai/lcm-sd15-i2i",
            # A data URI. The same seed for all, so that only the pictures differ.
            arguments={"prompt": prompt, "image_url": fal_client.encode_file(picture), "strength": 0.6, "seed": 42},
        )
    except fal_client.FalClientHTTPError as error:
        return f"{picture.name}: {error.message}"
    with urllib.request.urlopen(result["images"][0]["url"]) as answer:
        draft = output.with_suffix(".part")
        draft.write_bytes(answer.read())
    draft.replace(output)
    return f"{picture.name} → {output}"


def main(pictures: Path, output: Path, prompt: str) -> int:
    """Repaint what has not been done; return 1 if a picture is left without one."""
    output.mkdir(parents=True, exist_ok=True)
    names = {each: output / f"{each.name}.jpg" for each in sorted(pictures.iterdir()) if each.suffix.lower() in KINDS}
    left = {each: to for each, to in names.items() if not to.exists()}
    print(f"{len(names)} pictures, {len(names) - len(left)} done before")
    with ThreadPoolExecutor(AT_ONCE) as pool:
        for line in pool.map(lambda each: repaint(*each, prompt), left.items()):
            print(line, flush=True)
    missing = sum(not to.exists() for to in names.values())
    print(f"{len(names) - missing} of {len(names)} are in {output}")
    return min(missing, 1)


if __name__ == "__main__":
    if len(sys.argv) != 4 or not os.environ.get("FAL_RUN_HOST"):
        sys.exit(__doc__)
    sys.exit(main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]))
