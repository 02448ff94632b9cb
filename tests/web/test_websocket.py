"""A websocket behind a proxy that does not pass its handshake on as one."""

import contextlib
import http.client
import json
import logging

import pytest

from server.web.websocket import UpgradeRequired
from tests.support.asgi_client import call
from tests.support.server_process import APP

HANDSHAKE = {
    "Upgrade": "websocket",
    "Connection": "Upgrade",
    "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
    "Sec-WebSocket-Version": "13",
}
LINES = ("proxy_http_version 1.1;", "proxy_set_header Upgrade $http_upgrade;", 'proxy_set_header Connection "upgrade";')


def ask(server, path, headers, version=11):
    """Status, `Upgrade` and message of the answer to a handshake."""
    with contextlib.closing(http.client.HTTPConnection(server.host, timeout=10)) as connection:
        connection._http_vsn, connection._http_vsn_str = version, f"HTTP/1.{version - 10}"
        connection.request("GET", path, headers={"Host": server.host, **headers})
        with connection.getresponse() as answer:
            message = "" if answer.status == 101 else json.load(answer)["message"]
            return answer.status, answer.headers["Upgrade"], message


def without(*names):
    return {name: value for name, value in HANDSHAKE.items() if name not in names}


@pytest.mark.parametrize(
    "path", [f"/run/{APP}/realtime", f"/{APP}/realtime?fal_jwt_token=x", f"/run/{APP}", f"/ws/{APP}"]
)
@pytest.mark.parametrize(
    ("headers", "version"),
    [
        (without("Upgrade", "Connection"), 11),
        (without("Upgrade") | {"Connection": "close"}, 10),  # nginx, as it comes
        (HANDSHAKE | {"Connection": "close"}, 11),
        (without("Connection"), 11),
        (without("Upgrade"), 11),
    ],
)
def test_a_handshake_without_its_upgrade_gets_426_that_names_the_proxys_lines(path, headers, version, instant):
    status, upgrade, message = ask(instant, path, headers, version)

    assert (status, upgrade) == (426, "websocket")
    assert [line for line in LINES if line not in message] == []


def test_a_handshake_that_came_whole_is_accepted(instant):
    status, _, _ = ask(instant, f"/run/{APP}/realtime", HANDSHAKE)

    assert status == 101


@pytest.mark.anyio
async def test_the_first_is_logged_and_no_other(caplog):
    guarded = UpgradeRequired(None)

    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            await call(guarded, "GET", "/run/x", headers={"sec-websocket-key": "k"})

    assert [LINES[1] in record.message for record in caplog.records] == [True]
