"""Time limits and overload, with the clients' own ways of dealing with them."""

import contextlib
import urllib.request
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.clients.conftest import count, sum_of, taking_over
from tests.clients.test_javascript_client import PROXY_ROUTE
from tests.support.server_process import APP, CALL, addresses, ask, serving, until

# Half a second each: nothing that comes later starts within the next second and a half.
BEHIND = 8
KEY = "any:thing"


@pytest.fixture(scope="module", params=["the server", "the key"])
def narrow(request):
    """A server that takes one call at a time: of all, or of each key."""
    env = {"FOURSTEP_KEYS": KEY} if request.param == "the key" else {}
    calls = "2" if env else "1"
    with serving("--model", "instant:500", "--max-calls", calls, "--tls-port", "0", env=env) as server:
        yield server


@contextlib.contextmanager
def full(server):
    """Context in which a server of one call at a time has that one, and each of several servers has its own."""
    urls = addresses(server.data_dir)

    def busy(url):
        with urllib.request.urlopen(f"{url}/metrics") as page:
            return sum_of("fourstep_body_bytes", page.read().decode())

    with ThreadPoolExecutor(len(urls)) as threads:
        calls = [threads.submit(ask, server, "POST", f"/run/{APP}", CALL, key=KEY) for _ in urls]
        until(lambda: all(map(busy, urls)))
        yield
    assert [call.result().status for call in calls] == [200] * len(urls)


def answers(server, status: int) -> int:
    """How many answers had this status so far."""
    return count(server, "fourstep_requests_total", f'status="{status}"')


def test_javascript_does_not_repeat_a_run_that_did_not_start_in_time(clients, slow):
    before = answers(slow, 504)

    [said] = clients.js("timeouts.mjs", proxy=slow.url + PROXY_ROUTE, call="run", behind=BEHIND)

    assert (said["error"]["status"], said["error"]["timeoutType"]) == (504, "user")
    assert answers(slow, 504) == before + 1


def test_python_does_not_repeat_a_run_that_did_not_start_in_time(slow_by_environment, slow):
    before = answers(slow, 504)

    [said] = slow_by_environment.py("timeouts.py", call="run", behind=BEHIND)

    assert (said["error"]["status"], said["error"]["error_type"]) == (504, "startup_timeout")
    assert answers(slow, 504) == before + 1


def test_a_subscription_that_javascript_gives_up_is_cancelled(clients, slow):
    [said] = clients.js("timeouts.mjs", proxy=slow.url + PROXY_ROUTE, call="subscribe", behind=BEHIND)

    assert said["error"]["kind"] == "Error"
    assert (said["status"]["status"], said["status"]["error_type"]) == ("COMPLETED", "client_cancelled")


def test_a_subscription_that_python_gives_up_is_cancelled(slow_by_environment):
    [said] = slow_by_environment.py("timeouts.py", call="subscribe", behind=BEHIND)

    assert said["error"]["kind"] == "FalClientTimeoutError"
    assert said["status"]["error_type"] in {"client_cancelled", "startup_timeout"}


def test_one_call_too_many_is_429_at_once(narrow):
    with full(narrow):
        refused = ask(narrow, "POST", f"/run/{APP}", CALL, key=KEY)

    assert (refused.status, refused.headers["content-type"]) == (429, "application/json")
    assert refused.json()["error_type"] == refused.headers["x-fal-error-type"] == "concurrent_requests_limit"
    assert ask(narrow, "POST", f"/run/{APP}", CALL, key=KEY).status == 200


@pytest.mark.slow
def test_javascript_gets_through_an_overload_by_itself(clients, narrow):
    before = answers(narrow, 429)

    with full(narrow):
        [outcomes] = clients.js("overload.mjs", proxy=narrow.url + PROXY_ROUTE, calls=3)

    assert outcomes == ["ok"] * 3
    assert answers(narrow, 429) > before


def test_python_gets_through_an_overload_by_itself(by_environment, narrow):
    before = answers(narrow, 429)
    narrowly = by_environment.with_env(FAL_RUN_HOST=f"{narrow.tls_host}/run", SSL_CERT_FILE=str(narrow.bundle))

    with full(narrow):
        [seeds] = narrowly.py("overload.py", calls=4)

    assert seeds == [7] * 4
    assert answers(narrow, 429) > before


def test_the_legacy_client_takes_an_overload_for_final(takeover, picture, tmp_path_factory):
    flags = ("--model", "instant:200", "--max-calls", "1")
    with taking_over(tmp_path_factory.mktemp("narrow"), picture, *flags) as server:
        servers = len(addresses(server.data_dir))
        [outcomes] = server.clients.js("overload.mjs", package="serverless-client-0.15", calls=3 * servers)

    assert sorted(map(str, outcomes)) == ["429"] * 2 * servers + ["ok"] * servers
