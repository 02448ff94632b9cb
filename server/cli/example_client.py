"""The endpoint's own example request through fal's Python client, as a user's program would send it.

`fourstep demo` runs this file as a program of its own, with FAL_RUN_HOST, FAL_QUEUE_RUN_HOST and SSL_CERT_FILE pointing
at the server. It saves the picture and prints the result as JSON.
"""

import json
import sys
import urllib.request
from pathlib import Path

import fal_client

result = fal_client.subscribe(
    "fal-ai/lcm-sd15-i2i",
    arguments={
        "prompt": "masterpiece, colorful, photo of a beach in hawaii, sun",
        "image_url": "https://storage.googleapis.com/falserverless/model_tests/lcm/beach.png",
        "seed": 42,
    },
)
with urllib.request.urlopen(result["images"][0]["url"]) as answer:  # noqa: S310 — the URL is our own server's
    Path(sys.argv[1]).write_bytes(answer.read())
print(json.dumps(result))
