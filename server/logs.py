"""Logging: what is said of each call, and error messages without what callers sent.

The form of the lines is that of all processes (`pipelines.log_lines`). No logger of the server writes a query string
(tokens), a body (prompts, pictures), a header (keys) or a stored file's name (anyone who knows it can read the file).
"""

import logging
import traceback

from pipelines import log_lines
from server.memory import end_if_exhausted

moves = log_lines.moves
WIPE = log_lines.WIPE

_FAULTS = logging.getLogger("fourstep.faults")
_CALLS = logging.getLogger("fourstep.access")


def configure(level: str, form: str) -> None:
    """Log to stderr from this level on, in this form: the settings `log_level` and `log_format`."""
    log_lines.configure(level, form, process="server", quote=False)


def call(level: int, what: str, **fields: str | float) -> None:
    """Log the end of a call; each field stands in the line, and is a field of a JSON line. Those that are "" are not.

    `request_id`, `route` (run, queue, realtime …), `key` (its id), `outcome`, `seconds`: of each kind of call.
    """
    if _CALLS.isEnabledFor(level):
        known = {name: value for name, value in fields.items() if value != ""}
        words = " ".join(f"{name}={value}" for name, value in known.items())
        _CALLS.log(level, "%s %s", what, words, extra=known)


def fault(where: str, error: BaseException) -> None:
    """Log an unexpected exception: its type and stack, without its message, which may contain a prompt.

    A `MemoryError` ends the process instead. Whatever catches every exception passes it on to here.
    """
    end_if_exhausted(error)
    stack = "".join(traceback.format_tb(error.__traceback__))
    _FAULTS.error("%s: %s\n%s", where, type(error).__name__, stack)
