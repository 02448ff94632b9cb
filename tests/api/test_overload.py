"""More than a server process can hold, from real clients over sockets: it says 429 and stays as large as it was."""

import base64
import http.client
import json
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import pytest

from tests.support import peak_memory
from tests.support.server_process import APP, serving, until

MIB = 1024 * 1024
BODY, BUDGET, CLIENTS = 8 * MIB, 24 * MIB, 40
# A picture is in hand as text, as bytes and on its way to the engine; and there is more to a process than bodies.
FACTOR, BESIDE_MB = 3, 150
SMALL = json.dumps({"prompt": "", "image_url": "data:image/jpeg;base64,/9j/", "sync_mode": True}).encode()


@pytest.fixture(scope="module")
def small():
    """A server with a small budget, and an engine slow enough for bodies to meet."""
    flags = ("--max-body-bytes", str(BODY), "--body-budget-bytes", str(BUDGET), "--max-batch", "1")
    with serving("--model", "instant:200", *flags) as server:
        yield server


def post(server, body, *, chunked=False, path=f"/run/{APP}", key=""):
    """The status of one call with a body of these bytes."""
    with closing(http.client.HTTPConnection(server.host, timeout=30)) as connection:
        pieces = [body[start : start + MIB] for start in range(0, len(body), MIB)]
        connection.request(
            "POST",
            path,
            pieces if chunked else body,
            {"Content-Type": "application/json", "Authorization": f"Key {key}"},
            encode_chunked=chunked,
        )
        return connection.getresponse().status


def large_body():
    """The largest body: a picture that no engine looks at."""
    fields = {"prompt": "", "image_url": "data:image/jpeg;base64,", "sync_mode": True}
    room = (BODY - len(json.dumps(fields))) // 4 * 3
    return json.dumps({**fields, "image_url": fields["image_url"] + base64.b64encode(bytes(room)).decode()}).encode()


@pytest.mark.parametrize(("path", "chunked"), [(f"/run/{APP}", True), (f"/queue/{APP}", False)])
def test_large_bodies_beyond_the_budget_are_429_and_memory_does_not_grow(small, path, chunked):
    body = large_body()
    post(small, body)
    peak_memory.restart(small.pid)
    before = peak_memory.megabytes(small.pid)

    with ThreadPoolExecutor(CLIENTS) as clients:
        statuses = list(clients.map(lambda _: post(small, body, chunked=chunked, path=path), range(CLIENTS)))

    grown = peak_memory.megabytes(small.pid) - before
    assert set(statuses) == {200, 429}
    assert grown < FACTOR * BUDGET / MIB + BESIDE_MB
    assert [post(small, body) for _ in range(4)] == [200] * 4


def test_a_key_that_floods_the_server_leaves_room_for_another():
    env = {"FOURSTEP_KEYS": "wild:w,calm:c"}
    done = threading.Event()

    def flood(server):
        while not done.is_set():
            flooded.append(post(server, SMALL, key="wild:w"))

    flooded = []
    with serving("--model", "instant:50", "--max-calls", "8", env=env) as server, ThreadPoolExecutor(24) as clients:
        for _ in range(24):
            clients.submit(flood, server)
        until(lambda: 429 in flooded)
        calm = [post(server, SMALL, key="calm:c") for _ in range(20)]
        done.set()

    assert calm == [200] * 20
    assert set(flooded) == {200, 429}
