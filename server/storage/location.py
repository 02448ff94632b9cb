"""What `--files` may say: `s3://bucket/prefix`, or `file:///folder` on a mount that all servers share."""

import re
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote, urlsplit

from server.settings import SettingsError

_HINT = "Hint: s3://bucket/prefix, file:///folder on a shared mount, or nothing for the data folder"
_BUCKET = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")
_CHARS = re.compile(r"[A-Za-z0-9!_.*'()/-]*")


class Location(NamedTuple):
    """Where files lie: in a bucket under a prefix, or in a folder. `text`: how messages call it."""

    text: str
    bucket: str = ""
    prefix: str = ""
    folder: Path | None = None


def parse(text: str) -> Location:
    """Return what the setting says. Raises `SettingsError`."""
    try:
        url = urlsplit(text)
    except ValueError as error:
        raise SettingsError(f"files: {error}. {_HINT}") from error
    if url.scheme == "s3" and "@" in url.netloc:
        hint = "Hint: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
        raise SettingsError(f"files: s3://… may hold no password, which every user of the machine can read. {hint}")
    if url.query or url.fragment:
        raise SettingsError(f"files: {text} has more than a bucket and a prefix. {_HINT}")
    if url.scheme == "s3":
        prefix = url.path.strip("/")
        if not _BUCKET.fullmatch(url.netloc):
            raise SettingsError(f"files: {url.netloc!r} is no name of a bucket. {_HINT}")
        if not _CHARS.fullmatch(prefix) or {"", ".", ".."} & set(prefix.split("/") if prefix else ()):
            raise SettingsError(f"files: {prefix!r} is no prefix. Hint: letters, digits and ! _ . * ' ( ) - between /")
        return Location(text, url.netloc, prefix)
    if url.scheme == "file":
        if url.netloc not in {"", "localhost"} or not url.path.strip("/"):
            raise SettingsError(f"files: {text} names no folder. Hint: file:///mnt/shared, three slashes")
        return Location(text, folder=Path(unquote(url.path)))
    raise SettingsError(f"files: {text!r} is no place for files. {_HINT}")
