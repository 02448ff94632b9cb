"""Health, readiness, figures and keys of webhooks; request ids and what the log says."""

import asyncio
import base64
import importlib.metadata
import logging
import re

import pytest

from server.app import ROUTES
from server.web.access_log import WORDS
from server.workers.pool import State
from tests.support.app_client import INPUT, QUEUE, RUN, serving

pytestmark = pytest.mark.anyio


async def test_health_says_how_the_engines_are(tmp_path):
    async with serving(tmp_path) as web:
        answer = await web.call("GET", "/health")

    assert answer.status == 200
    assert answer.json() == {
        "version": importlib.metadata.version("fourstep"),
        "state": "READY",
        "draining": False,
        "detail": "",
        "notice": "a test",
        "engines": [
            {
                "device": "cpu",
                "pid": 1,
                "state": "READY",
                "restarts": 2,
                "graphs_failed": False,
                "model": "demo",
                "dtype": "float32",
                "torch": "2.0",
            }
        ],
        "queue": {"waiting": 0, "running": 0},
    }


@pytest.mark.parametrize("state", list(State))
async def test_health_is_200_in_every_state_and_ready_in_those_that_serve(tmp_path, state):
    async with serving(tmp_path) as web:
        web.engines.state = state
        health, ready = await web.call("GET", "/health"), await web.call("GET", "/ready")

    assert (health.status, health.json()["state"]) == (200, state.value)
    assert ready.status == (200 if state.value in {"READY", "BUSY", "UNLOADED"} else 503)


async def test_a_box_without_engines_is_well_and_not_ready(tmp_path):
    async with serving(tmp_path) as web:
        web.engines.engines = []
        health, ready = await web.call("GET", "/health"), await web.call("GET", "/ready")

    assert (health.status, health.json()["state"], ready.status) == (200, "READY", 503)


async def test_a_server_that_leaves_is_not_ready_and_still_accepts_jobs_and_calls(tmp_path):
    async with serving(tmp_path) as web:
        web.ctx.queue.drain()
        health, ready = await web.call("GET", "/health"), await web.call("GET", "/ready")
        run, submit = await web.call("POST", RUN, body=INPUT), await web.call("POST", QUEUE, body=INPUT)
        web.ctx.queue.shut()
        late = await web.call("POST", QUEUE, body=INPUT)

    assert (health.status, health.json()["draining"], ready.status) == (200, True, 503)
    assert (run.status, submit.status, late.status) == (200, 200, 429)


@pytest.mark.parametrize("path", ["/health", "/ready", "/metrics", "/.well-known/jwks.json"])
async def test_probes_need_no_key(tmp_path, path):
    async with serving(tmp_path, keys="alice:a") as web:
        assert (await web.call("GET", path)).status == 200


async def test_the_figures_count_answers_images_and_restarts(tmp_path):
    async with serving(tmp_path) as web:
        await web.call("POST", RUN, body={**INPUT, "num_images": 2})
        await web.call("POST", RUN, body=INPUT)
        await web.call("POST", RUN, body=b"")
        answer = await web.call("GET", "/metrics")

    lines = answer.body.decode().splitlines()
    assert answer.headers["content-type"].startswith("text/plain")
    assert 'fourstep_requests_total{route="run",status="200"} 2.0' in lines
    assert 'fourstep_requests_total{route="run",status="422"} 1.0' in lines
    assert "fourstep_images_total 3.0" in lines
    assert 'fourstep_engine_restarts{device="cpu"} 2.0' in lines
    assert 'fourstep_engine_graphs_failed{device="cpu"} 0.0' in lines
    assert 'fourstep_stage_seconds_total{stage="decode"} 0.1' in lines
    assert not [line for line in lines if 'stage="inference"' in line]
    assert 'fourstep_engine_ready{device="cpu"} 1.0' in lines


async def test_the_build_is_told_as_the_engines_are_now_and_not_as_they_were(tmp_path):
    version = importlib.metadata.version("fourstep")
    async with serving(tmp_path) as web:
        [ready] = web.engines.engines
        web.engines.engines = [{**ready, "model": "", "dtype": "", "torch": ""}]
        starting = (await web.call("GET", "/metrics")).body.decode().splitlines()
        web.engines.engines = [ready]
        started = (await web.call("GET", "/metrics")).body.decode().splitlines()

    told = [[line for line in lines if line.startswith("fourstep_build_info{")] for lines in (starting, started)]
    assert told == [
        [f'fourstep_build_info{{dtype="",model="",torch="",version="{version}"}} 1.0'],
        [f'fourstep_build_info{{dtype="float32",model="demo",torch="2.0",version="{version}"}} 1.0'],
    ]


async def test_a_device_that_got_its_name_since_the_last_scrape_is_one_series(tmp_path):
    async with serving(tmp_path) as web:
        web.engines.engines[0]["device"] = "auto"
        await web.call("GET", "/metrics")
        web.engines.engines[0]["device"] = "cuda:0"
        body = (await web.call("GET", "/metrics")).body.decode()

    assert set(re.findall(r'device="([^"]*)"', body)) == {"cuda:0"}


async def test_engines_on_one_device_are_one_series(tmp_path):
    async with serving(tmp_path) as web:
        web.engines.engines += [{**web.engines.engines[0], "state": State.STARTING, "restarts": 3}]
        lines = (await web.call("GET", "/metrics")).body.decode().splitlines()

    assert [line for line in lines if 'device="' in line] == [
        'fourstep_engine_ready{device="cpu"} 1.0',
        'fourstep_engine_unloaded{device="cpu"} 0.0',
        'fourstep_engine_restarts{device="cpu"} 5.0',
        'fourstep_engine_graphs_failed{device="cpu"} 0.0',
    ]


async def test_bytes_that_are_held_are_counted(tmp_path):
    async with serving(tmp_path) as web:
        web.engines.gate.clear()
        call = asyncio.create_task(web.call("POST", RUN, body={**INPUT, "prompt": "p" * 9000}))
        await web.engines.running.get()
        during = (await web.call("GET", "/metrics")).body.decode()
        web.engines.gate.set()
        await call
        after = (await web.call("GET", "/metrics")).body.decode()

    held = [float(re.search(r"^fourstep_body_bytes (\S+)$", each, re.MULTILINE)[1]) for each in (during, after)]
    assert held[0] > 9000
    assert held[1] == 0


async def test_what_is_stored_is_counted(tmp_path):
    async with serving(tmp_path) as web:
        await web.call("POST", "/cdn/files/upload", body=b"notes", headers={"content-type": "text/plain"})
        lines = (await web.call("GET", "/metrics")).body.decode().splitlines()

    assert {"fourstep_stored_files 2.0", "fourstep_stored_bytes 8192.0"} <= set(lines)


async def test_open_sockets_are_counted_while_they_are_open(tmp_path):
    async with serving(tmp_path) as web:
        async with web.connect(f"{RUN}/realtime") as socket:
            socket.send("x")
            await socket.recv()
            during = (await web.call("GET", "/metrics")).body
        after = (await web.call("GET", "/metrics")).body

    assert b"fourstep_realtime_sessions 1.0" in during
    assert b"fourstep_realtime_sessions 0.0" in after


@pytest.mark.parametrize(
    "url", ["https://rest.fal.ai/.well-known/jwks.json", "http://localhost/rest/.well-known/jwks.json"]
)
async def test_the_webhooks_public_key_is_published_with_padding(tmp_path, url):
    async with serving(tmp_path) as web:
        answer = await web.call("GET", url)

    (key,) = answer.json()["keys"]
    assert (key["kty"], key["crv"], len(key["x"])) == ("OKP", "Ed25519", 44)
    assert len(base64.urlsafe_b64decode(key["x"])) == 32


async def test_every_request_has_an_id_of_its_own(tmp_path):
    async with serving(tmp_path) as web:
        ids = {(await web.call("GET", "/health")).headers["x-fal-request-id"] for _ in range(3)}

    assert len(ids) == 3


async def test_no_error_and_no_figure_repeats_what_was_said(tmp_path):
    canary = "canary-5e1f"
    async with serving(tmp_path, keys=f"alice:{canary}") as web:
        good, wrong = {"authorization": f"Key alice:{canary}"}, {"authorization": f"Key alice:not-{canary}"}
        body = {**INPUT, "prompt": canary, "negative_prompt": canary}
        job = (await web.call("POST", QUEUE, body={**body, "seed": canary}, headers=good)).json()["request_id"]
        said = [
            await web.call("POST", RUN, body={**body, "strength": canary}, headers=good),
            await web.call("POST", RUN, body={**body, "image_url": canary}, headers=good),
            await web.call("POST", RUN, body=f"{{{canary}".encode(), headers=good),
            await web.call("POST", RUN, body=body, headers=wrong),
            await web.call("GET", f"{QUEUE}/requests/{job}", headers=good),
            await web.call("GET", f"{QUEUE}/requests/{job}/status?logs=1", headers=good),
            await web.call("GET", "/metrics"),
            await web.call("GET", "/health"),
        ]
        async with web.connect(f"{RUN}/realtime", headers=good) as socket:
            socket.send("{" + canary)
            reason = await socket.recv()

    assert [answer.status for answer in said] == [422, 422, 422, 401, 422, 200, 200, 200]
    assert canary not in "".join(answer.body.decode() for answer in said) + reason


async def test_the_log_names_the_request_and_nothing_that_was_said(tmp_path, caplog):
    caplog.set_level(logging.DEBUG)
    canary = "canary-5e1f"
    async with serving(tmp_path, keys=f"alice:{canary}") as web:
        good = {"authorization": f"Key alice:{canary}"}
        body = {**INPUT, "prompt": canary, "negative_prompt": canary, "request_id": canary}
        answer = await web.call("POST", f"{RUN}?secret={canary}", body=body, headers=good)
        await web.call("POST", RUN, body={**body, "strength": canary}, headers=good)
        await web.call("POST", RUN, body=body, headers={"authorization": f"Key alice:not-{canary}"})
        await web.call("GET", f"/cdn/files/{canary}.jpg")
        token = (await web.call("POST", "/rest/tokens", body={"app": "lcm-sd15-i2i"}, headers=good)).json()
        async with web.connect(f"{RUN}/realtime?fal_jwt_token={token}") as socket:
            socket.send("{" + canary)
            await socket.recv()

    assert answer.headers["x-fal-request-id"] in caplog.text
    assert canary not in caplog.text
    assert token not in caplog.text


async def test_a_path_can_not_forge_a_log_line(tmp_path, caplog):
    caplog.set_level(logging.DEBUG)
    async with serving(tmp_path) as web:
        await web.call("POST", "/run/x%0Aall is well")

    assert "POST /run/… 404" in caplog.text
    assert "all is well" not in caplog.text


@pytest.mark.parametrize("path", ["/health", "/ready", "/metrics"])
async def test_probes_and_scrapes_are_logged_at_debug_whatever_their_answer(tmp_path, caplog, path):
    caplog.set_level(logging.DEBUG)
    async with serving(tmp_path) as web:
        web.engines.state = State.STARTING
        await web.call("GET", path)

    [line] = [record for record in caplog.records if record.name == "fourstep.access"]
    assert (line.levelname, line.getMessage().split()[1]) == ("DEBUG", path)


async def test_a_call_is_logged_with_its_fields(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    async with serving(tmp_path, keys="alice:a") as web:
        good = {"authorization": "Key alice:a"}
        ids = [
            (await web.call("POST", RUN, body=INPUT, headers=good)).headers["x-fal-request-id"],
            (await web.call("POST", RUN, body={**INPUT, "strength": 7}, headers=good)).headers["x-fal-request-id"],
            (await web.call("POST", RUN, body=INPUT)).headers["x-fal-request-id"],
        ]
        job = (await web.call("POST", QUEUE, body=INPUT, headers=good)).json()["request_id"]
        await web.engines.running.get()
        await web.engines.running.get()
        async with web.connect(f"{RUN}/realtime", headers=good) as socket:
            socket.send("{}")
            await socket.recv()

    lines = [record for record in caplog.records if record.name == "fourstep.access"]
    told = {
        (line.request_id, line.getMessage().split(" route=")[0], line.route, getattr(line, "key", ""), line.outcome)
        for line in lines
    }
    assert {
        (ids[0], f"POST {RUN} 200", "run", "alice", "ok"),
        (ids[1], f"POST {RUN} 422", "run", "alice", "refused"),
        (ids[2], f"POST {RUN} 401", "run", "", "refused"),
        (job, f"POST {QUEUE} 200", "queue", "alice", "ok"),
        (job, f"job {job}", "queue", "alice", "ok"),
    } <= told
    assert ("WS", "realtime", "alice", "ok") in {
        (shown.partition(" ")[0], route, key, outcome) for _, shown, route, key, outcome in told
    }
    assert all(line.seconds >= 0 for line in lines)


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("/nothing/of/canary-5e1f", "/…"),
        ("/fourstep/cdn/files/canary-5e1f.jpg", "/…/cdn/files/…"),
        ("https://v3.fal.media/files/canary-5e1f.jpg", "/cdn/files/…"),
        ("/cdn/files/0ac0ba98-14f5-4ac6-a1f1-8ebd18a2ae36", "/cdn/files/…"),
        (f"{QUEUE}/requests/0ac0ba98-14f5-4ac6-a1f1-8ebd18a2ae36/status", "/requests/0ac0ba98-14f5"),
        ("/a" * 999, "/…/…/"),
    ],
)
async def test_of_a_path_only_our_own_words_are_logged(tmp_path, caplog, url, shown):
    caplog.set_level(logging.DEBUG)
    async with serving(tmp_path) as web:
        await web.call("GET", url)

    [line] = [record.getMessage() for record in caplog.records if record.name == "fourstep.access"]
    assert shown in line
    assert "canary" not in line
    assert len(line) < 400


def test_every_word_of_the_routes_may_be_logged():
    segments = {each for route in ROUTES for each in route.path.split("/") if each and not each.startswith("{")}

    assert segments - WORDS == set()
