"""Receive webhooks, believe only those that your server has signed, and save their pictures.

    pip install cryptography
    fourstep serve --model auto --allow-net 127.0.0.0/8     a receiver on this machine is inside: it must be allowed
    python examples/webhook.py                              listens on http://127.0.0.1:9000/

    curl 'http://localhost:8000/queue/fal-ai/lcm-sd15-i2i?fal_webhook=http://127.0.0.1:9000/' \
      -H 'Content-Type: application/json' -d '{"prompt": "a beach",
      "image_url": "https://storage.googleapis.com/falserverless/model_tests/lcm/beach.png"}'

A server with keys wants one more header of that call: -H "Authorization: Key $FAL_KEY"
"""

import base64
import functools
import hashlib
import json
import os
import time
import urllib.request
import uuid
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

SERVER = os.environ.get("SERVER_URL", "http://localhost:8000")
PORT = int(os.environ.get("PORT", "9000"))
OLDEST_S = 300  # an older one may be a copy that somebody has kept
JWKS_S = 24 * 3600  # the server publishes a new key a day before it signs, so its keys may be kept for as long


@functools.lru_cache(maxsize=1)
def keys(day: int) -> list[Ed25519PublicKey]:
    """Return the server's public keys, asked for once a day."""
    with urllib.request.urlopen(f"{SERVER}/.well-known/jwks.json", timeout=10) as answer:
        found = json.load(answer)["keys"]
    return [Ed25519PublicKey.from_public_bytes(base64.urlsafe_b64decode(key["x"])) for key in found]


def is_signed(request_id: str, user_id: str, timestamp: str, signature: str, body: bytes) -> bool:
    """Return whether one of the server's keys has signed exactly this, within the last minutes."""
    message = "\n".join([request_id, user_id, timestamp, hashlib.sha256(body).hexdigest()]).encode()
    try:
        if abs(time.time() - int(timestamp)) > OLDEST_S:
            return False
        given = bytes.fromhex(signature)
    except ValueError:
        return False
    for key in keys(int(time.time() // JWKS_S)):
        try:
            key.verify(given, message)
        except InvalidSignature:
            continue
        return True
    return False


class Receiver(BaseHTTPRequestHandler):
    """Answers 200 once a webhook is dealt with; any other status brings it again, ten times over two hours."""

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", "0")))
        names = ("Request-Id", "User-Id", "Timestamp", "Signature")
        if not is_signed(*(self.headers.get(f"X-Fal-Webhook-{name}", "") for name in names), body):
            self.send_error(401, "Not signed by the server")
            return
        save(json.loads(body))
        self.send_response(200)
        self.end_headers()


def save(webhook: dict) -> None:
    """Save the picture of a request under its id, once: the same webhook may come twice."""
    output = Path(f"{uuid.UUID(webhook['request_id'])}.jpg")
    if webhook["status"] != "OK":
        print(f"{output.stem}: {webhook['error']}", flush=True)
    elif not output.exists():
        with urllib.request.urlopen(webhook["payload"]["images"][0]["url"], timeout=60) as answer:
            output.write_bytes(answer.read())
        print(f"{output}, seed {webhook['payload']['seed']}", flush=True)


if __name__ == "__main__":
    with ThreadingHTTPServer(("127.0.0.1", PORT), Receiver) as server:
        print(f"http://127.0.0.1:{server.server_port}/", flush=True)
        server.serve_forever()
