"""Logging: its format, and faults without what callers sent.

No logger of the server writes a query string (tokens), a body (prompts, pictures), a header (keys) or a stored file's
name (whoever knows it can read the file).
"""

import logging
import traceback

_FORMAT = "%(asctime)s %(levelname)-7s %(name)s: %(message)s"

# These write URLs with their query strings at INFO.
_TOO_TALKATIVE = ("uvicorn.access", "uvicorn.error", "httpx", "httpcore", "websockets")

_FAULTS = logging.getLogger("fourstep.faults")


def configure(level: int = logging.INFO) -> None:
    """Log to stderr."""
    logging.basicConfig(level=level, format=_FORMAT)
    for name in _TOO_TALKATIVE:
        logging.getLogger(name).setLevel(logging.WARNING)


def fault(where: str, error: BaseException) -> None:
    """Log an error of the server's own: its type and stack, without its message, which may contain a prompt."""
    stack = "".join(traceback.format_tb(error.__traceback__))
    _FAULTS.error("%s: %s\n%s", where, type(error).__name__, stack)
