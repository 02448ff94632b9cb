"""Bind the sockets that a server listens on.

They are bound before anything else is done, so that a port in use is reported at once and the port that `--port 0`
picks is known.
"""

import contextlib
import errno
import functools
import socket
import ssl
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeAlias

from server.settings import ListenSettings, SettingsError
from server.transport import tls

TAKEOVER_PORT = 443
# Connections that wait to be accepted while the loop is busy; the kernel caps it (net.core.somaxconn).
BACKLOG = 2048

_Create: TypeAlias = Callable[..., socket.socket]
_HINTS = {
    errno.EADDRINUSE: "is in use: stop what holds it, or choose another",
    errno.EACCES: "needs a privilege: see docs/clients.md, “Port 443 without root”",
}
# What a machine without IPv6 says of ::1.
_NO_SUCH_ADDRESS = frozenset({errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT})


@dataclass(frozen=True)
class Listener:
    """The sockets bound to one port, one for each address, and the TLS context when they speak https."""

    sockets: tuple[socket.socket, ...]
    context: ssl.SSLContext | None = None

    @property
    def port(self) -> int:
        """The port that the sockets are bound to, also when port 0 was asked for."""
        return int(self.sockets[0].getsockname()[1])


@dataclass(frozen=True)
class Listeners:
    """The sockets of a server: plain HTTP always, https and takeover (port 443) when the settings say so."""

    http: Listener
    https: Listener | None = None
    takeover: Listener | None = None

    def __iter__(self) -> Iterator[Listener]:
        return (listener for listener in (self.http, self.https, self.takeover) if listener is not None)

    def close(self) -> None:
        """Close the sockets."""
        for listener in self:
            for bound in listener.sockets:
                bound.close()


class _BindError(SettingsError):
    """An address and port that can't be bound; the message says what to do."""

    def __init__(self, address: str, port: int, error: OSError) -> None:
        other = f"can't be opened ({error.strerror}): --host takes an address of this machine"
        super().__init__(f"{address} port {port} {_HINTS.get(error.errno or 0, other)}")
        self.errno = error.errno


def bind(settings: ListenSettings, create: _Create = socket.create_server) -> Listeners:
    """Bind every socket that the settings name; make certificates when one speaks https.

    Raises `SettingsError`, with what to do, for a port that is in use or not allowed.
    """
    bind_port = functools.partial(_bind, settings, create)
    http = Listener(bind_port(settings.port))
    if settings.tls_port is None and not settings.takeover:
        return Listeners(http)
    context = tls.server_context(tls.ensure(settings))
    return Listeners(
        http,
        https=None if settings.tls_port is None else Listener(bind_port(settings.tls_port), context),
        takeover=Listener(bind_port(TAKEOVER_PORT), context) if settings.takeover else None,
    )


def _bind(settings: ListenSettings, create: _Create, port: int) -> tuple[socket.socket, ...]:
    """Bind a port on every address; if it is 0, one that is free on all of them."""
    first, *others = settings.addresses
    with contextlib.ExitStack() as unfit:  # they stay open meanwhile, else their ports could be picked again
        while True:
            bound = _open(settings, create, first, port)
            try:
                return bound, *(_open(settings, create, address, bound.getsockname()[1]) for address in others)
            except _BindError as error:
                if error.errno in _NO_SUCH_ADDRESS:
                    return (bound,)
                unfit.enter_context(bound)
                if port or error.errno != errno.EADDRINUSE:
                    raise


def _open(settings: ListenSettings, create: _Create, address: str, port: int) -> socket.socket:
    try:
        family = socket.getaddrinfo(address, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0][0]
        bound = create((address, port), family=family, backlog=BACKLOG)
    except OSError as error:
        raise _BindError(address, port, error) from error
    if settings.send_buffer_bytes:  # each accepted socket inherits it
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, settings.send_buffer_bytes)
    return bound
