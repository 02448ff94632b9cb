"""The limit of open files: raised as far as it goes, and what the number of connections has to be then."""

import contextlib
import dataclasses
import resource
import sys
from typing import TypeVar

from server.settings import ListenSettings, SettingsError

# What is open beside connections and files which are sent: listeners, the database, engines' pipes, pictures on their
# way in and out, webhooks, TLS handshakes.
_OTHERS = 256

S = TypeVar("S", bound=ListenSettings)


def raise_limit() -> int:
    """Raise the limit to the hard one, since login shells and service managers give 1024; return what it is now."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):  # macOS refuses “unlimited”
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return sys.maxsize if soft == resource.RLIM_INFINITY else soft


def within(limit: int, settings: S) -> tuple[S, str]:
    """Return the settings with no more connections than `limit` open files allow, and a line to print if that is less.

    Raises `SettingsError` where none is left.
    """
    besides = _OTHERS + settings.max_downloads
    connections = limit - besides
    if connections >= settings.max_connections:
        return settings, ""
    need = settings.max_connections + besides
    hint = f"Hint: `ulimit -n {need}`, or LimitNOFILE={need} in systemd, or `docker run --ulimit nofile={need}`"
    if connections < 1:
        raise SettingsError(f"this process may open only {limit} files. {hint}")
    line = f"max-connections is {connections}, not {settings.max_connections}: only {limit} files may be open. {hint}"
    return dataclasses.replace(settings, max_connections=connections), line
