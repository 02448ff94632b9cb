"""One exchange in twenty is broken on the way: what a client retries by itself finishes, the rest fails as it should.

Which calls are retried is the client's own affair: the JavaScript client's run, submit, status and result since 1.10.1,
all of Python's but stream, none of serverless-client's.
"""

import psutil
import pytest

from tests.clients.faulty import ASKED, MADE, faulty


@pytest.fixture(scope="module", name="faulty")
def fixture_faulty(picture, tmp_path_factory):
    """One server behind the proxy, with few enough permits that lost ones would be missed."""
    with faulty(tmp_path_factory.mktemp("faulty"), picture, "--max-calls", "4") as found:
        yield found


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.parametrize(
    ("language", "call", "times"),
    [("js", "run", 60), ("js", "subscribe", 15), ("py", "run", 60), ("py", "subscribe", 15)],
)
def test_what_the_client_retries_finishes(language, call, times, faulty):
    ended = faulty.run(language, call=call, times=times)

    assert {each["outcome"] for each in ended} == {"ok"}


def test_the_legacy_client_fails_with_its_own_error(faulty):
    ended = faulty.run("js", call="run", times=60, package="serverless-client-0.15")

    assert {each["outcome"] for each in ended} == {"ok", "TypeError"}  # TypeError: fetch failed


def test_a_python_stream_fails_with_its_own_error(faulty):
    ended = faulty.run("py", call="stream", times=60)

    assert {each["outcome"] for each in ended} <= {
        "ok",
        "ReadError",
        "RemoteProtocolError",
        "ConnectError",
        "WriteError",
    }
    assert {each["outcome"] for each in ended} > {"ok"}


def test_nothing_is_done_twice_or_left_behind(faulty):
    process = psutil.Process(faulty.server.pid)
    open_before = process.num_fds()
    made_before, asked_before = faulty.count(MADE), faulty.count(ASKED)

    faulty.run("py", call="run", times=60)

    made, asked = faulty.count(MADE) - made_before, faulty.count(ASKED) - asked_before
    health = faulty.health()
    assert 60 <= made <= asked
    assert faulty.done_twice() == 0
    assert (health["state"], health["queue"]) == ("READY", {"waiting": 0, "running": 0})
    assert process.num_fds() <= open_before + 2
