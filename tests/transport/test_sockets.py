"""Which sockets are bound for which settings."""

import errno
import os
import socket

import pytest

from server.settings import Settings, SettingsError
from server.transport import sockets
from tests.support.server_process import loopback

LOOPBACK = loopback()


def test_a_host_that_is_not_ours_is_said(tmp_path):
    with pytest.raises(SettingsError, match="can't be opened"):
        sockets.bind(Settings(data_dir=tmp_path, host="192.0.2.1", port=0))


def failing(number):
    """`socket.create_server` that has this error for ::1."""

    def create(address, **options):
        if address[0] == "::1":
            raise OSError(number, os.strerror(number))
        return socket.create_server(address, **options)

    return create


def bound(settings, create=socket.create_server):
    """Address and port of every socket that is bound for these settings."""
    listeners = sockets.bind(settings, create)
    try:
        return [each.getsockname()[:2] for listener in listeners for each in listener.sockets]
    finally:
        listeners.close()


@pytest.mark.parametrize(
    ("host", "addresses"),
    [
        ("localhost", LOOPBACK),
        (Settings.host, LOOPBACK),
        ("LocalHost", LOOPBACK),
        ("127.0.0.1", ["127.0.0.1"]),
        *[(each, LOOPBACK[1:]) for each in ("::1", "[::1]") if LOOPBACK[1:]],
    ],
)
def test_localhost_is_both_loopback_addresses_and_any_other_is_itself(host, addresses, tmp_path):
    found = bound(Settings(data_dir=tmp_path, host=host, port=0))

    assert [address for address, _ in found] == addresses
    assert len({port for _, port in found}) == 1


def test_a_machine_without_ipv6_serves_the_other_address(tmp_path):
    found = bound(Settings(data_dir=tmp_path, port=0), failing(errno.EADDRNOTAVAIL))

    assert [address for address, _ in found] == ["127.0.0.1"]


def test_port_0_is_one_that_is_free_on_both_addresses(tmp_path):
    taken = []

    def create(address, **options):
        for port in taken[:-1]:  # else the kernel could choose it for ever
            with pytest.raises(OSError, match="in use"):
                socket.create_server(("127.0.0.1", port))
        if address[0] == "::1" and len(taken) < 3:
            taken.append(address[1])
            raise OSError(errno.EADDRINUSE, "Address already in use")
        return socket.create_server(address, **options)

    found = bound(Settings(data_dir=tmp_path, port=0), create)

    assert len({*taken, found[0][1]}) == 4


@pytest.mark.parametrize(("number", "said"), [(errno.EADDRINUSE, "is in use"), (errno.EACCES, "needs a privilege")])
def test_a_port_that_only_one_address_has_free_is_said(number, said, tmp_path):
    [(_, port), *_] = bound(Settings(data_dir=tmp_path, host="127.0.0.1", port=0))

    with pytest.raises(SettingsError, match=f"::1 port {port} {said}"):
        bound(Settings(data_dir=tmp_path, port=port), failing(number))
