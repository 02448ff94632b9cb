"""Pictures that are legal and take seconds to decode, from eight clients who send the next as soon as one is answered.

Control: an engine that decodes them on the threads that decode everybody's pictures.
"""

import asyncio
import base64
import functools
import io
import json
import zlib

import numpy as np
from PIL import Image

from tests.chaos.attack import Attack
from tests.chaos.exchange import exchange, written
from tests.support.images import malicious_images
from tests.support.server_process import APP

CLIENTS = 8
WIDTH, HEIGHT = 8000, 6000
SCANS = 20
NOISY_ROWS = 19
BROKEN_S = 0.1


def png():
    """Return 48 megapixels of colour, noise at the top and then black, in about 1.1 MB."""
    rows = np.zeros((HEIGHT, 1 + 3 * WIDTH), np.uint8)
    rows[:NOISY_ROWS, 1:] = np.random.default_rng(0).integers(0, 256, (NOISY_ROWS, 3 * WIDTH))
    return malicious_images.png(WIDTH, HEIGHT, data=zlib.compress(rows.tobytes(), 1))


def jpeg():
    """Return a progressive picture of 48 megapixels that is drawn twenty times."""
    out = io.BytesIO()
    Image.new("RGB", (WIDTH, HEIGHT), "teal").save(out, "JPEG", progressive=True, subsampling="4:2:0")
    head, begin, rest = out.getvalue().partition(b"\xff\xda")
    first, *others = rest.removesuffix(b"\xff\xd9").split(begin)
    scans = [first, *others, *[others[-1]] * (SCANS - 1 - len(others))]
    return head + begin + begin.join(scans) + b"\xff\xd9"


def webp():
    """Return as many megapixels as the memory for a WebP allows, of a kind that takes long."""
    noise = np.random.default_rng(0).integers(0, 256, (250, 256, 3), np.uint8)
    out = io.BytesIO()
    Image.fromarray(noise).resize((4096, 4000)).save(out, "WEBP", method=0)
    return out.getvalue()


async def attack(make, target):
    """Send the picture from all clients, again and again. Report how often it was answered 200."""
    uri = f"data:image/{make.__name__};base64,{base64.b64encode(make()).decode()}"
    body = json.dumps({"prompt": "p", "image_url": uri}).encode()
    request = written("POST", f"/run/{APP}", target.key, body)
    answers = []

    async def client():
        while True:
            status, _ = await exchange(target.port, request)
            answers.append(status)
            if not status:
                await asyncio.sleep(BROKEN_S)

    print("sending", flush=True)
    try:
        await asyncio.gather(*(client() for _ in range(CLIENTS)))
    finally:
        print(json.dumps({"answers": len(answers), "ok": answers.count(200)}), flush=True)


ATTACKS = tuple(
    Attack(
        name=f"large pictures, {make.__name__}",
        run=functools.partial(attack, make),
        control_changes={"one_pool": True},
    )
    for make in (png, jpeg, webp)
)
