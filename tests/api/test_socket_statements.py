"""Statements of the protocol on a real socket: realtime.

The statements are those of `conformance.txt`. With `--fleet` each socket is that of the next of three boxes.
"""

import contextlib
import json

import msgspec
import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

from tests.support.server_process import APP, CALL, addresses, serving

SESSIONS, IDLE_S = 2, 2.0
WAITING_BYTES = 200_000
pack, unpack = msgspec.msgpack.encode, msgspec.msgpack.decode


@pytest.fixture(scope="module")
def narrow():
    """A server that makes one picture after the other, each in 300 ms (three: in 900), with little room for sockets."""
    limits = ("--max-sessions", str(SESSIONS), "--max-waiting-bytes", str(WAITING_BYTES))
    idle = ("--session-idle-timeout", str(IDLE_S))
    with serving("--model", "instant:300", "--max-batch", "1", *limits, *idle) as server:
        yield server


def opened(server, query=""):
    """A realtime socket."""
    return connect(f"ws://{server.host}/run/{APP}/realtime{query}", open_timeout=20, close_timeout=5, max_size=None)


def answers(socket, last):
    """The seeds of what comes until that of the last input."""
    seeds = []
    while last not in seeds:
        seeds.append(unpack(socket.recv(timeout=30))["seed"])
    return seeds


def test_each_answer_is_in_the_encoding_of_its_input(instant):
    with opened(instant) as socket:
        told = []
        for number, encode in enumerate((json.dumps, pack, json.dumps, pack)):
            socket.send(encode(CALL | {"request_id": str(number)}))
            told.append(socket.recv(timeout=30))

    results = [json.loads(each) if isinstance(each, str) else unpack(each) for each in told]
    assert [type(each) for each in told] == [str, bytes, str, bytes]
    assert [result["request_id"] for result in results] == ["0", "1", "2", "3"]
    assert not any("status" in result for result in results)


def test_nil_is_as_good_as_absent(instant):
    names = ("seed", "request_id", "num_images", "strength", "negative_prompt", "guidance_scale", "sync_mode")
    with opened(instant) as socket:
        socket.send(pack(CALL | dict.fromkeys(names)))
        result = unpack(socket.recv(timeout=30))

    assert (result["request_id"], len(result["images"]), result["num_inference_steps"]) == ("", 1, 4)
    assert 0 <= result["seed"] < 2**53


@pytest.mark.parametrize("wrong", [pack(CALL | {"strength": 2, "request_id": "r"}), b"\xc1"], ids=["value", "frame"])
def test_an_error_is_text_on_a_msgpack_socket_too(instant, wrong):
    with opened(instant) as socket:
        socket.send(wrong)
        told = socket.recv(timeout=30)
        socket.send(pack(CALL))
        after = socket.recv(timeout=30)

    assert isinstance(told, str)
    assert (json.loads(told)["type"], json.loads(told)["error"]) == ("x-fal-error", "INVALID_INPUT")
    assert unpack(after)["seed"] == CALL["seed"]


def opened_until_refused(server, stack):
    """As many sockets as a server lets be open, and the status of one more."""
    sockets = []
    for _ in range(50):
        try:
            sockets.append(stack.enter_context(opened(server)))
        except InvalidStatus as refused:
            return sockets, refused.response.status_code
    return sockets, None


def close_code(socket):
    """What a socket is closed with, on which nothing is said."""
    with pytest.raises(ConnectionClosed) as closed:
        socket.recv(timeout=20)
    return closed.value.rcvd.code


def test_sockets_are_bounded_and_idle_ones_end_with_1000(narrow):
    with contextlib.ExitStack() as stack:
        sockets, status = opened_until_refused(narrow, stack)
        codes = [close_code(socket) for socket in sockets]

    assert status == 429
    assert codes == [1000] * SESSIONS * len(addresses(narrow.data_dir))


@pytest.mark.parametrize("most", [1, 2])
def test_max_buffering_keeps_the_newest(narrow, most):
    with opened(narrow, f"?max_buffering={most}") as socket:
        for seed in range(8):
            socket.send(pack(CALL | {"seed": seed}))
        seeds = answers(socket, last=7)

    # Beside those that wait, there may be one in work.
    assert seeds[-most:] == list(range(8 - most, 8))
    assert len(seeds) <= most + 1


def test_a_burst_waits_in_bounded_memory_and_its_newest_is_answered(narrow):
    frames = [pack(CALL | {"seed": seed, "negative_prompt": "x" * 45_000}) for seed in range(12)]
    with opened(narrow) as socket:
        for frame in frames:
            socket.send(frame)
        seeds = answers(socket, last=11)

    assert seeds == sorted(seeds)
    assert len(seeds) <= WAITING_BYTES // len(frames[0]) + 1
