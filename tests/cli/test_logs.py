"""What a server and its engines log: one form in all processes, and nothing of what callers send."""

import asyncio
import http.client
import json
import re
import subprocess
import sys

import pytest
import websockets

from tests.support.server_process import APP, CALL, clean_env, serving, until

CANARY = "canary-5e1f"
SECRET = f"alice:{CANARY}"
HUMAN = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} (DEBUG|INFO|WARNING|ERROR|CRITICAL) +[\w.]+: ")


def ask(server, method, path, body=None, headers=(), *, key=SECRET):
    """The status and the body of an answer."""
    connection = http.client.HTTPConnection(server.host, timeout=60)
    sent = {"Authorization": f"Key {key}", "Content-Type": "application/json", **dict(headers)}
    data = body if isinstance(body, bytes | None) else json.dumps(body).encode()
    connection.request(method, path, data, sent)
    answer = connection.getresponse()
    found = answer.status, answer.read()
    connection.close()
    return found


async def talk(server, *frames):
    """Send frames over one realtime socket, and wait for the answers."""
    url = f"ws://{server.host}/run/{APP}/realtime?fal_key_id=alice&fal_key_secret={CANARY}"
    async with websockets.connect(url) as socket:
        for frame in frames:
            await socket.send(frame)
            await socket.recv()


def say_canaries(server):
    """Send what no log may have to every kind of route. Returns the token that a page would get."""
    call = CALL | {"prompt": CANARY, "negative_prompt": CANARY, "request_id": CANARY}
    elsewhere = f"https://{CANARY}:{CANARY}@203.0.113.9/{CANARY}.png?{CANARY}"
    for path in (f"/run/{APP}", f"/run/{APP}/stream", f"/queue/{APP}?fal_webhook={elsewhere}"):
        ask(server, "POST", path, call)
        ask(server, "POST", path, call | {"image_url": elsewhere})
        ask(server, "POST", path, call | {"image_url": f"data:image/png;base64,{CANARY}"})
        ask(server, "POST", path, call | {"strength": CANARY})
        ask(server, "POST", path, f"{{{CANARY}".encode())
        ask(server, "POST", path, call, key=f"bob:{CANARY}")
    token = json.loads(ask(server, "POST", "/rest/tokens", {"app": APP})[1])
    text = {"Content-Type": "text/plain", "X-Fal-File-Name": f"{CANARY}.txt"}
    upload = {"content_type": "text/plain", "file_name": f"{CANARY}.txt"}
    ask(server, "POST", "/cdn/files/upload", CANARY.encode(), text)
    place = json.loads(ask(server, "POST", "/rest/storage/upload/initiate", upload)[1])
    put = place["upload_url"].partition(server.host)[2]
    ask(server, "PUT", put, CANARY.encode(), {"Content-Type": "text/plain"})
    ask(server, "PUT", put.replace("/upload/", f"/upload/{CANARY}"), CANARY.encode())
    for path in (f"/cdn/files/{CANARY}.png", f"/box/cdn/files/{CANARY}", f"/{CANARY}", f"/health?{CANARY}"):
        ask(server, "GET", path, headers={"Cookie": CANARY, "Referer": f"http://localhost/{CANARY}"})
    ask(server, "GET", "/", headers={"Origin": f"https://{CANARY}.example", "Host": f"{CANARY}.example"})
    asyncio.run(talk(server, json.dumps(call), "{" + CANARY, CANARY.encode(), json.dumps(call | {"seed": CANARY})))
    stored = place["file_url"].rpartition("/")[2]
    return [CANARY, token, stored, put.rpartition("/")[2]]


def test_no_log_and_no_metric_has_anything_that_callers_sent(tmp_path):
    flags = ("--model", "instant+jpeg:1", "--log-level", "debug", "--log-format", "json", "--fetch-timeout", "1")
    with serving(*flags, data_dir=tmp_path, env={"FOURSTEP_KEYS": SECRET}) as server:
        secrets = say_canaries(server)
        until(lambda: json.loads(ask(server, "GET", "/health")[1])["queue"] == {"waiting": 0, "running": 0})
        metrics = ask(server, "GET", "/metrics")[1].decode()
    log = (tmp_path / "log").read_text()

    lines = [json.loads(line) for line in log.splitlines()]
    assert [secret for secret in secrets if secret in log or secret in metrics] == []
    assert {"run", "queue", "realtime", "uploads", "files", "tokens", "ops"} <= {line.get("route") for line in lines}
    assert {"ok", "refused", "failed"} & {line.get("outcome") for line in lines} >= {"ok", "refused"}
    assert {line["key"] for line in lines if "key" in line} == {"alice"}


def test_each_json_line_says_when_how_grave_and_which_process(tmp_path):
    with serving("--model", "demo", "--log-format", "json", data_dir=tmp_path):
        pass

    lines = [json.loads(line) for line in (tmp_path / "log").read_text().splitlines()]
    assert all({"time", "level", "logger", "message", "process", "pid"} <= line.keys() for line in lines)
    assert all(line["time"].startswith("20") and line["time"].endswith("+00:00") for line in lines)


ONE_OF_EACH = """
import logging, threading, warnings
from pipelines import log_lines
log_lines.configure("{level}", "{form}", process="engine", quote={quote}, device="cuda:1")
logging.getLogger("pipelines.worker").debug("ours at debug")
logging.getLogger("pipelines.worker").info("ours", extra={{"seconds": 0.5}})
logging.getLogger("httpx").info("theirs: GET http://host/?secret")
library = logging.getLogger("transformers")
library.propagate = False
library.addHandler(logging.StreamHandler())
log_lines.adopt("transformers")
library.warning("theirs, adopted")
warnings.warn("careful")
try:
    raise ValueError("quoted")
except ValueError:
    logging.getLogger("asyncio").exception("caught")
thread = threading.Thread(target=lambda: 1 / 0, name="codec")
thread.start()
thread.join()
raise ValueError("quoted")
"""


def logged(level="info", form="auto", quote=True):  # noqa: FBT002
    code = ONE_OF_EACH.format(level=level, form=form, quote=quote)
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=clean_env(), check=False
    ).stderr


def test_json_is_one_object_a_line_whatever_ends_the_process():
    lines = [json.loads(line) for line in logged(form="json").splitlines()]

    assert [(line["level"], line["logger"]) for line in lines] == [
        ("INFO", "pipelines.worker"),
        ("WARNING", "transformers"),
        ("WARNING", "py.warnings"),
        ("ERROR", "asyncio"),
        ("ERROR", "fourstep.faults"),
        ("CRITICAL", "fourstep.faults"),
    ]
    assert {(line["process"], line["device"]) for line in lines} == {("engine", "cuda:1")}
    assert lines[0]["seconds"] == 0.5
    assert "ZeroDivisionError" in lines[4]["exc_info"]


def test_people_get_a_time_on_each_line_and_no_escapes_where_there_is_no_terminal():
    said = logged()

    assert HUMAN.match(said)
    assert "\x1b" not in said
    assert "theirs: GET" not in said
    assert "ours at debug" not in said
    assert "ours at debug" in logged("debug")
    assert "theirs: GET" not in logged("debug")


@pytest.mark.parametrize("form", ["human", "json"])
def test_without_quotes_an_exception_is_its_type_and_stack(form):
    said = logged(form=form, quote=False)

    assert "ValueError" in said
    assert "ValueError: quoted" not in said
