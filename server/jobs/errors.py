"""What can go wrong with the job database, the same for each of its forms."""

import logging

from server.fal.errors import RequestError, overloaded
from server.settings import SettingsError


class DatabaseError(Exception):
    """A read or write failed: the database is full, locked, broken or away. The text is the database's own words.

    `hint`: what the operator can do. `damaged`: it will not become usable again by itself.
    """

    def __init__(self, reason: str, *, hint: str = "", damaged: bool = False) -> None:
        super().__init__(reason)
        self.hint = hint
        self.damaged = damaged


class DatabaseUnusable(SettingsError):
    """The server can't start on this database; the message says why, with a hint."""


class DatabaseTooNew(DatabaseUnusable):
    """The database was written by a newer release."""


def refusal(error: DatabaseError) -> RequestError:
    """Return a caller's answer: 429 while the database may become usable again, 500 for a damaged one."""
    if error.damaged:
        return RequestError("internal_error", "The server's job database is damaged")
    return overloaded("The server can't use its job database at present")


def log_database_error(log: logging.Logger, what: str, error: DatabaseError) -> None:
    """Log an error in one line: on a full disk it comes every second, and a traceback adds nothing."""
    log.error("%s: %s", what, error)
