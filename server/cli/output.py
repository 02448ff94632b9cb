"""What commands share: text to stdout, errors of the data directory as one line, its lock."""

import contextlib
import sys
from collections.abc import Iterator

from server.data_dir import Held, locked, prepare, usable
from server.settings import Settings, SettingsError


@contextlib.contextmanager
def in_data_dir(settings: Settings, *, made: bool) -> Iterator[None]:
    """Context of work on the data directory, which may be `made` first. Turns `OSError` into `SettingsError`."""
    with usable(settings.data_dir):
        if made:
            prepare(settings.data_dir)
        yield


@contextlib.contextmanager
def sole_server(settings: Settings) -> Iterator[None]:
    """Hold the data directory's lock: two servers would expire each other's files. It ends with the process."""
    try:
        with locked(settings.data_dir / "lock", wait=False):
            yield
    except Held as error:
        raise SettingsError(
            f"another server runs on {settings.data_dir}. Hint: stop it, or choose another --data-dir"
        ) from error


def show(text: str) -> None:
    """Write `text` and one newline to stdout."""
    sys.stdout.write(text.rstrip("\n") + "\n")
