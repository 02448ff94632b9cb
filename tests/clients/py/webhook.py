"""A receiver of webhooks: submits with its own address, then checks what comes as fal's documentation tells it to.

Source of `verify`: fal's "Webhooks", its Python example, with this machine's Ed25519 in place of PyNaCl's.
"""

import base64
import hashlib
import json
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer

import fal_client
import httpx
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from kit import APP, INPUT, OPTIONS, say

JWKS_URL = "https://rest.fal.ai/.well-known/jwks.json"
received = []
enough = threading.Event()


def verify(request_id, user_id, timestamp, signature_hex, body):
    if abs(int(time.time()) - int(timestamp)) > 300:
        return False
    message = "\n".join([request_id, user_id, timestamp, hashlib.sha256(body).hexdigest()]).encode("utf-8")
    signature = bytes.fromhex(signature_hex)
    for key in httpx.get(JWKS_URL, timeout=10).raise_for_status().json()["keys"]:
        try:
            Ed25519PublicKey.from_public_bytes(base64.urlsafe_b64decode(key["x"])).verify(signature, message)
        except InvalidSignature:
            continue
        return True
    return False


class Receiver(BaseHTTPRequestHandler):
    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        names = ("Request-Id", "User-Id", "Timestamp", "Signature")
        signed = [self.headers[f"X-Fal-Webhook-{name}"] for name in names]
        received.append(
            {
                "body": json.loads(body),
                "request_id": signed[0],
                "verified": verify(*signed, body),
                "tampered": verify(*signed, body + b" "),
            }
        )
        self.send_response(200)
        self.end_headers()
        enough.set()

    def log_message(self, *_):
        pass


receiver = HTTPServer(("127.0.0.1", 0), Receiver)
threading.Thread(target=receiver.serve_forever, daemon=True).start()
url = f"http://127.0.0.1:{receiver.server_port}/hook"
handle = fal_client.submit(APP, {**INPUT, **OPTIONS.get("input", {})}, webhook_url=url)
enough.wait(20)
say({"request_id": handle.request_id, "received": received})
