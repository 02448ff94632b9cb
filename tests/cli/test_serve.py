"""Starting and stopping a server."""

import importlib.metadata
import json
import os
import signal
import socket
import ssl
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from server.access import api_keys
from server.cli.launcher import RUN_FILE, LaunchError
from server.cli.serve import banner
from server.settings import Settings
from tests.support.server_process import APP, clean_env, loopback, post, serving, start_server, submitted, until

FOURSTEP = Path(sys.executable).with_name("fourstep")


def serve(data_dir, *flags):
    """Run `fourstep serve` where it should refuse."""
    command = [FOURSTEP, "serve", "--model", "instant", "--data-dir", str(data_dir), *flags]
    return subprocess.run(command, env=clean_env(), capture_output=True, text=True, timeout=30, check=False)


def test_other_machines_are_not_served_without_keys(tmp_path):
    done = serve(tmp_path, "--host", "0.0.0.0", "--port", "0")

    assert done.returncode == 1
    assert "there are no keys" in done.stderr
    assert "fourstep keys add" in done.stderr


@pytest.mark.parametrize(
    ("flags", "env", "warned"),
    [
        (("--public-url", "https://box.example/fourstep"), {}, True),
        (("--public-url", "https://box.example/fourstep"), {"FOURSTEP_KEYS": "a:b"}, False),
        (("--public-url", "https://box.example/fourstep", "--allow-anonymous"), {}, False),
        (("--public-url", "https://localhost:8443/fourstep"), {}, False),
    ],
)
def test_a_public_url_of_another_host_without_keys_is_warned_of(flags, env, warned, tmp_path):
    with serving("--model", "instant", *flags, data_dir=tmp_path, env=env):
        log = (tmp_path / "log").read_text()

    lines = [line for line in log.splitlines() if "everybody looks local" in line]
    assert len(lines) == warned
    assert all("WARN" in line and "box.example" in line and "fourstep keys add" in line for line in lines)


@pytest.mark.parametrize(
    ("file", "said"), [("keys.json", "is no key file"), ("webhook-keys.json", "holds no signing keys")]
)
def test_a_broken_key_file_is_said_at_once(tmp_path, file, said):
    (tmp_path / file).write_text("junk")

    done = serve(tmp_path, "--port", "0")

    assert (done.returncode, done.stderr.count("\n"), said in done.stderr) == (1, 1, True)


def test_what_a_server_keeps_is_its_owners_alone_also_where_its_folder_was_open(tmp_path):
    (tmp_path / "data").mkdir(mode=0o755)
    with serving("--model", "instant", data_dir=tmp_path / "data"):
        modes = {path.name: path.stat().st_mode & 0o077 for path in (tmp_path / "data").iterdir() if path.name != "log"}

    assert (tmp_path / "data").stat().st_mode & 0o077 == 0
    assert "jobs.sqlite" in modes
    assert not any(modes.values()), modes


def test_a_port_in_use_is_said_at_once(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        done = serve(tmp_path, "--port", str(taken.getsockname()[1]))

    assert done.returncode == 1
    assert "is in use" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_host_that_is_not_this_machines_is_said_at_once(tmp_path):
    done = serve(tmp_path, "--host", "192.0.2.1", "--port", "0", "--keys", "me:secret")

    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "--host takes an address of this machine" in done.stderr


@pytest.mark.parametrize("host", [f"[{address}]" for address in loopback()[1:]] + loopback())
def test_an_address_of_loopback_is_served_without_keys(host, tmp_path):
    with serving("--model", "instant", "--host", host, data_dir=tmp_path) as server:
        address = host.strip("[]")

        assert server.url.startswith(f"http://[{address}]:" if ":" in address else f"http://{address}:")
        assert server.get("/ready")["state"] == "READY"


def test_one_data_dir_has_one_server(tmp_path):
    with serving("--model", "instant", data_dir=tmp_path):
        done = serve(tmp_path, "--port", "0")

    assert done.returncode == 1
    assert "another server runs on" in done.stderr


def test_the_run_file_says_where_and_goes_when_the_server_stops(tmp_path):
    with serving("--model", "instant", "--tls-port", "0", data_dir=tmp_path) as server:
        told = json.loads((tmp_path / RUN_FILE).read_text())

    assert told == {"pid": server.pid, "url": server.url, "tls_url": server.tls_url}
    assert not (tmp_path / RUN_FILE).exists()


def test_a_server_whose_model_cannot_be_had_answers_and_says_what_to_do(tmp_path):
    with serving("--model", str(tmp_path / "nowhere"), data_dir=tmp_path, ready=False) as server:
        with pytest.raises(LaunchError):
            server.wait_ready(30)
        health = server.get("/health")
        with pytest.raises(urllib.error.HTTPError) as refused:
            server.get("/ready")
        refused.value.close()
        with pytest.raises(urllib.error.HTTPError) as unserved:
            post(server, f"/run/{APP}")
        with unserved.value:
            answer = json.load(unserved.value)

    assert (unserved.value.code, answer["error_type"]) == (503, "runner_scheduling_failure")
    assert "nowhere" in answer["detail"]
    assert health["state"] == "SETUP_FAILED"
    assert "nowhere" in health["detail"]
    assert refused.value.code == 503


def test_sigterm_ends_server_and_engines(tmp_path):
    server = start_server("--model", "instant", data_dir=tmp_path)
    server.wait_ready()
    engines = [engine["pid"] for engine in server.get("/health")["engines"]]

    status = server.stop()

    assert status == 0
    with pytest.raises(ProcessLookupError):
        os.kill(engines[0], 0)


def test_a_box_alone_needs_an_engine(tmp_path):
    done = serve(tmp_path, "--device", "none", "--port", "0")

    assert done.returncode == 1
    assert "--device none is for one of several boxes" in done.stderr
    assert "Hint: --device auto" in done.stderr


def test_all_devices_of_a_machine_without_cards_are_the_one_that_auto_takes(tmp_path):
    with serving("--model", "instant", "--device", "all", data_dir=tmp_path) as server:
        engines = server.get("/health")["engines"]

    assert [engine["device"] for engine in engines] == ["auto"]


def test_a_lame_duck_answers_calls_and_leaves_its_jobs_to_the_next_start(tmp_path):
    flags = ("--model", "instant:1000", "--max-batch", "1", "--lameduck", "2")
    server = start_server(*flags, data_dir=tmp_path)
    server.wait_ready()
    running = submitted(server)
    server.process.send_signal(signal.SIGTERM)
    until(lambda: server.get("/health")["draining"])
    with pytest.raises(urllib.error.HTTPError) as unready:
        server.get("/ready")
    waiting = f"/queue/{APP}/requests/{post(server, f'/queue/{APP}')['request_id']}"
    answer = post(server, f"/run/{APP}")

    with unready.value as refusal:
        assert refusal.code == 503
    assert answer["images"]
    assert server.get(f"{waiting}/status")["status"] == "IN_QUEUE"
    assert server.process.wait(20) == 0
    with serving(*flags, data_dir=tmp_path) as again:
        until(lambda: again.get(f"{waiting}/status")["status"] == "COMPLETED")
        assert again.get(f"{running}/status")["status"] == "COMPLETED"


LOCAL = "on this machine; for others: `fourstep keys add NAME` and --host 0.0.0.0"
KEYED = "on any machine, with a key"


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({}, f"page: http://localhost:8000/ ({LOCAL})"),
        ({"host": "127.0.0.2"}, f"page: http://127.0.0.2:8000/ ({LOCAL})"),
        ({"keys": "a:b"}, "page: http://localhost:8000/ (on this machine; for others: --host 0.0.0.0)"),
        ({"host": "0.0.0.0", "allow_anonymous": True}, "page: http://localhost:8000/ (on any machine, without a key)"),
        ({"host": "[::]", "keys": "a:b"}, f"page: http://localhost:8000/ ({KEYED})"),
        ({"host": "192.168.1.5", "keys": "a:b"}, f"page: http://192.168.1.5:8000/ ({KEYED})"),
        ({"public_url": "https://box.example/four", "keys": "a:b"}, f"page: https://box.example/four/ ({KEYED})"),
        ({"public_url": "https://box.example/four"}, "page: https://box.example/four/ (on any machine, without a key)"),
    ],
)
def test_the_page_is_named_with_where_it_opens(settings, said, tmp_path):
    settings = Settings(data_dir=tmp_path, **settings)
    url = f"http://{settings.addresses[0]}:8000"

    lines = banner(settings, {"url": url, "tls_url": ""}).splitlines()

    assert f"  {said}" in lines


@pytest.mark.parametrize(
    ("made", "said", "unsaid"),
    [
        (None, "FAL_KEY=any:thing", "FAL_KEY=<id:secret>"),
        ("me", "FAL_KEY=<id:secret>; `fourstep keys add NAME` makes one", "any:thing"),
    ],
)
def test_no_key_is_told_of_that_the_server_would_refuse(made, said, unsaid, tmp_path):
    if made:
        api_keys.add(tmp_path / "keys.json", made)

    text = banner(Settings(data_dir=tmp_path), {"url": "http://h:1", "tls_url": "https://localhost:2"})

    assert said in text
    assert unsaid not in text


def test_the_page_is_answered_under_the_hosts_that_the_banner_names(instant):
    statuses = []
    for host in ("localhost:8000", "127.0.0.1", "[::1]:80", "box.lan"):
        request = urllib.request.Request(f"{instant.url}/", headers={"Host": host})
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                statuses.append(answer.status)
        except urllib.error.HTTPError as refused:
            refused.close()
            statuses.append(refused.code)

    assert statuses == [200, 200, 200, 403]
    assert LOCAL in (instant.data_dir / "log").read_text()


def test_the_first_line_of_the_log_says_which_version_runs_what(instant):
    first = (instant.data_dir / "log").read_text().partition("\n")[0]

    assert f"fourstep {importlib.metadata.version('fourstep')} on Python 3." in first
    assert first.endswith(": --model instant:5 --device auto --dtype auto")


def test_a_tls_client_whose_host_name_is_not_ascii_is_in_no_log(instant):
    name = b"\xff\xfe.example"
    hello = client_hello("x" * len(name)).replace(b"x" * len(name), name)

    with socket.create_connection(("localhost", int(instant.tls_url.rpartition(":")[2]))) as connection:
        connection.sendall(hello)
        while connection.recv(4096):
            pass

    log = (instant.data_dir / "log").read_text()
    assert [word for word in ("ignored in", "Traceback", "UnicodeDecodeError") if word in log] == []


def client_hello(name):
    """The first bytes of a TLS client that asks for a name."""
    out = ssl.MemoryBIO()
    client = ssl.create_default_context().wrap_bio(ssl.MemoryBIO(), out, server_hostname=name)
    with pytest.raises(ssl.SSLWantReadError):
        client.do_handshake()
    return out.read()


def test_the_api_process_does_not_import_torch(instant):
    mapped = Path(f"/proc/{instant.pid}/maps").read_text()

    assert "libpython" in mapped or "python" in mapped
    assert "libtorch" not in mapped


def test_a_server_with_a_job_that_never_ends_stops_within_its_time_and_keeps_the_job(tmp_path):
    # The engine warms up with one image of 2.5 s; the job has eight, one after the other.
    flags = ("--model", "instant:2500", "--max-batch", "1", "--drain-timeout", "2")
    server = start_server(*flags, data_dir=tmp_path)
    server.wait_ready()
    path = submitted(server, num_images=8)

    assert server.stop(timeout=15) == 0

    with serving("--model", "instant:1", data_dir=tmp_path) as again:
        until(lambda: again.get(f"{path}/status")["status"] == "COMPLETED")
        assert again.get(path)["seed"] == 7


ASKED_HOW_MUCH_IS_FROZEN = """
import gc, sys
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from server.app import Parts
from tests.support.server_process import serve

async def frozen(request):
    return PlainTextResponse(str(gc.get_freeze_count()))

sys.exit(serve(Parts(routes=[Route("/health", frozen)]), sys.argv[1:]))
"""


def test_no_collection_looks_through_what_was_loaded_at_the_start(tmp_path):
    command = [sys.executable, "-c", ASKED_HOW_MUCH_IS_FROZEN, "serve", "--model", "instant", "--port", "0"]
    with subprocess.Popen([*command, "--data-dir", str(tmp_path)], env=clean_env()) as process:
        try:
            until((tmp_path / RUN_FILE).exists)
            url = json.loads((tmp_path / RUN_FILE).read_bytes())["url"]
            with urllib.request.urlopen(f"{url}/health", timeout=30) as answer:
                frozen = int(answer.read())
        finally:
            process.terminate()

    assert frozen > 50_000
