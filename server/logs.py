"""Logging: its format, and error messages without what callers sent.

No logger of the server writes a query string (tokens), a body (prompts, pictures), a header (keys) or a stored file's
name (anyone who knows it can read the file).
"""

import logging
import traceback

from server.memory import end_if_exhausted

_FORMAT = "%(asctime)s %(levelname)-7s %(name)s: %(message)s"

# These libraries log URLs with their query strings at INFO.
_TOO_TALKATIVE = ("uvicorn.access", "uvicorn.error", "httpx", "httpcore", "websockets")

_FAULTS = logging.getLogger("fourstep.faults")


def configure(level: int = logging.INFO) -> None:
    """Configure logging to stderr."""
    logging.basicConfig(level=level, format=_FORMAT)
    for name in _TOO_TALKATIVE:
        logging.getLogger(name).setLevel(logging.WARNING)


def fault(where: str, error: BaseException) -> None:
    """Log an unexpected exception: its type and stack, without its message, which may contain a prompt.

    A `MemoryError` ends the process instead. Whatever catches every exception passes it on to here.
    """
    end_if_exhausted(error)
    stack = "".join(traceback.format_tb(error.__traceback__))
    _FAULTS.error("%s: %s\n%s", where, type(error).__name__, stack)
