"""The very `deploy/haproxy.cfg`, on loopback: `with balancing(folder, boxes) as balancer: …`."""

import contextlib
import grp
import os
import pwd
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from server.settings import Settings
from server.transport import tls
from tests.support.server_process import Server, clean_env, free_port, start_server

CONFIG = Path(__file__).parents[2] / "deploy" / "haproxy.cfg"
PROGRAM = shutil.which("haproxy") or shutil.which("haproxy", path="/usr/sbin:/usr/local/sbin")
BOXES = 3  # that the configuration has places for
_NOBODY = "127.0.0.1:1"  # a box that isn't there
_PATIENCE_S = 20.0


@dataclass(frozen=True)
class Balancer:
    """A running HAProxy. `url` and `tls_url` have no trailing slash."""

    process: subprocess.Popen[bytes]
    folder: Path
    http_port: int
    https_port: int
    alive_port: int

    @property
    def url(self) -> str:
        """Where plain HTTP is taken."""
        return f"http://127.0.0.1:{self.http_port}"

    @property
    def tls_url(self) -> str:
        """Where https is taken, under a name that the certificate carries."""
        return f"https://localhost:{self.https_port}"

    @property
    def ca(self) -> Path:
        """What clients trust."""
        return tls.TlsFiles(self.folder / "tls").ca

    @property
    def bundle(self) -> Path:
        """What clients trust, with the public roots."""
        return tls.TlsFiles(self.folder / "tls").bundle

    @property
    def log(self) -> str:
        """What HAProxy has logged so far."""
        return (self.folder / "haproxy.log").read_text()

    def say(self, command: str) -> str:
        """The answer to one command of the administrator's socket."""
        with socket.socket(socket.AF_UNIX) as talk:
            talk.connect(str(self.folder / "socket"))
            talk.sendall(f"{command}\n".encode())
            return b"".join(iter(lambda: talk.recv(65536), b"")).decode()

    def shares(self, backend: str, column: str = "stot") -> list[int]:
        """How many calls each box of a backend has had so far; another column: `scur`, those it has now."""
        return [int(row[column]) for row in self._rows(backend)]

    def up(self, backend: str) -> set[int]:
        """The numbers of the boxes (1 …) that a backend's calls are sent to."""
        return {number for number, row in enumerate(self._rows(backend), 1) if row["status"].startswith("UP")}

    def wait_up(self, backend: str, *boxes: int) -> None:
        """Return once a backend's calls are sent to these boxes (1 …) and no others."""
        end = time.monotonic() + _PATIENCE_S
        while (found := self.up(backend)) != set(boxes):
            assert time.monotonic() < end, f"{backend}: up are {found}, not {boxes}"
            time.sleep(0.02)

    def _rows(self, backend: str) -> list[dict[str, str]]:
        """The statistics of a backend's boxes, in their order."""
        head, *rows = self.say("show stat").removeprefix("# ").strip().splitlines()
        found = (dict(zip(head.split(","), row.split(","), strict=False)) for row in rows)
        return [row for row in found if row["pxname"] == backend and row["svname"].startswith("box")]

    def only(self, backend: str, box: int) -> None:
        """Send all calls of a backend to one box (1 …), whatever else is there."""
        for each in range(1, BOXES + 1):
            self.say(f"set server {backend}/box{each} state {'ready' if each == box else 'maint'}")


def environment(folder: Path, boxes: Sequence[str] = (), *, ports: Sequence[int] = (1, 2, 3)) -> dict[str, str]:
    """The variables of the configuration; makes the certificates in `folder`. `boxes`: host:port of each."""
    files = tls.ensure(Settings(data_dir=folder))
    tls.write_pems(files)
    http, https, alive = ports
    named = {f"FOURSTEP_BOX_{number + 1}": [*boxes, *[_NOBODY] * BOXES][number] for number in range(BOXES)}
    return clean_env() | {
        **named,
        "FOURSTEP_HTTP": f"127.0.0.1:{http}",
        "FOURSTEP_HTTPS": f"127.0.0.1:{https}",
        "FOURSTEP_ALIVE": f"127.0.0.1:{alive}",
        "FOURSTEP_CERTIFICATES": str(files.haproxy),
        "FOURSTEP_HAPROXY_SOCKET": str(folder / "socket"),
        "FOURSTEP_HAPROXY_USER": pwd.getpwuid(os.getuid()).pw_name,
        "FOURSTEP_HAPROXY_GROUP": grp.getgrgid(os.getgid()).gr_name,
    }


@contextlib.contextmanager
def balancing(
    folder: Path,
    boxes: Sequence[str],
    *,
    wait: bool = True,
    changes: Mapping[str, str] | None = None,
    http: int = 0,
    https: int = 0,
) -> Iterator[Balancer]:
    """HAProxy in front of `boxes` (host:port of each), once it knows that they are up (unless `wait` is false).

    `changes`: what is replaced in the configuration, for a control. `http`, `https`: ports; 0 for free ones.
    """
    assert PROGRAM, "HAProxy is not installed. Hint: apt-get install haproxy"
    folder.mkdir(exist_ok=True)
    ports = http or free_port(), https or free_port(), free_port()
    env = environment(folder, boxes, ports=ports)
    text = CONFIG.read_text()
    for old, new in (changes or {}).items():
        assert old in text
        text = text.replace(old, new)
    (folder / "haproxy.cfg").write_text(text)
    with (folder / "haproxy.log").open("wb") as log:
        process = subprocess.Popen([PROGRAM, "-f", str(folder / "haproxy.cfg")], env=env, stdout=log, stderr=log)
    balancer = Balancer(process, folder, *ports)
    try:
        _wait_bound(balancer)
        if wait:
            for backend in ("run", "queue"):
                balancer.wait_up(backend, *range(1, len(boxes) + 1))
        yield balancer
    finally:
        process.terminate()
        process.wait()


def _wait_bound(balancer: Balancer) -> None:
    end = time.monotonic() + _PATIENCE_S
    while True:
        assert balancer.process.poll() is None, balancer.log
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", balancer.alive_port)):
            balancer.say("show version")  # its socket has its name a moment later
            return
        assert time.monotonic() < end, balancer.log
        time.sleep(0.02)


class Box:
    """A server that keeps its port over its lives, as the configuration names it."""

    def __init__(self, folder: Path, *flags: str, env: Mapping[str, str] | None = None) -> None:
        folder.mkdir()
        self.folder = folder
        self.port = free_port()
        self._env = env
        self._flags = ("--model", "instant:20", *flags, "--port", str(self.port))
        self._server: Server | None = None

    @property
    def address(self) -> str:
        """`host:port`."""
        return f"127.0.0.1:{self.port}"

    @property
    def server(self) -> Server:
        """The latest life."""
        assert self._server is not None
        return self._server

    def start(self) -> None:
        """Start it; return when it is ready."""
        self._server = start_server(*self._flags, data_dir=self.folder, env=self._env)
        self._server.wait_ready()

    def __enter__(self) -> "Box":
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._server is not None and self._server.process.poll() is None:
            self._server.kill()


@contextlib.contextmanager
def three_boxes(
    folder: Path, *flags: str, env: Mapping[str, str] | None = None, changes: Mapping[str, str] | None = None
) -> Iterator[tuple[list[Box], Balancer]]:
    """Three servers behind a balancer; what a test has ended stays so. `changes`: as of `balancing`."""
    boxes = [Box(folder / f"box{number}", *flags, env=env) for number in range(1, BOXES + 1)]
    with contextlib.ExitStack() as stack:
        with ThreadPoolExecutor(BOXES) as pool:  # together: each takes seconds
            list(pool.map(stack.enter_context, boxes))
        addresses = [box.address for box in boxes]
        yield boxes, stack.enter_context(balancing(folder / "balancer", addresses, changes=changes))
