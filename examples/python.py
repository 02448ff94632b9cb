"""Ask a fourstep server for a picture through fal's own Python client (`pip install fal-client`).

Start a server that also speaks https, and point the client at it:

    fourstep serve --model auto --tls-port 8443
    export FAL_RUN_HOST=localhost:8443/run FAL_QUEUE_RUN_HOST=localhost:8443/queue
    export SSL_CERT_FILE=~/.local/share/fourstep/tls/bundle.pem FAL_KEY=any:thing

    python examples/python.py [YOUR_PICTURE.jpg]        writes output.jpg
"""

import sys
import urllib.request
from pathlib import Path

import fal_client

if len(sys.argv) > 1:
    # A picture of your own travels inside the request, as a data URI.
    image_url = fal_client.encode_file(sys.argv[1])
else:
    # fal's own sample picture. A server with the demo model has it on board.
    image_url = "https://storage.googleapis.com/falserverless/model_tests/lcm/beach.png"


def show(update: fal_client.Status) -> None:
    """Say how far the request is: Queued, InProgress, Completed."""
    print(type(update).__name__)


# `subscribe` puts a job into the queue and waits for its result. A restart of the server does not lose it.
result = fal_client.subscribe(
    "fal-ai/lcm-sd15-i2i",
    arguments={
        "prompt": "masterpiece, colorful, photo of a beach in hawaii, sun",
        "image_url": image_url,
        "strength": 0.8,  # how far from your picture: 0.5 keeps much of it, 1.0 next to nothing
        "seed": 42,  # the same seed and input give the same picture
    },
    on_queue_update=show,
)

picture = result["images"][0]
with urllib.request.urlopen(picture["url"]) as answer:
    Path("output.jpg").write_bytes(answer.read())
print(f"output.jpg: {picture['width']}×{picture['height']}, seed {result['seed']}")
