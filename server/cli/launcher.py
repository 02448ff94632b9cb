"""Starts a server as a child process and waits until it answers: for `fourstep demo`, benchmarks and tests.

A serving process writes `<data-dir>/server.json` (`pid`, `url`, `tls_url`) once its sockets are bound, and removes it
when it stops: that is how ports picked with `--port 0` are found.
"""

import contextlib
import dataclasses
import json
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

RUN_FILE = "server.json"
_POLL_S = 0.05


class LaunchError(RuntimeError):
    """The server did not start; the message has its own."""


@dataclasses.dataclass(frozen=True)
class Server:
    """A running server process. `url` and `tls_url` have no trailing slash; `tls_url` is "" without `--tls-port`."""

    process: subprocess.Popen[bytes]
    data_dir: Path
    url: str
    tls_url: str

    @property
    def pid(self) -> int:
        """Process id of the API process."""
        return self.process.pid

    @property
    def ca(self) -> Path:
        """The local CA's certificate."""
        return self.data_dir / "tls" / "ca.pem"

    @property
    def bundle(self) -> Path:
        """The local CA and the public roots."""
        return self.data_dir / "tls" / "bundle.pem"

    @property
    def host(self) -> str:
        """`host:port` of the plain HTTP port."""
        return self.url.partition("://")[2]

    @property
    def tls_host(self) -> str:
        """`host:port` of the https port, under a name that its certificate carries."""
        return self.tls_url.partition("://")[2]

    def get(self, path: str, timeout: float = 10) -> Any:
        """Return the JSON that `GET path` answers, over plain HTTP."""
        with urllib.request.urlopen(self.url + path, timeout=timeout) as answer:  # noqa: S310 — our own server
            return json.load(answer)

    def wait_ready(self, timeout: float = 120, show: Callable[[str], None] | None = None) -> None:
        """Return once the model has been loaded. Raises `LaunchError` if it can't be, or not in `timeout` seconds."""
        end = time.monotonic() + timeout
        said = ""
        while time.monotonic() < end:
            health = self.get("/health")
            detail = str(health.get("detail", ""))
            if health["state"] in {"READY", "BUSY", "UNLOADED"}:
                return
            if health["state"] in {"SETUP_FAILED", "DEFUNCT"}:
                raise LaunchError(f"{health['state']}: {detail}")
            if show and detail != said:
                show(detail)
                said = detail
            time.sleep(_POLL_S)
        raise LaunchError(f"not ready within {timeout:.0f} s: {said}")

    def stop(self, timeout: float = 20) -> int:
        """Send SIGTERM, wait, return the exit status; SIGKILL after `timeout` seconds."""
        self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            self.kill()
            raise

    def kill(self) -> None:
        """Send SIGKILL, and reap."""
        self.process.kill()
        self.process.wait()


def start(
    data_dir: Path,
    *flags: str,
    env: Mapping[str, str] | None = None,
    log: IO[bytes] | None = None,
    timeout: float = 30,
    program: Sequence[str] = (),
) -> Server:
    """Start `fourstep serve` on free ports and return once it answers HTTP (the model may still be loading).

    `env` replaces the environment. Its log goes to `log`, else to this process's stderr. `program`: what is started in
    place of `fourstep`, with the same arguments.
    """
    run_file = data_dir / RUN_FILE
    run_file.unlink(missing_ok=True)
    program = program or (str(Path(sys.executable).with_name("fourstep")),)
    command = [*program, "serve", "--data-dir", str(data_dir), "--port", "0"]
    process = subprocess.Popen([*command, *flags], stdin=subprocess.DEVNULL, stderr=log, env=env)
    end = time.monotonic() + timeout
    while time.monotonic() < end and process.poll() is None:
        if run_file.exists():
            bound = json.loads(run_file.read_text())
            return Server(process, data_dir, bound["url"], bound["tls_url"])
        time.sleep(_POLL_S)
    process.kill()
    raise LaunchError(f"`{' '.join(command)}` did not start: exit status {process.wait()}")


@contextlib.contextmanager
def running(data_dir: Path, *flags: str, ready: bool = True, **options: Any) -> Iterator[Server]:
    """Run a server for the length of a `with` block, and stop it unless it has ended already."""
    server = start(data_dir, *flags, **options)
    try:
        if ready:
            server.wait_ready()
        yield server
    finally:
        if server.process.poll() is None:
            server.stop()
