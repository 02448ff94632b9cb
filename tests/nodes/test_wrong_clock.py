"""Three real servers on one PostgreSQL, whose machines' clocks are right, an hour ahead and an hour behind."""

import asyncio
import contextlib
import json
import time

import pytest

from tests.chaos.webhook_delivery import Receivers, signed
from tests.nodes.fleet import QUEUE, fleet
from tests.nodes.wrong_clock import COMPILER, library, off_by
from tests.support.server_process import APP, CALL, until

pytestmark = [pytest.mark.slow, pytest.mark.long, pytest.mark.skipif(COMPILER is None, reason="needs g++")]

OFF_S = {1: 0, 2: 3600, 3: -3600}
KEY = "alice:secret"
WORK_S = 1.0  # of one job
FLAGS = ("--model", f"instant+jpeg:{WORK_S * 1000:.0f}", "--max-batch", "1", "--lease", "3", "--allow-net", "127.0.0.1")


@pytest.fixture(scope="module")
def url(postgres):
    name = asyncio.run(postgres.new_database())
    yield postgres.url(name)
    asyncio.run(postgres.drop(name))


@pytest.fixture(scope="module")
def servers(url, tmp_path_factory):
    folder = tmp_path_factory.mktemp("clocks")
    made = library(folder)
    own = {number: {"FOURSTEP_KEYS": KEY, **off_by(made, off_s)} for number, off_s in OFF_S.items()}
    with fleet(folder, url, len(own), *FLAGS, own=own) as running:
        yield running


def ended(servers, number, path):
    """Wait until a job has ended; return how it did."""
    until(lambda: servers.ask(number, f"{path}/status", key=KEY).body["status"] == "COMPLETED")
    return servers.ask(number, path, key=KEY)


def run_with(servers, number, token):
    """Return the status of a run with a token."""
    return servers.ask(number, f"/run/{APP}/stream?fal_jwt_token={token}", CALL).status


def test_order_and_leases_are_those_of_right_clocks(servers, url, postgres):
    paths = [servers.submit(1 + seed % 3, key=KEY, seed=seed) for seed in range(6)]
    answers = [ended(servers, 1, path) for path in paths]
    ids = ", ".join(f"'{path.rpartition('/')[2]}'" for path in paths)
    query = f"SELECT submitted_at, finished_at, attempts FROM jobs WHERE id IN ({ids}) ORDER BY seq"
    rows = asyncio.run(postgres.fetch(url, query))
    submitted, finished, attempts = zip(*rows, strict=True)

    assert [answer.body["seed"] for answer in answers] == list(range(6))
    assert list(submitted) == sorted(submitted)
    assert all(earlier < later for earlier, later in zip(finished, finished[len(OFF_S) :], strict=False))
    assert set(attempts) == {1}


def test_a_job_that_does_not_start_in_time_ends_then(servers):
    ahead = [servers.submit(1, key=KEY) for _ in range(9)]
    headers = {"X-Fal-Request-Timeout": "1.5"}
    waits = []
    for number in OFF_S:
        asked = time.monotonic()
        late = servers.ask(number, QUEUE, CALL, key=KEY, headers=headers).body["request_id"]
        assert ended(servers, number, f"{QUEUE}/requests/{late}").status == 504
        waits.append(time.monotonic() - asked)
        ahead += [servers.submit(1, key=KEY) for _ in range(9)]
    for path in ahead:
        servers.ask(1, f"{path}/cancel", method="PUT", key=KEY)
    for path in ahead:
        ended(servers, 1, path)

    assert min(waits) >= 1.5
    assert max(waits) < 20


def test_a_token_of_each_server_is_good_at_the_others_and_for_its_time(servers):
    wanted = {"allowed_apps": ["lcm-sd15-i2i"], "token_expiration": 60}
    tokens = {number: servers.ask(number, "/rest/tokens/", wanted, key=KEY).body for number in OFF_S}
    brief = servers.ask(2, "/rest/tokens/", wanted | {"token_expiration": 1}, key=KEY).body
    good = [run_with(servers, there, tokens[here]) for here, there in [(1, 2), (2, 3), (3, 1)]]

    assert good == [200, 200, 200]
    assert run_with(servers, 3, brief) == 401


def test_a_file_lives_for_its_time_at_each_server(servers):
    headers = {
        "X-Fal-Object-Lifecycle": json.dumps({"expiration_duration_seconds": 1200}),
        "Content-Type": "text/plain",
    }
    urls = [
        servers.ask(number, "/cdn/files/upload", b"file", key=KEY, headers=headers).body["access_url"]
        for number in OFF_S
    ]
    answers = [servers.ask(number, "/" + url.split("/", 3)[3], key=KEY) for number in OFF_S for url in urls]
    ages = {int(answer.headers["cache-control"].split("max-age=")[1].split(",")[0]) for answer in answers}

    assert {answer.status for answer in answers} == {200}
    assert all(1100 <= age <= 1200 for age in ages)


def test_each_servers_webhooks_are_taken_by_receivers_that_look_at_the_time(servers):
    with contextlib.closing(Receivers(failing=0, hanging=0)) as receivers:
        hook = f"{QUEUE}?fal_webhook={receivers.url()}"
        sent = {servers.ask(1, hook, CALL, key=KEY).body["request_id"] for _ in range(6)}
        until(lambda: set(receivers.taken) == sent)
    jwks = servers.ask(1, "/.well-known/jwks.json").body

    assert all(signed(jwks, *heard) for heard in receivers.heard)


def test_health_says_whose_clock_is_wrong(servers):
    until(lambda: all("clock_offset_s" in servers.ask(number, "/health").body for number in (2, 3)))
    said = {number: servers.ask(number, "/health").body.get("clock_offset_s", 0) for number in OFF_S}

    assert said == {number: pytest.approx(off_s, abs=5) for number, off_s in OFF_S.items()}


def test_jobs_of_a_dead_server_begin_elsewhere_after_its_lease(servers):
    paths = [servers.submit(2, key=KEY) for _ in range(6)]
    until(lambda: servers.ask(2, "/health").body["queue"]["running"] == 1)
    dead = servers.servers[2].process
    dead.kill()
    dead.wait()
    killed = time.monotonic()
    for path in paths:
        ended(servers, 3, path)
    servers.start(2)

    assert time.monotonic() - killed < 30
