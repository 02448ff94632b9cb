"""A real PostgreSQL for tests: a cluster of its own on /dev/shm or in a temporary folder, on a free port of loopback.

PostgreSQL refuses to run as root, so root starts it as the user of its package. `fsync` and all that makes a commit
durable are as shipped.
"""

import contextlib
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import asyncpg

from tests.support.server_process import free_port

USERS = ("postgres", "nobody")  # who may own the cluster when we are root
STARTED_WITHIN_S = 30.0


def programs() -> Path:
    """Return the folder of the newest PostgreSQL's programs, which packages keep out of the PATH."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[-3]))
    if not found and (here := shutil.which("initdb")):
        found = [Path(here)]
    assert found, "PostgreSQL is not installed: apt-get install postgresql"
    return found[-1].parent


class Cluster:
    """A PostgreSQL server that can be killed and started again on the same data. Superuser `fourstep`, no password."""

    def __init__(self, folder: Path, *settings: str, primary: "Cluster | None" = None) -> None:
        self.folder = folder
        self.port = free_port()
        self.template: str | None = None  # a database that tests copy
        self._settings = settings
        self._postmaster: subprocess.Popen[bytes] | None = None
        self._owner = next((user for user in USERS if _exists(user)), "") if os.getuid() == 0 else ""
        if self._owner:
            shutil.chown(folder, self._owner)
        data = str(folder / "data")
        if primary is None:
            self._run("initdb", "-D", data, "-U", "fourstep", "-A", "trust", "-E", "UTF8", "--locale=C", "--no-sync")
        else:
            self._run("pg_basebackup", "-D", data, "-R", "-c", "fast", "--no-sync", "-d", primary.url())

    def url(self, database: str = "postgres", port: int | None = None) -> str:
        """Return the URL of a database, perhaps by a proxy's port."""
        return f"postgresql://fourstep@127.0.0.1:{port or self.port}/{database}"

    @property
    def pid(self) -> int:
        """Process id of the postmaster."""
        assert self._postmaster is not None
        return self._postmaster.pid

    def start(self) -> None:
        """Start the server and wait until it takes connections."""
        settings = {
            "listen_addresses": "127.0.0.1",
            "port": self.port,
            "unix_socket_directories": self.folder,
            "max_connections": 100,
            "log_min_messages": "fatal",
            "dynamic_shared_memory_type": "mmap",  # the other kinds outlive a kill, and this folder
        }
        flags = [f"-c{name}={value}" for name, value in settings.items()] + [f"-c{each}" for each in self._settings]
        command = self._as_owner(str(programs() / "postgres"), "-D", str(self.folder / "data"), *flags)
        log = (self.folder / "log").open("ab")
        with log:
            self._postmaster = subprocess.Popen(command, stdout=log, stderr=log, cwd=self.folder)
        end = time.monotonic() + STARTED_WITHIN_S
        ready = [str(programs() / "pg_isready"), "-q", "-h", "127.0.0.1", "-p", str(self.port), "-d", "postgres"]
        while subprocess.run(ready, check=False).returncode:
            assert self._postmaster.poll() is None, (self.folder / "log").read_text()
            assert time.monotonic() < end, "PostgreSQL does not start"
            time.sleep(0.02)

    @property
    def running(self) -> bool:
        """Whether it has not ended."""
        return self._postmaster is not None and self._postmaster.poll() is None

    def kill(self) -> None:
        """End the server as a power cut does: the postmaster and every process of it, by SIGKILL."""
        assert self._postmaster is not None
        # Without their postmaster the others end by themselves, but only when they next look for it.
        family = [self.pid, *_children(self.pid)]
        for pid in family:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._postmaster.wait()
        while any(Path(f"/proc/{pid}").exists() for pid in family):
            time.sleep(0.005)
        self._postmaster = None

    def restart(self) -> None:
        """Kill the server and start it again."""
        self.kill()
        self.start()

    def stop(self) -> None:
        """End the server, if it runs."""
        if self._postmaster is not None:
            self._postmaster.send_signal(signal.SIGQUIT)  # "immediate": it lets its shared memory go
            self._postmaster.wait()
            self._postmaster = None

    def freeze(self) -> None:
        """Stop every process of the server: connections stay open and nothing answers, until `thaw`."""
        for pid in [self.pid, *_children(self.pid)]:
            os.kill(pid, signal.SIGSTOP)

    def thaw(self) -> None:
        """Let a frozen server go on."""
        for pid in [self.pid, *_children(self.pid)]:
            os.kill(pid, signal.SIGCONT)

    async def follow_synchronously(self) -> None:
        """Let no commit be answered before a standby has it. To be called once one runs."""
        await self.execute("ALTER SYSTEM SET synchronous_standby_names = '*'", "SELECT pg_reload_conf()")

    async def promote(self) -> None:
        """Make this standby the primary."""
        await self.execute("SELECT pg_promote()")

    async def execute(self, *statements: str, database: str = "postgres") -> None:
        """Execute statements, each in a transaction of its own."""
        connection = await asyncpg.connect(self.url(database))
        for statement in statements:
            await connection.execute(statement)
        await connection.close()

    async def fetch(self, url: str, query: str) -> list[tuple[Any, ...]]:
        """Return the rows of a query."""
        connection = await asyncpg.connect(url)
        rows = [tuple(row) for row in await connection.fetch(query)]
        await connection.close()
        return rows

    async def new_database(self, template: str = "template0") -> str:
        """Create a database and return its name."""
        name = f"test_{uuid.uuid4().hex}"
        await self.execute(f"CREATE DATABASE {name} TEMPLATE {template} STRATEGY wal_log")
        return name

    async def drop(self, database: str) -> None:
        """Remove a database, whoever is connected to it."""
        await self.execute(f"DROP DATABASE {database} WITH (FORCE)")

    def _as_owner(self, *command: str) -> list[str]:
        return ["setpriv", f"--reuid={self._owner}", "--clear-groups", *command] if self._owner else list(command)

    def _run(self, program: str, *arguments: str) -> None:
        command = self._as_owner(str(programs() / program), *arguments)
        subprocess.run(command, check=True, capture_output=True, cwd=self.folder)


@contextlib.contextmanager
def cluster(*settings: str, primary: Cluster | None = None, disk: Path | None = None) -> Iterator[Cluster]:
    """Context of a running PostgreSQL with these settings (`name=value`), in memory where there is room for it.

    With `primary` it is a standby of that one, which runs. `disk`: where its folder is made.
    """
    memory = Path("/dev/shm")
    roomy = memory.is_dir() and shutil.disk_usage(memory).free > 2 * 1024**3
    root = disk or (memory if roomy else None)
    with tempfile.TemporaryDirectory(prefix="fourstep-postgres-", dir=root) as folder:
        made = Cluster(Path(folder), *settings, primary=primary)
        try:
            made.start()
            yield made
        finally:
            made.stop()


def _exists(user: str) -> bool:
    try:
        pwd.getpwnam(user)
    except KeyError:
        return False
    return True


def _children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
