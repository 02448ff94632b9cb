"""Random secrets that outlive a restart, each in a file that its owner alone can read."""

import os
import secrets
from pathlib import Path

SECRET_BYTES = 32


def read_secret(file: Path) -> bytes:
    """The secret in `file`, made when there is none."""
    if file.exists() and len(secret := file.read_bytes()) == SECRET_BYTES:
        return secret
    secret = secrets.token_bytes(SECRET_BYTES)
    file.parent.mkdir(parents=True, exist_ok=True)
    draft = file.with_suffix(".tmp")
    with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as stream:
        stream.write(secret)
    draft.replace(file)
    return secret
