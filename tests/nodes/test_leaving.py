"""A server leaves while clients follow jobs by its streams, behind HAProxy."""

import asyncio
import contextlib
import signal
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.clients.conftest import fixture_picture as picture
from tests.clients.kit import Clients, install_javascript
from tests.nodes.fleet import fleet
from tests.support.haproxy import balancing
from tests.support.server_process import until

__all__ = ["picture"]

pytestmark = pytest.mark.slow

WORK_MS = 3000


@pytest.fixture
def database(postgres):
    name = asyncio.run(postgres.new_database())
    yield postgres.url(name)
    asyncio.run(postgres.drop(name))


@pytest.fixture
def followed(tmp_path, database, picture):
    """Context of a client that follows a job of the second server by a stream of the first, which has no engine."""

    @contextlib.contextmanager
    def following(*flags):
        flags = ("--model", f"instant:{WORK_MS}", "--lameduck", "0", *flags)
        own = {1: {"FOURSTEP_DEVICE": "none"}}
        with (
            fleet(tmp_path, database, 2, *flags, own=own) as servers,
            balancing(tmp_path / "balancer", [servers.servers[at].host for at in (1, 2)], wait=False) as balancer,
            ThreadPoolExecutor(1) as pool,
        ):
            balancer.wait_up("queue", 1, 2)
            balancer.only("queue", 1)
            clients = Clients({"FAL_KEY": "any:thing", "PICTURE": picture})
            install_javascript()
            said = pool.submit(clients.js, "leaving.mjs", queue=f"{balancer.url}/queue")
            until(lambda: servers.servers[2].get("/health")["queue"]["running"])
            until(lambda: balancer.shares("queue")[0] == 2)  # the submit, and the stream
            balancer.say("set server queue/box2 state ready")
            balancer.wait_up("queue", 1, 2)
            yield servers.servers[1].process, said

    return following


def test_fals_javascript_client_gets_the_result_of_a_job_whose_stream_is_a_leaving_boxs(followed):
    with followed() as (leaving, said):
        leaving.send_signal(signal.SIGTERM)
        [outcome] = said.result()
        status = leaving.wait(10)

    assert (outcome["updates"][-2:], outcome["result"]["data"]["seed"]) == (["IN_PROGRESS", "COMPLETED"], 7)
    assert status == 0


@pytest.mark.long
def test_a_stream_ends_whole_when_the_time_for_what_is_in_flight_is_over(followed):
    """fal's client takes that for the job's end, and is told that it was not."""
    with followed("--drain-timeout", "1") as (leaving, said):
        leaving.send_signal(signal.SIGTERM)
        status = leaving.wait(3)
        [outcome] = said.result()

    assert (outcome["updates"][-1], status) == ("IN_PROGRESS", 0)
    assert (outcome["error"]["status"], outcome["error"]["message"]) == (400, "Request is still in progress")
