"""Where the clients find a server: through the environment, through the proxy route, or by taking fal's names over."""

import base64
import contextlib
import json
import re
import subprocess
import time
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy
import pytest

from pipelines.images.codec import encode
from server.transport.takeover import hosts_lines
from tests.clients.kit import Clients
from tests.clients.sandbox import Sandbox, SandboxError, sandbox
from tests.support.server_process import PROGRAM, STARTED_WITHIN_S, Server, addresses, clean_env, serving

KEY = "test-key:0123456789abcdef"
# Receivers of webhooks run beside the clients.
WEBHOOKS_HERE = ("--allow-net", "127.0.0.0/8")


@dataclass(frozen=True)
class Takeover:
    """A server that holds fal's names on port 443 of a sandbox, and clients beside it that know nothing of it."""

    clients: Clients
    sandbox: Sandbox
    data_dir: Path

    @property
    def log(self) -> str:
        """What the server has logged."""
        return (self.data_dir / "log").read_text()

    @property
    def pid(self) -> int:
        """The server's process."""
        return int(_run_file(self.data_dir)["pid"])

    def get(self, path: str) -> str:
        """What the server answers on its plain port."""
        return self.sandbox.run(
            "import sys, urllib.request; print(urllib.request.urlopen(sys.argv[1]).read().decode())",
            _run_file(self.data_dir)["url"] + path,
        )


@pytest.fixture(scope="session", name="picture")
def fixture_picture() -> str:
    """A small input picture as a data URI."""
    across = numpy.linspace(0, 255, 96, dtype=numpy.uint8)
    pixels = numpy.stack(numpy.broadcast_arrays(across[:, None], across[None, :], numpy.uint8(90)), axis=-1)
    return "data:image/jpeg;base64," + base64.b64encode(encode(numpy.ascontiguousarray(pixels), 80, "4:2:0")).decode()


@pytest.fixture(scope="session")
def slow() -> Iterator[Server]:
    """A server whose pictures take half a second, one after the other: time to cancel, to time out, to queue up."""
    with serving("--model", "instant:500", "--max-batch", "1", "--tls-port", "0") as server:
        yield server


def count(server: Server, metric: str, label: str = "") -> int:
    """What a server's counter stands at, summed over its labels, or over those that have `label`."""
    found = 0
    for url in addresses(server.data_dir):
        with urllib.request.urlopen(f"{url}/metrics") as page:
            found += sum_of(metric, page.read().decode(), label)
    return found


def sum_of(metric: str, page: str, label: str = "") -> int:
    """The sum of a counter in Prometheus' text format."""
    lines = [line for line in page.splitlines() if re.match(rf"{metric}[{{ ]", line) and label in line]
    return int(sum(float(line.rpartition(" ")[2]) for line in lines))


@pytest.fixture(name="by_environment")
def fixture_by_environment(instant: Server, picture: str) -> Clients:
    """Python clients of the shared server."""
    return by_environment(instant, picture)


@pytest.fixture
def slow_by_environment(slow: Server, picture: str) -> Clients:
    """Python clients of the slow server."""
    return by_environment(slow, picture)


def by_environment(server: Server, picture: str) -> Clients:
    """Python's way to a server: host names with a path prefix, and the local CA's bundle."""
    return Clients(
        {
            "FAL_KEY": "any:thing",
            "FAL_RUN_HOST": f"{server.tls_host}/run",
            "FAL_QUEUE_RUN_HOST": f"{server.tls_host}/queue",
            "SSL_CERT_FILE": str(server.bundle),
            "PICTURE": picture,
        }
    )


@pytest.fixture(scope="session")
def clients(picture: str) -> Clients:
    """Clients that know of no server yet."""
    return Clients({"FAL_KEY": "any:thing", "PICTURE": picture})


@pytest.fixture(scope="session")
def takeover(picture: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Takeover]:
    """fal's names lead to one server with a key, shared by tests that leave it as they found it."""
    flags = ("--model", "instant+jpeg:5", *WEBHOOKS_HERE)
    with taking_over(tmp_path_factory.mktemp("takeover"), picture, *flags) as server:
        yield server


@contextlib.contextmanager
def taking_over(
    data_dir: Path, picture: str, *flags: str, door: str = "--takeover", program: Sequence[str] = ()
) -> Iterator[Takeover]:
    """A sandbox with a server in it, `fourstep` or another `program`. Skips where the kernel gives no sandbox."""
    with contextlib.ExitStack() as stack:
        try:
            box = stack.enter_context(sandbox(hosts_lines() + "127.0.0.1 queue.localhost\n"))
        except SandboxError as error:
            pytest.skip(f"needs a private mount namespace: {error}")
        stack.enter_context(_serving(box, data_dir, program, door, *flags))
        env = {
            "FAL_KEY": KEY,
            "SSL_CERT_FILE": str(data_dir / "tls" / "bundle.pem"),
            "NODE_EXTRA_CA_CERTS": str(data_dir / "tls" / "ca.pem"),
            "PICTURE": picture,
        }
        yield Takeover(Clients(env, box.wrap), box, data_dir)


@contextlib.contextmanager
def _serving(box: Sandbox, data_dir: Path, program: Sequence[str], *flags: str) -> Iterator[None]:
    command = [*(program or PROGRAM), "serve", "--data-dir", str(data_dir), "--port", "0", *flags]
    with (data_dir / "log").open("ab") as log:
        server = subprocess.Popen(box.wrap(command), env=clean_env({"FOURSTEP_KEYS": KEY}), stderr=log)
    try:
        _wait_ready(box, server, data_dir)
        yield
    finally:
        server.terminate()
        server.wait(20)


def _wait_ready(box: Sandbox, server: "subprocess.Popen[bytes]", data_dir: Path) -> None:
    run_file = data_dir / "server.json"
    end = time.monotonic() + STARTED_WITHIN_S
    while not run_file.exists():
        assert server.poll() is None, (data_dir / "log").read_text()
        assert time.monotonic() < end, "the server does not come up"
        time.sleep(0.05)
    box.run(
        "import sys, time, urllib.request, urllib.error\n"
        "for _ in range(600):\n"
        "    try:\n"
        "        sys.exit(urllib.request.urlopen(sys.argv[1]).status != 200)\n"
        "    except urllib.error.HTTPError:\n"
        "        time.sleep(0.1)\n"
        "sys.exit('not ready')\n",
        addresses(data_dir)[-1] + "/ready",
    )


def _run_file(data_dir: Path) -> dict[str, str]:
    found: dict[str, str] = json.loads((data_dir / "server.json").read_text())
    return found
