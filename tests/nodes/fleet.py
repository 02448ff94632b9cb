"""Several real servers on one PostgreSQL and one folder of files, on loopback."""

import contextlib
import json
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from server.cli.launcher import Server
from tests.support.postgres import Cluster
from tests.support.server_process import APP, CALL, STARTED_WITHIN_S, clean_env, start_server, until

QUEUE = f"/queue/{APP}"

# A server is killed when what has started it is.
_WITH_US = ("setpriv", "--pdeathsig", "KILL", str(Path(sys.executable).with_name("fourstep")))


class Answer(NamedTuple):
    """An answer's status, JSON and headers."""

    status: int
    body: Any
    headers: Any


class Fleet:
    """Servers by number. `flags`: of all; `url`: of the database, perhaps by a proxy; `own`: variables of one."""

    def __init__(self, folder: Path, url: str, flags: Sequence[str], own: Mapping[int, Mapping[str, str]]) -> None:
        self.folder = folder
        self.url = url
        self.flags = flags
        self.own = own
        self.servers: dict[int, Server] = {}
        (folder / "shared").mkdir(exist_ok=True)

    @property
    def env(self) -> dict[str, str]:
        """The environment of servers and commands."""
        return {"FOURSTEP_DATABASE": self.url, "FOURSTEP_FILES": f"file://{self.folder / 'shared'}"}

    def data_dir(self, number: int) -> Path:
        """Return a server's data folder."""
        return self.folder / f"box{number}"

    def start(self, number: int, *flags: str, ready: bool = True, release: Path | None = None) -> Server:
        """Start a server, or start it again. `release`: folder of another release's files."""
        where = self.data_dir(number)
        where.mkdir(exist_ok=True)
        names = ("--node", f"box{number}")
        env = self.env | of_release(release) | self.own.get(number, {})
        server = start_server(*self.flags, *names, *flags, data_dir=where, env=env, program=_WITH_US)
        self.servers[number] = server
        if ready:
            until(lambda: server.get("/health")["state"] in {"READY", "BUSY"}, STARTED_WITHIN_S)
        return server

    def ask(
        self,
        number: int,
        path: str,
        body: Any = None,
        method: str = "",
        key: str = "",
        *,
        headers: Mapping[str, str] | None = None,
    ) -> Answer:
        """Return what a server answers. `body`: bytes as they are, anything else as JSON."""
        data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        headers = {
            "Content-Type": "application/json",
            **({"Authorization": f"Key {key}"} if key else {}),
            **(headers or {}),
        }
        url = path if path.startswith("http") else self.servers[number].url + path
        request = urllib.request.Request(url, data, headers, method=method or None)
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                return _answer(answer)
        except urllib.error.HTTPError as error:
            with error:
                return _answer(error)

    def submit(self, number: int, *, key: str = "", **changes: Any) -> str:
        """Submit a job to a server; return its path."""
        answer = self.ask(number, QUEUE, CALL | {"sync_mode": False} | changes, key=key)
        assert answer.status == 200, answer
        return f"{QUEUE}/requests/{answer.body['request_id']}"

    def status(self, number: int, path: str) -> Any:
        """Return what a server says of a job."""
        return self.ask(number, f"{path}/status?logs=1").body

    def completed(self, number: int, path: str, timeout: float = 60) -> None:
        """Wait until a server says that a job has ended."""
        until(lambda: self.status(number, path)["status"] == "COMPLETED", timeout)

    def close(self) -> None:
        """End every server at once."""
        for server in self.servers.values():
            server.process.kill()
            server.process.wait()


def _answer(answer: Any) -> Answer:
    data = answer.read()
    is_json = "json" in answer.headers.get("content-type", "")
    return Answer(answer.status, json.loads(data) if is_json else data, answer.headers)


@contextlib.contextmanager
def fleet(
    folder: Path, url: str, count: int, *flags: str, own: Mapping[int, Mapping[str, str]] | None = None
) -> Iterator[Fleet]:
    """Context of so many running servers, to which a test may add others. `own`: as of `Fleet`."""
    servers = Fleet(folder, url, flags, own or {})
    # Together: each takes seconds. The threads stay, since what one has started ends with it.
    with ThreadPoolExecutor(max(1, count)) as pool:
        try:
            list(pool.map(servers.start, range(1, count + 1)))
            yield servers
        finally:
            servers.close()


def of_release(files: Path | None) -> dict[str, str]:
    """Return the variables with which a program is of another release; of this one without."""
    return {"PYTHONPATH": str(files)} if files else {}


def environment(servers: Fleet, release: Path | None = None) -> dict[str, str]:
    """Return the whole environment of a command beside the servers."""
    return clean_env(servers.env | of_release(release))


__all__ = ["QUEUE", "Answer", "Cluster", "Fleet", "environment", "fleet", "of_release"]
