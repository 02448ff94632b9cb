"""A real server behind a proxy and a private CA, and one whose name server is silent."""

import asyncio
import contextlib
import http.client
import http.server
import json
import threading
import urllib.error
from concurrent.futures import ThreadPoolExecutor

import pytest

from server.settings import Settings
from server.transport import tls
from tests.chaos.harness import Victim, call, until
from tests.outbound.test_fetch import Site, page
from tests.support.connect_proxy import ConnectProxy
from tests.support.server_process import APP, CALL, post, serving

pytestmark = pytest.mark.anyio

HOST = "pictures.corp.invalid"  # a name that resolves nowhere (RFC 6761)
PICTURE = b"\xff\xd8\xff a picture"
CALLS = 16  # of one key at once: its share of the pictures on their way


@pytest.fixture
def files(tmp_path):
    return tls.ensure(Settings(data_dir=tmp_path / "ca", tls_names=HOST))


@pytest.mark.parametrize("trusting", [True, False])
async def test_a_host_of_a_private_ca_behind_a_proxy_is_reached_where_ssl_cert_file_trusts_it(files, trusting):
    env = {"SSL_CERT_FILE": str(files.ca)} if trusting else {}
    async with Site(tls.server_context(files)) as site, ConnectProxy({HOST: site.port}) as proxy:
        site.pages["/p.jpg"] = page(PICTURE)
        flags = ("--model", "instant", "--outbound-proxy", f"http://user:geheim@127.0.0.1:{proxy.port}")
        with serving(*flags, env=env) as server:
            try:
                answer = await asyncio.to_thread(post, server, f"/run/{APP}", image_url=f"https://{HOST}/p.jpg")
            except urllib.error.HTTPError as error:
                answer = {"status": error.code, "said": error.read().decode()}
            log = (server.data_dir / "log").read_text()

    assert proxy.targets == [f"{HOST}:443"]
    assert "geheim" not in log + json.dumps(answer)
    if trusting:
        assert answer["images"]
    else:
        assert answer["status"] == 422
        assert "its certificate is not trusted" in answer["said"]


def test_another_keys_run_job_and_webhook_succeed_beside_names_that_never_resolve(tmp_path):
    flags = ("--model", "instant", "--keys", "good:a,bad:b", "--allow-net", "127.0.0.0/8,::1")
    with receiver() as (there, told), Victim(tmp_path, *flags, silent_names=600.0) as server:
        server.wait_ready()
        with ThreadPoolExecutor(CALLS) as threads:
            urls = [f"http://{number}.never.test/" for number in range(CALLS)]
            refused = list(threads.map(lambda url: called(server.port, "bad:b", f"/run/{APP}", url), urls))
        run = called(server.port, "good:a", f"/run/{APP}", f"{there}/p.jpg")
        job = called(server.port, "good:a", f"/queue/{APP}?fal_webhook={there}/hook", f"{there}/p.jpg")
        until(lambda: told, "the webhook is delivered")

    assert [status for status, _ in refused] == [422] * CALLS
    assert run[0] == 200
    assert [(one["request_id"], one["status"]) for one in told] == [(job[1]["request_id"], "OK")]


@contextlib.contextmanager
def receiver():
    """A picture's and webhooks' server on this machine: its URL, by host name, and what was posted to it."""
    told = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.answer(PICTURE)

        def do_POST(self):
            told.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.answer(b"")

        def answer(self, body):
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *arguments):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://localhost:{server.server_address[1]}", told
        server.shutdown()


def called(port, key, path, image_url):
    """Return status and JSON of one call of a key."""
    headers = {"Authorization": f"Key {key}", "Content-Type": "application/json"}
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=60)) as connection:
        connection.request("POST", path, json.dumps(CALL | {"image_url": image_url}), headers)
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read())


def test_look_ups_that_never_end_do_not_keep_the_server_from_stopping(tmp_path):
    flags = ("--model", "instant", "--drain-timeout", "1", "--fetch-connect-timeout", "0.1")
    with Victim(tmp_path, *flags, silent_names=600.0) as server:
        server.wait_ready()
        status, answer = call(server.port, "POST", f"/run/{APP}", CALL | {"image_url": "http://a.never.test/"})
        stopped_s = server.stop()

    assert (status, answer["detail"][0]["type"]) == (422, "file_download_error")
    assert stopped_s < 20
