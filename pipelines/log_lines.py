"""Log lines, of one form in all processes: the server's, its engines' and their decoders'. All write to one stderr.

    human    2026-11-28 02:24:00,123 INFO    pipelines.worker: what happened
    json     {"time": …, "level": …, "logger": …, "message": …, "process": …, "pid": …} on one line, and its fields
    auto     human, and at a terminal each line wipes the progress line that it may find there

`auto` is to be read wherever it goes: journald and Docker keep lines as they come, and what reads them there is an
operator with `journalctl` or `docker logs`. Who collects lines for machines says json.

Libraries log warnings and errors only, whatever the level: their other lines tell what callers have sent.
"""

import logging
import os
import sys
import threading
import traceback
from datetime import UTC, datetime
from types import TracebackType
from typing import Any

from typing_extensions import override

# The loggers of this project: the level is theirs.
OURS = ("fourstep", "server", "pipelines")

# Moves to the line's begin and clears it (ECMA-48).
WIPE = "\r\x1b[K"

_FAULTS = logging.getLogger("fourstep.faults")
_HUMAN = "%(asctime)s %(levelname)-7s %(name)s: %(message)s"


def configure(level: str = "info", form: str = "auto", *, process: str, quote: bool = True, **about: str) -> None:
    """Have this process log to stderr. `level`, `form`: the settings `log_level` and `log_format`.

    `process` and `about` are fields of each JSON line. Without `quote` an exception is logged without its message,
    which may hold what a caller sent.
    """
    handler = logging.StreamHandler(sys.stderr)
    if form == "json":
        handler.setFormatter(_json_formatter({"process": process, "pid": os.getpid(), **about}, quote=quote))
    else:
        handler.setFormatter(_Human((WIPE if moves(form) else "") + _HUMAN, quote=quote))
    logging.basicConfig(level=max(logging.WARNING, _number(level)), handlers=[handler], force=True)
    for name in OURS:
        logging.getLogger(name).setLevel(_number(level))
    logging.captureWarnings(capture=True)
    sys.excepthook, threading.excepthook = _on_uncaught, _on_thread_error


def moves(form: str) -> bool:
    """Return whether there is a terminal on which a line may move, in this form."""
    return form == "auto" and sys.stderr.isatty()


def adopt(library: str) -> None:
    """Have a library that brings a handler of its own log as all others do."""
    logger = logging.getLogger(library)
    logger.handlers.clear()
    logger.propagate = True


def _number(level: str) -> int:
    return logging.getLevelNamesMapping()[level.upper()]


def _exception(kind: type[BaseException] | None, trace: TracebackType | None) -> str:
    """Return an exception's type and stack, without its message."""
    return "".join(traceback.format_tb(trace)) + (kind.__name__ if kind else "")


class _Human(logging.Formatter):
    def __init__(self, form: str, *, quote: bool) -> None:
        super().__init__(form)
        self._quote = quote

    @override
    def format(self, record: logging.LogRecord) -> str:
        return super().format(record).rstrip("\n")  # a warning of Python's ends with one

    @override
    def formatException(self, ei: Any) -> str:
        return super().formatException(ei) if self._quote else _exception(ei[0], ei[2])


def _json_formatter(fields: dict[str, str | int], *, quote: bool) -> logging.Formatter:
    from pythonjsonlogger.json import JsonFormatter  # noqa: PLC0415 (only for who asks for it)

    class Json(JsonFormatter):
        @override
        def formatTime(self, record: logging.LogRecord, datefmt: str | None = None) -> str:
            return datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")

        @override
        def formatException(self, ei: Any) -> str:
            return logging.Formatter.formatException(self, ei) if quote else _exception(ei[0], ei[2])

    names = {"asctime": "time", "levelname": "level", "name": "logger"}
    return Json(["asctime", "levelname", "name", "message"], rename_fields=names, static_fields=fields)


def _on_thread_error(raised: threading.ExceptHookArgs) -> None:
    """Log what ends a thread."""
    name = raised.thread.name if raised.thread else ""
    trace = (raised.exc_type, raised.exc_value, raised.exc_traceback)
    _FAULTS.error("the thread %s ends", name, exc_info=trace if raised.exc_value else None)  # type: ignore[arg-type]


def _on_uncaught(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Log what ends the process, in the form of all other lines."""
    _FAULTS.critical("the process ends", exc_info=(kind, error, trace))
