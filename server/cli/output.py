"""What short commands share: text to stdout, and errors of the data directory as one line."""

import contextlib
import sys
from collections.abc import Iterator

from server.data_dir import prepare
from server.settings import Settings, SettingsError


@contextlib.contextmanager
def in_data_dir(settings: Settings, *, made: bool) -> Iterator[None]:
    """Context of work on the data directory, which may be `made` first. Turns `OSError` into `SettingsError`."""
    try:
        if made:
            prepare(settings.data_dir)
        yield
    except OSError as error:
        where = error.filename or settings.data_dir
        raise SettingsError(
            f"data-dir: {where}: {error.strerror}. Hint: let this user write there, or choose another --data-dir"
        ) from error


def show(text: str) -> None:
    """Write `text` and one newline to stdout."""
    sys.stdout.write(text.rstrip("\n") + "\n")
