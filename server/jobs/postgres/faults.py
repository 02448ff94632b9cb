"""What an error of PostgreSQL or its driver means: worth another try, a lost connection, the operator's business."""

import socket
import ssl

import asyncpg

from server.jobs.errors import DatabaseError

_UNREACHABLE = "see whether PostgreSQL runs there and takes connections from this machine"
POOLER = "name PostgreSQL itself in FOURSTEP_DATABASE, not a pooler such as PgBouncer"
# SQLSTATE → what the operator can do. A code that is not here is looked for by its class, the first two characters.
_HINTS = {
    "28": "give the right user and password in FOURSTEP_DATABASE or in ~/.pgpass",
    "3D000": "create the database, or name another in FOURSTEP_DATABASE",
    "42501": "let this user own the database and its tables, or: GRANT ALL ON SCHEMA public TO its user",
    "25006": "name all hosts, and target_session_attrs=read-write, so that the one that takes writes is found",
    "53100": "free some space on the database's disk",
    "08": _UNREACHABLE,
    "08P01": POOLER,  # it knows fewer settings
    "26000": POOLER,  # a statement that was prepared on another's connection
    "42P05": POOLER,
    "57P01": _UNREACHABLE,
    "57P02": _UNREACHABLE,
    "57P03": _UNREACHABLE,
    "53300": "raise max_connections of PostgreSQL: each server needs up to 8",
}
_HOST_UNKNOWN = "see whether the host names in FOURSTEP_DATABASE are right"
_CERTIFICATE = "see sslmode and sslrootcert in FOURSTEP_DATABASE"
_NO_PRIMARY = "see whether one of the hosts takes writes, and that all are named"
_URL = "FOURSTEP_DATABASE is to be postgresql://user@host/database, other characters percent-encoded"
_DAMAGED = "restore the database from a backup, or fail over to a standby"

# The server's answer says that the same words may be taken later, or by another server.
_WORTH_A_TRY = (
    asyncpg.PostgresConnectionError,
    asyncpg.OperatorInterventionError,  # it shuts down, starts, or has stopped a statement that took too long
    asyncpg.TransactionRollbackError,  # deadlock, serialization
    asyncpg.TooManyConnectionsError,
    asyncpg.ReadOnlySQLTransactionError,  # it was the primary until now
    asyncpg.InvalidAuthorizationSpecificationError,  # perhaps a standby that has not heard of the user yet
    asyncpg.InvalidCachedStatementError,  # a newer release has changed a table
    asyncpg.UniqueViolationError,  # another server was first; the next try sees what it has stored
    asyncpg.InternalClientError,  # no host takes writes at present; or bytes that are no protocol
    OSError,  # also TimeoutError and SSLError
)
# The connection is open, and as good as before.
_HARMLESS = (asyncpg.TransactionRollbackError, asyncpg.IntegrityConstraintViolationError, asyncpg.DataError)


def worth_a_try(error: Exception, *, closed: bool) -> bool:
    """Return whether the operation may succeed when repeated. `closed`: its connection has been lost."""
    return closed or isinstance(error, _WORTH_A_TRY)


def spoils(error: BaseException) -> bool:
    """Return whether the connection on which it happened must not be used again."""
    return not isinstance(error, _HARMLESS)


def unreachable(error: Exception) -> bool:
    """Return whether there was no connection to be had, or no answer in time."""
    return isinstance(error, OSError | asyncpg.CannotConnectNowError | asyncpg.InternalClientError)


def away(error: Exception) -> bool:
    """Return whether the database can't be reached, or went away, as one does that is started again or fails over."""
    if isinstance(error, socket.gaierror | ssl.SSLError | asyncpg.ProtocolViolationError):
        return False
    return unreachable(error) or isinstance(error, asyncpg.PostgresConnectionError | asyncpg.OperatorInterventionError)


def database_error(error: Exception) -> DatabaseError:
    """Return the error as callers of the store know it: one line, with the database's own words."""
    code = getattr(error, "sqlstate", None) or ""
    return DatabaseError(_reason(error), hint=_hint(error, code), damaged=code in {"XX001", "XX002"})


def _reason(error: Exception) -> str:
    if isinstance(error, TimeoutError):
        return "PostgreSQL does not answer"
    if isinstance(error, ValueError) and not isinstance(error, asyncpg.InterfaceError):
        return "its URL can't be read"  # the error's own words may have the password in them
    if isinstance(error, asyncpg.DataError):
        return "a value can't be stored"  # here they have the value
    # Of PostgreSQL's messages only the first line: details may have values in them.
    return str(error.args[0] if isinstance(error, asyncpg.PostgresError) else error).partition("\n")[0]


def _hint(error: Exception, code: str) -> str:
    if code in {"XX001", "XX002"}:
        return _DAMAGED
    if isinstance(error, asyncpg.TargetServerAttributeNotMatched):
        return _NO_PRIMARY
    if isinstance(error, ssl.SSLError):
        return _CERTIFICATE
    if isinstance(error, ValueError):
        return _URL
    if isinstance(error, OSError):
        return _HOST_UNKNOWN if type(error).__name__ == "gaierror" else _UNREACHABLE
    return _HINTS.get(code, _HINTS.get(code[:2], ""))
