"""`deploy/haproxy.cfg` in front of three servers: what it passes on, what it says itself, what it survives."""

import concurrent.futures
import contextlib
import functools
import http.client
import itertools
import json
import re
import shutil
import subprocess
import threading
import time
import urllib.error
import urllib.request
from dataclasses import dataclass

import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from server.settings import Settings
from tests.clients.kit import Clients
from tests.clients.test_javascript_client import PROXY_ROUTE
from tests.support.haproxy import CONFIG, PROGRAM, Box, balancing, environment, three_boxes
from tests.support.server_process import APP, CALL, serving, until

pytestmark = [
    pytest.mark.skipif(PROGRAM is None, reason="needs haproxy"),
    pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl"),
]

RUN, QUEUE = f"/run/{APP}", f"/queue/{APP}"
REALTIME = f"{RUN}/realtime"
PICTURE = "data:image/jpeg;base64,/9j/"  # an instant engine decodes nothing
INPUT = {**CALL, "image_url": PICTURE}
JSON = {"Content-Type": "application/json"}


@dataclass(frozen=True)
class Answer:
    """What one call was answered with."""

    status: int
    headers: http.client.HTTPMessage
    body: bytes

    def json(self):
        return json.loads(self.body)


def call(balancer, method, path, body=None, headers=None, *, timeout=30):
    """One call on a connection of its own; a broken one raises `OSError` or `HTTPException`."""
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", balancer.http_port, timeout=timeout)) as talk:
        sent = json.dumps(body).encode() if isinstance(body, dict) else body
        talk.request(method, path, sent, {**(JSON if isinstance(body, dict) else {}), **(headers or {})})
        answer = talk.getresponse()
        return Answer(answer.status, answer.headers, answer.read())


def curl(balancer, url, *flags):
    """The status, the HTTP version and the body that curl gets for a URL with a port."""
    command = ["curl", "--silent", "--show-error", "--cacert", str(balancer.ca), *flags]
    done = subprocess.run(
        [*command, "--write-out", "\n%{http_code} %{http_version}", url], capture_output=True, text=True, check=True
    )
    body, _, last = done.stdout.rpartition("\n")
    status, version = last.split()
    return int(status), version, body


def socket_of(balancer):
    """A realtime socket through the balancer."""
    return connect(f"ws://127.0.0.1:{balancer.http_port}{REALTIME}", open_timeout=20, close_timeout=5)


def answered(open_socket):
    """Whether one frame is answered with a picture."""
    open_socket.send(json.dumps({**INPUT, "request_id": "one"}))
    return json.loads(open_socket.recv(timeout=30))["request_id"] == "one"


@pytest.fixture(scope="module")
def fleet(tmp_path_factory):
    """Three servers behind the balancer, which tests leave as they found them. Queue and files are one server's."""
    with three_boxes(tmp_path_factory.mktemp("fleet")) as (boxes, balancer):
        balancer.only("queue", 1)
        yield boxes, balancer


@pytest.fixture
def balancer(fleet):
    """The balancer of the three."""
    return fleet[1]


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """A balancer whose boxes are all away."""
    with balancing(tmp_path_factory.mktemp("alone"), [], wait=False) as balancer:
        balancer.wait_up("run")
        balancer.wait_up("queue")
        yield balancer


# --- the configuration


def test_it_is_valid_and_warns_of_nothing(tmp_path):
    command = [PROGRAM, "-c", "-dW", "-f", str(CONFIG)]
    done = subprocess.run(command, env=environment(tmp_path), capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stderr
    assert "valid" in done.stdout


def test_its_times_fit_those_of_the_boxes():
    seconds = {"s": 1, "m": 60}
    found = re.findall(r"^ +timeout (\S+) +(\d+)([sm])$", CONFIG.read_text(), re.MULTILINE)
    times = {name: int(count) * seconds[unit] for name, count, unit in found}
    check = re.search(r"default-server inter (\d+)s fall (\d+)", CONFIG.read_text())
    lameduck = re.search(r"--lameduck (\d+)$", CONFIG.read_text(), re.MULTILINE)

    assert times["server"] > Settings.start_timeout + 15  # an event stream's comments, and a call that waits
    assert times["tunnel"] > Settings.session_idle_timeout + Settings.ping_interval
    assert times["http-request"] >= Settings.header_timeout
    assert times["client"] > Settings.send_timeout
    assert int(check[1]) * int(check[2]) < int(lameduck[1])


# --- what passes


def test_runs_are_spread_over_the_boxes(balancer):
    before = balancer.shares("run")

    statuses = [call(balancer, "POST", RUN, INPUT).status for _ in range(9)]

    assert statuses == [200] * 9
    assert [after - was for after, was in zip(balancer.shares("run"), before, strict=True)] == [3, 3, 3]


def test_sockets_are_spread_over_the_boxes(balancer):
    with socket_of(balancer) as one, socket_of(balancer) as two, socket_of(balancer) as three:
        assert all(map(answered, (one, two, three)))

        assert balancer.shares("realtime", "scur") == [1, 1, 1]


def test_a_job_goes_its_way(balancer):
    accepted = call(balancer, "POST", QUEUE, INPUT).json()
    path = f"{QUEUE}/requests/{accepted['request_id']}"
    events = call(balancer, "GET", f"{path}/status/stream").body.decode()
    result = call(balancer, "GET", path)

    assert accepted["status_url"].startswith(f"{balancer.url}/queue/")
    assert json.loads(events.strip().splitlines()[-1].removeprefix("data: "))["status"] == "COMPLETED"
    assert result.json()["seed"] == INPUT["seed"]


def test_an_upload_of_forty_megabytes_comes_back_whole(balancer):
    sent = bytes(range(256)) * (40 * 4096)
    urls = call(balancer, "POST", "/rest/storage/upload/initiate", {"file_name": "a.bin"}).json()
    put = call(balancer, "PUT", urls["upload_url"].removeprefix(balancer.url), sent)
    got = call(balancer, "GET", urls["file_url"].removeprefix(balancer.url))

    assert (put.status, got.status) == (200, 200)
    assert got.body == sent


def test_links_are_what_the_client_can_follow(balancer):
    body = json.dumps(INPUT | {"sync_mode": False})

    _, _, plain = curl(balancer, f"{balancer.url}{RUN}", "--json", body)
    _, _, secure = curl(balancer, f"{balancer.tls_url}{RUN}", "--json", body, "-H", "X-Forwarded-Proto: http")

    assert json.loads(plain)["images"][0]["url"].startswith(f"{balancer.url}/cdn/files/")
    assert json.loads(secure)["images"][0]["url"].startswith(f"{balancer.tls_url}/cdn/files/")


def test_browsers_get_http_2(balancer):
    assert curl(balancer, f"{balancer.tls_url}/health")[:2] == (200, "2")


def test_an_address_without_a_name_is_shown_the_certificate_that_has_it(balancer):
    assert curl(balancer, f"https://127.0.0.1:{balancer.https_port}/health")[0] == 200


@pytest.mark.parametrize(
    ("host", "path", "backend"),
    [
        ("fal.run", f"/{APP}", "run"),
        ("queue.fal.run", f"/{APP}", "queue"),
        ("110602490-lcm-sd15-i2i.gateway.alpha.fal.ai", "/", "run"),
        ("110602490-lcm-sd15-i2i.gateway.alpha.fal.ai", "/fal/queue/submit", "queue"),
        ("rest.alpha.fal.ai", "/storage/upload/initiate", "queue"),
    ],
)
def test_fals_own_names_are_taken_over(host, path, backend, balancer):
    before = sum(balancer.shares(backend))
    port = balancer.https_port
    there = f"{host}:{port}:127.0.0.1"

    status, _, body = curl(balancer, f"https://{host}:{port}{path}", "--resolve", there, "--json", json.dumps(INPUT))

    assert status == 200
    assert sum(balancer.shares(backend)) == before + 1
    if host == "queue.fal.run":
        assert json.loads(body)["status_url"].startswith(f"https://queue.fal.run:{port}/")


def test_a_boxs_own_refusal_stays_as_it_is(balancer):
    refused = call(balancer, "POST", RUN, b"{", JSON)
    unknown = call(balancer, "GET", f"{QUEUE}/requests/nothing/status")

    assert (refused.status, unknown.status) == (422, 404)
    assert "access-control-allow-origin" not in unknown.headers
    assert len(unknown.headers.get_all("x-fal-request-id")) == 1


def test_who_leaves_ends_the_call_on_the_box(tmp_path):
    with (
        Box(tmp_path / "box", "--model", "instant:5000") as box,
        balancing(tmp_path / "balancer", [box.address]) as balancer,
    ):
        with pytest.raises(TimeoutError):
            call(balancer, "POST", RUN, INPUT, timeout=1)

        def left():
            with urllib.request.urlopen(f"{box.server.url}/metrics") as answer:
                return b'fourstep_requests_total{route="run",status="499"} 1.0' in answer.read()

        until(left)


@pytest.mark.slow
def test_a_silent_event_stream_is_kept_open_by_its_comments(tmp_path):
    with (
        serving("--model", "instant:17000", ready=False) as server,  # it tries itself first, and says nothing meanwhile
        balancing(tmp_path / "balancer", [server.host], wait=False) as balancer,
    ):
        balancer.wait_up("queue", 1)
        accepted = call(balancer, "POST", QUEUE, INPUT).json()
        stream = f"{balancer.url}{QUEUE}/requests/{accepted['request_id']}/status/stream"
        with urllib.request.urlopen(stream, timeout=30) as events:
            lines = itertools.takewhile(lambda line: line != b": keep-alive\n", events)

            assert {line[:6] for line in lines} == {b"data: ", b"\n"}
            assert events.readline() == b"\n"  # else the stream has ended


# --- what it says itself


def test_the_state_of_one_box_is_not_to_be_had_but_for_the_pages(balancer):
    statuses = [call(balancer, "GET", path).status for path in ("/ready", "/metrics", "/health", "/")]

    assert statuses == [404, 404, 200, 200]


@pytest.mark.parametrize(("method", "path"), [("POST", RUN), ("POST", QUEUE), ("GET", f"{QUEUE}/requests/a/status")])
def test_without_a_box_the_answer_is_one_that_clients_try_again(method, path, alone):
    answer = call(alone, method, path, INPUT if method == "POST" else None, {"Origin": "https://page.example"})

    assert answer.status == 429
    assert answer.json() == {
        "detail": "No server is ready, try again",
        "message": "No server is ready, try again",
        "error_type": "concurrent_requests_limit",
    }
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["x-fal-error-type"] == "concurrent_requests_limit"
    assert answer.headers["access-control-allow-origin"] == "*"
    assert re.fullmatch(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", answer.headers["x-fal-request-id"])


def test_without_a_box_a_page_may_still_ask(alone):
    asked = {"Origin": "https://page.example", "Access-Control-Request-Method": "POST"}
    answer = call(alone, "OPTIONS", RUN, headers={**asked, "Access-Control-Request-Headers": "authorization"})

    assert answer.status == 204
    assert answer.headers["access-control-allow-headers"] == "authorization"
    assert "POST" in answer.headers["access-control-allow-methods"]


def test_keepalived_hears_whether_there_is_a_box(balancer, alone):
    for each, status in ((balancer, 200), (alone, 503)):
        with contextlib.closing(http.client.HTTPConnection("127.0.0.1", each.alive_port)) as talk:
            talk.request("GET", "/alive")

            assert talk.getresponse().status == status


def test_the_log_has_no_path_and_no_query(balancer):
    answer = call(balancer, "GET", f"{QUEUE}/requests/a-secret/status?fal_jwt_token=a-secret")
    call(balancer, "GET", "/ready?a-secret")
    until(lambda: "404" in balancer.log)

    assert answer.status == 404
    assert "a-secret" not in balancer.log


@pytest.mark.parametrize("kind", ["python", "javascript"])
def test_fals_clients_get_through_a_time_without_boxes(kind, tmp_path):
    with Box(tmp_path / "box") as box, balancing(tmp_path / "balancer", [box.address]) as balancer:
        host = balancer.tls_url.removeprefix("https://")
        trust = {"SSL_CERT_FILE": str(balancer.bundle)}
        clients = Clients({"FAL_RUN_HOST": f"{host}/run", "FAL_KEY": "any:thing", "PICTURE": PICTURE, **trust})
        calls = {
            "python": functools.partial(clients.py, "overload.py", calls=1),
            "javascript": functools.partial(clients.js, "overload.mjs", proxy=balancer.url + PROXY_ROUTE, calls=1),
        }
        balancer.say("set server run/box1 state maint")
        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            called = pool.submit(calls[kind])
            until(lambda: called.done() or " POST 429 " in balancer.log)  # one that came too early
            balancer.say("set server run/box1 state ready")

            assert called.result() in ([[7]], [["ok"]]), balancer.log


# --- boxes that leave


class Load:
    """Threads that call until they are told to stop. `failed`: when each call began that got no picture, and why."""

    def __init__(self, balancer, threads=6):
        self.done = 0
        self.failed = []
        self._balancer = balancer
        self._stopped = threading.Event()
        self._threads = [threading.Thread(target=self._run) for _ in range(threads)]

    def __enter__(self):
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_):
        self._stopped.set()
        for thread in self._threads:
            thread.join()

    def _run(self):
        while not self._stopped.is_set():
            began = time.monotonic()
            try:
                answer = call(self._balancer, "POST", RUN, INPUT)
                said = answer.status if answer.status != 200 else None
            except (OSError, http.client.HTTPException) as error:
                said = type(error).__name__
            if said is None:
                self.done += 1
            else:
                self.failed.append((began, said))

    def until_done(self, more):
        """Return when so many more calls were answered."""
        enough = self.done + more
        until(lambda: self.done >= enough)


def test_a_killed_box_takes_only_what_it_had(tmp_path):
    with three_boxes(tmp_path) as (boxes, balancer):
        with Load(balancer) as load:
            load.until_done(30)
            boxes[1].server.kill()
            killed_at = time.monotonic()
            balancer.wait_up("run", 1, 3)
            load.until_done(30)

        assert len(load.failed) <= 6
        assert {said for _, said in load.failed} <= {429, "IncompleteRead"}  # the box may have begun to answer
        assert [began for began, _ in load.failed if began > killed_at] == []


def test_a_box_that_is_told_to_stop_fails_no_call_and_sends_its_sockets_on(tmp_path):
    with three_boxes(tmp_path, "--lameduck", "4") as (boxes, balancer), contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket_of(balancer)) for _ in range(3)]
        assert all(map(answered, sockets))
        load = stack.enter_context(Load(balancer))
        load.until_done(30)

        boxes[0].server.process.terminate()
        balancer.wait_up("run", 2, 3)
        balancer.wait_up("queue", 2, 3)
        assert boxes[0].server.process.poll() is None
        assert all(map(answered, sockets))
        boxes[0].server.process.wait(20)
        ended = []
        for each in sockets:
            with contextlib.suppress(TimeoutError):
                try:
                    each.recv(timeout=0.5)
                except ConnectionClosed as error:
                    ended.append(error.rcvd.code)
        with socket_of(balancer) as elsewhere:
            assert answered(elsewhere)
        load.until_done(30)
        stack.close()

        assert ended == [1000]
        assert load.failed == []
