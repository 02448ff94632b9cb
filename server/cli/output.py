"""What short commands share: text to stdout, and errors of the data directory as one line."""

import contextlib
import sys
from collections.abc import Iterator

from server.data_dir import prepare, usable
from server.settings import Settings


@contextlib.contextmanager
def in_data_dir(settings: Settings, *, made: bool) -> Iterator[None]:
    """Context of work on the data directory, which may be `made` first. Turns `OSError` into `SettingsError`."""
    with usable(settings.data_dir):
        if made:
            prepare(settings.data_dir)
        yield


def show(text: str) -> None:
    """Write `text` and one newline to stdout."""
    sys.stdout.write(text.rstrip("\n") + "\n")
