"""Two real servers on one PostgreSQL: any takes a submit, any does it, any answers for it; and what happens when one
or the database dies."""

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import threading
import urllib.request
from pathlib import Path

import pytest

from tests.nodes.fleet import QUEUE, environment, fleet
from tests.support.postgres import cluster
from tests.support.server_process import APP, CALL, until

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def database(postgres):
    name = asyncio.run(postgres.new_database())
    yield postgres.url(name)
    asyncio.run(postgres.drop(name))


@pytest.fixture(scope="module")
def pair(database, tmp_path_factory):
    """Two servers that tests leave as they found them, each request taking half a second."""
    with fleet(tmp_path_factory.mktemp("pair"), database, 2, "--model", "instant+jpeg:500", "--max-batch", "1") as pair:
        yield pair


def fourstep(fleet_, *words):
    """Run a command beside the servers; return its output."""
    command = [str(Path(sys.executable).with_name("fourstep")), *words]
    done = subprocess.run(command, env=environment(fleet_), capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def busy(fleet_):
    """Return the numbers of the servers that run a job."""
    return [number for number in fleet_.servers if fleet_.ask(number, "/health").body["queue"]["running"]]


def test_any_server_answers_for_a_job_that_another_took(pair):
    path = pair.submit(1)
    seen = {pair.status(2, path)["status"]}
    pair.completed(2, path)
    results = [pair.ask(number, path) for number in (1, 2)]

    assert seen <= {"IN_QUEUE", "IN_PROGRESS"}
    assert [answer.status for answer in results] == [200, 200]
    assert results[0].body == results[1].body
    assert results[0].headers["x-fal-request-id"] == path.rpartition("/")[2]


def test_what_one_server_says_is_ended_no_other_says_is_in_progress(pair):
    for _ in range(5):
        path = pair.submit(1)
        pair.status(2, path)  # from now on it is known there, as waiting or running
        pair.completed(1, path)

        assert pair.ask(2, path).status == 200


def test_jobs_of_one_server_are_done_by_both(pair):
    paths = [pair.submit(1) for _ in range(8)]
    for path in paths:
        pair.completed(1, path)

    done = [(pair.data_dir(number) / "log").read_text() for number in (1, 2)]
    assert all(any(f"job {path.rpartition('/')[2]}" in log for path in paths) for log in done)


def test_jobs_go_to_the_server_that_has_no_calls_to_answer(pair):
    until(lambda: pair.ask(1, "/health").body["room_elsewhere"] > 0)
    runs = [threading.Thread(target=pair.ask, args=(1, f"/run/{APP}", CALL)) for _ in range(12)]
    for run in runs:
        run.start()
    until(lambda: pair.ask(1, "/health").body["state"] == "BUSY")
    paths = [pair.submit(1) for _ in range(3)]
    for path in paths:
        pair.completed(1, path)
    for run in runs:
        run.join()

    log = (pair.data_dir(2) / "log").read_text()
    assert all(f"job {path.rpartition('/')[2]}" in log for path in paths)


def test_a_server_without_others_takes_jobs_beside_calls(tmp_path, postgres):
    name = asyncio.run(postgres.new_database())
    with fleet(tmp_path, postgres.url(name), 1, "--model", "instant:1500", "--max-batch", "1") as alone:
        runs = [threading.Thread(target=alone.ask, args=(1, f"/run/{APP}", CALL)) for _ in range(3)]
        for run in runs:
            run.start()
        until(lambda: alone.ask(1, "/health").body["state"] == "BUSY")
        path = alone.submit(1)
        until(lambda: alone.status(1, path)["status"] == "IN_PROGRESS")
        meanwhile = [run.is_alive() for run in runs]
        for run in runs:
            run.join()

    assert meanwhile == [True] * 3


def test_a_file_of_one_server_is_served_by_the_other_and_counts_for_both(pair, postgres, database):
    path = pair.submit(1)
    pair.completed(1, path)
    url = pair.ask(1, path).body["images"][0]["url"]
    there = "/" + url.split("/", 3)[3]

    here, other = pair.ask(1, there), pair.ask(2, there)
    assert here.body[:2] == b"\xff\xd8"
    assert (other.status, other.body) == (200, here.body)
    counted = asyncio.run(postgres.fetch(database, "SELECT files FROM files"))
    assert counted
    assert set(counted) == {(1,)}


def test_a_job_is_cancelled_at_another_server_than_that_which_runs_it(pair):
    paths = [pair.submit(1, prompt="cancel me") for _ in range(6)]
    until(lambda: any(pair.status(1, path)["status"] == "IN_PROGRESS" for path in paths))
    outcomes = {pair.ask(2, f"{path}/cancel", method="PUT").body["status"] for path in reversed(paths)}
    for path in paths:
        pair.completed(2, path)
        pair.completed(1, path)

    assert outcomes <= {"OK", "CANCELLATION_REQUESTED", "ALREADY_COMPLETED"}
    assert "OK" in outcomes
    assert "CANCELLATION_REQUESTED" in outcomes
    assert {pair.ask(1, path).status for path in paths} <= {499, 200}


def test_a_stream_of_statuses_at_another_server_ends_with_the_job(pair):
    path = pair.submit(1)
    with urllib.request.urlopen(f"{pair.servers[2].url}{path}/status/stream?logs=1", timeout=30) as stream:
        events = [json.loads(line[6:]) for line in stream if line.startswith(b"data: ")]

    assert events[-1]["status"] == "COMPLETED"


def test_unknown_jobs_are_404_at_each(pair):
    path = f"{QUEUE}/requests/00000000-0000-4000-8000-000000000000"

    assert [pair.ask(number, f"{path}/status").status for number in (1, 2)] == [404, 404]


def test_the_servers_know_each_other(pair):
    until(lambda: all(pair.ask(number, "/health").body["nodes"] == 2 for number in (1, 2)))

    listed = json.loads(fourstep(pair, "nodes", "--json"))
    assert {node["name"]: node["model"] for node in listed if node["silent_s"] < 5} == dict.fromkeys(
        ("box1", "box2"), "instant+jpeg:500"
    )
    assert "box1" in fourstep(pair, "nodes")
    assert all(f":{pair.servers[number].url.rpartition(':')[2]}" in fourstep(pair, "nodes") for number in (1, 2))


def test_metrics_tell_of_the_database_and_the_servers(pair):
    until(lambda: 'fourstep_nodes{state="running"} 2.0' in pair.ask(1, "/metrics").body.decode())
    path = pair.submit(1)
    pair.completed(1, path)
    text = pair.ask(1, "/metrics").body.decode()

    assert "fourstep_database_up 1.0" in text
    assert re.search(r'fourstep_claims_total{result="none"} [1-9]', text)
    assert re.search(r'fourstep_database_seconds_count{operation="refresh"} [1-9]', text)


def test_a_key_that_is_added_anywhere_counts_everywhere_within_a_second(database, postgres, tmp_path):
    name = asyncio.run(postgres.new_database())
    with fleet(tmp_path, postgres.url(name), 2, "--model", "instant") as servers:
        free = servers.ask(2, f"/run/{APP}", CALL).status
        added = fourstep(servers, "keys", "add", "alice", "--data-dir", str(tmp_path / "elsewhere")).split()[0]
        until(lambda: {servers.ask(number, f"/run/{APP}", CALL).status for number in (1, 2)} == {401}, timeout=3)
        token = servers.ask(1, "/rest/tokens/", {"allowed_apps": ["lcm-sd15-i2i"]}, key=added).body

        assert free == 200
        assert [servers.ask(number, f"/run/{APP}", CALL, key=added).status for number in (1, 2)] == [200, 200]
        assert servers.ask(2, f"/run/{APP}/stream?fal_jwt_token={token}", CALL).status == 200
        secrets = [(servers.data_dir(number) / "token.secret").read_bytes() for number in (1, 2)]
        assert secrets[0] == secrets[1]
    asyncio.run(postgres.drop(name))


# --- what dies


def test_a_killed_servers_jobs_are_done_by_the_other(postgres, tmp_path):
    name = asyncio.run(postgres.new_database())
    flags = ("--model", "instant+jpeg:700", "--max-batch", "1", "--lease", "2")
    with fleet(tmp_path, postgres.url(name), 2, *flags) as servers:
        paths = [servers.submit(1, seed=seed) for seed in range(6)]
        until(lambda: any(servers.status(2, path)["status"] == "IN_PROGRESS" for path in paths))
        servers.servers[1].process.kill()
        for path in paths:
            servers.completed(2, path)

        assert [servers.ask(2, path).body["seed"] for path in paths] == list(range(6))
    asyncio.run(postgres.drop(name))


def test_a_server_that_was_frozen_past_its_lease_publishes_nothing_twice(postgres, tmp_path):
    name = asyncio.run(postgres.new_database())
    flags = ("--model", "instant+jpeg:3000", "--max-batch", "1", "--lease", "1")
    with fleet(tmp_path, postgres.url(name), 2, *flags) as servers:
        path = servers.submit(1)
        until(lambda: servers.status(1, path)["status"] == "IN_PROGRESS")
        found = []
        until(lambda: found.extend(busy(servers)) or found)
        frozen = found[0]
        other = 3 - frozen
        os.kill(servers.servers[frozen].process.pid, signal.SIGSTOP)
        try:
            servers.completed(other, path)
            first = servers.ask(other, path).body
        finally:
            os.kill(servers.servers[frozen].process.pid, signal.SIGCONT)
        until(lambda: busy(servers) == [])  # the late result has been refused, or given up

        assert servers.ask(other, path).body == first
    asyncio.run(postgres.drop(name))


def test_while_the_database_is_away_calls_are_answered_and_submits_are_429(tmp_path):
    with (
        cluster() as postgres,
        fleet(tmp_path, postgres.url(), 1, "--model", "instant", "--database-patience", "1") as it,
    ):
        path = it.submit(1)
        it.completed(1, path)
        postgres.kill()
        answers = [it.ask(1, QUEUE, CALL), it.ask(1, path)]
        run, ready = it.ask(1, f"/run/{APP}", CALL), it.ask(1, "/ready")
        until(lambda: it.ask(1, "/health").body["database"] == "away")
        postgres.start()
        until(lambda: it.ask(1, "/health").body["database"] == "up")
        again = it.submit(1)
        it.completed(1, again)

        assert [answer.status for answer in answers] == [429, 429]
        assert (run.status, ready.status) == (200, 200)
        assert it.ask(1, path).status == 200
