"""A real server process on loopback for tests: `with serving("--model", "instant") as server: …`."""

import contextlib
import http.client
import json
import os
import socket
import ssl
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import psutil

from server.app import Parts
from server.cli import serve as serving_command
from server.cli.arguments import command_line
from server.cli.launcher import RUN_FILE, Server, running, start
from server.environment import FIELDS, load

__all__ = [
    "APP",
    "CALL",
    "PROGRAM",
    "STARTED_WITHIN_S",
    "Answer",
    "Server",
    "addresses",
    "ask",
    "clean_env",
    "is_running",
    "loopback",
    "post",
    "serve",
    "serving",
    "start_server",
    "submitted",
    "until",
]

APP = "fal-ai/lcm-sd15-i2i"
CALL = {
    "prompt": "a beach",
    "image_url": "https://storage.googleapis.com/falserverless/model_tests/lcm/beach.png",
    "seed": 7,
    "sync_mode": True,
}

# What is taken for one server: `fourstep`, or with `--fleet` three servers behind HAProxy (tests/nodes/boxes.py).
PROGRAM = [str(Path(sys.executable).with_name("fourstep"))]
STARTED_WITHIN_S = 240.0  # three that load a model at once, on a busy machine

# Test machines may preset trust stores, keys and proxies: a test sets its own.
_NOT_INHERITED = (
    "FAL_",
    "FOURSTEP_",
    "SSL_CERT",
    "NODE_",
    "DENO_",
    "REQUESTS_CA",
    "CURL_CA",
    "HTTP_PROXY",
    "HTTPS_PROXY",
    "ALL_PROXY",
)


def clean_env(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """This process's environment without what would change a server's or a client's mind, and with `extra`."""
    kept = {name: value for name, value in os.environ.items() if not name.upper().startswith(_NOT_INHERITED)}
    return {**kept, **(extra or {})}


@contextlib.contextmanager
def serving(
    *flags: str, data_dir: Path | None = None, env: Mapping[str, str] | None = None, ready: bool = True
) -> Iterator[Server]:
    """A server that has loaded its model (unless `ready` is false), stopped at the end; its log at `data_dir/log`."""
    with contextlib.ExitStack() as stack:
        where = data_dir or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="fourstep-")))
        log = stack.enter_context((where / "log").open("ab"))
        options = {"env": clean_env(env), "log": log, "program": PROGRAM, "timeout": STARTED_WITHIN_S}
        yield stack.enter_context(running(where, *flags, ready=ready, **options))


def start_server(
    *flags: str, data_dir: Path, env: Mapping[str, str] | None = None, program: Sequence[str] = ()
) -> Server:
    """A server for tests that kill it: the caller ends it. Its log is appended to `data_dir/log`."""
    with (data_dir / "log").open("ab") as log:
        return start(
            data_dir, *flags, env=clean_env(env), log=log, program=program or PROGRAM, timeout=STARTED_WITHIN_S
        )


def addresses(data_dir: Path) -> list[str]:
    """The URL of a server, or of each of those that are taken for one."""
    found = json.loads((data_dir / RUN_FILE).read_text())
    urls: list[str] = found.get("boxes", [found["url"]])
    return urls


def serve(parts: Parts, argv: Sequence[str]) -> int:
    """Run `fourstep serve …` in this process, made of `parts`."""
    arguments = vars(command_line().parse_args(argv))
    return serving_command.run(load({name: value for name, value in arguments.items() if name in FIELDS}), parts)


def free_port() -> int:
    """Return a port of loopback that nothing listens on."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


def loopback() -> list[str]:
    """The loopback addresses that this machine has."""
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        return ["127.0.0.1"]
    return ["127.0.0.1", "::1"]


def post(server: Server, path: str, **changes: Any) -> Any:
    """The JSON answer to one call, with `changes` of its input."""
    body = json.dumps(CALL | changes).encode()
    request = urllib.request.Request(server.url + path, body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=120) as answer:
        return json.load(answer)


class Answer(NamedTuple):
    """An answer's status, headers and bytes."""

    status: int
    headers: http.client.HTTPMessage
    body: bytes

    def json(self) -> Any:
        """Return the value of the body's JSON."""
        return json.loads(self.body)


def ask(
    server: Server, method: str, url: str, body: Any = None, headers: Mapping[str, str] | None = None, *, key: str = ""
) -> Answer:
    """Return what a server answers to one call on a connection of its own, whatever the status.

    `url`: a path, or a URL whose host is named and not looked up; `https://` goes to the server's https port. `body`:
    bytes as they are, anything else as JSON.
    """
    target = urlsplit(url)
    sent = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
    named = {
        **({"Host": target.netloc} if target.netloc else {}),
        **({"Content-Type": "application/json"} if body is not None else {}),
        **({"Authorization": f"Key {key}"} if key else {}),
        **(headers or {}),
    }
    connection = http.client.HTTPConnection(server.host, timeout=60)
    if target.scheme == "https":
        trust = ssl.create_default_context(cafile=str(server.ca))
        connection = http.client.HTTPSConnection(server.tls_host, timeout=60, context=trust)
    with contextlib.closing(connection):
        connection.request(method, target.path + (f"?{target.query}" if target.query else ""), sent, named)
        answer = connection.getresponse()
        return Answer(answer.status, answer.headers, answer.read())


def until(condition: Callable[[], bool], timeout: float = 60) -> None:
    """Poll until `condition()` is true."""
    end = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < end, "it never came to pass"
        time.sleep(0.02)


def is_running(pid: int) -> bool:
    """Whether a process is there and no zombie, which the machine's first process may be slow to reap."""
    with contextlib.suppress(psutil.NoSuchProcess):  # it may end between two looks
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    return False


def submitted(server: Server, **changes: Any) -> str:
    """The path of a job that an engine works on, with `changes` of its input."""
    path = f"/queue/{APP}/requests/{post(server, f'/queue/{APP}', **changes)['request_id']}"
    until(lambda: server.get(f"{path}/status")["status"] == "IN_PROGRESS")
    return path
