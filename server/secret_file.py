"""Random secrets that outlive a restart, each in a file that its owner alone can read."""

import secrets
from pathlib import Path

from server.data_dir import write_whole

SECRET_BYTES = 32


def read_secret(file: Path) -> bytes:
    """The secret in `file`, made when there is none."""
    if file.exists() and len(secret := file.read_bytes()) == SECRET_BYTES:
        return secret
    secret = secrets.token_bytes(SECRET_BYTES)
    file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    write_whole(file, secret)
    return secret
