"""Upload so many bytes and read them back."""

import hashlib
import tempfile

import fal_client
import httpx
from kit import OPTIONS, say

data = bytes(range(256)) * (OPTIONS["size"] // 256)
with tempfile.NamedTemporaryFile(suffix=".bin") as file:
    file.write(data)
    file.flush()
    url = fal_client.upload_file(file.name)
stored = httpx.get(url)
say(
    {
        "url": url,
        "status": stored.status_code,
        "same": hashlib.sha256(stored.content).digest() == hashlib.sha256(data).digest(),
    }
)
