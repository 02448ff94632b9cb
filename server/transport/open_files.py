"""The limit of open files: raised as far as it goes, and what the number of connections has to be then."""

import bisect
import dataclasses
import resource
import sys

from server.settings import Settings, SettingsError
from server.storage.files import SPOOL_BYTES
from server.transport.room import newcomers

# What is open beside connections, uploads and files which are sent: listeners, the database, engines' pipes, pictures
# on their way in and out, webhooks, TLS handshakes, probes.
_OTHERS = 256

# The most that macOS lets a process have where its hard limit says “unlimited” (OPEN_MAX of its headers).
_MACOS_MOST = 10_240


def raise_limit() -> int:
    """Raise the limit to the hard one, since login shells and service managers give 1024; return what it is now."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    except (ValueError, OSError):
        most = _MACOS_MOST if hard == resource.RLIM_INFINITY else min(hard, _MACOS_MOST)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return sys.maxsize if soft == resource.RLIM_INFINITY else soft


def within(limit: int, settings: Settings) -> tuple[Settings, str]:
    """Return the settings with no more connections than `limit` open files allow, and a line to print if that is less.

    Raises `SettingsError` where none is left.
    """
    uploads = settings.body_budget_bytes // SPOOL_BYTES

    def need(connections: int) -> int:
        return connections + newcomers(connections) + min(connections, uploads) + settings.max_downloads + _OTHERS

    connections = bisect.bisect_right(range(1, settings.max_connections + 1), limit, key=need)
    if connections == settings.max_connections:
        return settings, ""
    most = need(settings.max_connections)
    hint = f"Hint: `ulimit -n {most}`, or LimitNOFILE={most} in systemd, or `docker run --ulimit nofile={most}`"
    if connections < 1:
        raise SettingsError(f"this process may open only {limit} files. {hint}")
    line = f"max-connections is {connections}, not {settings.max_connections}: only {limit} files may be open. {hint}"
    return dataclasses.replace(settings, max_connections=connections), line
