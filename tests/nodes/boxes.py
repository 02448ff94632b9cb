"""In place of `fourstep serve`: three servers on one PostgreSQL behind HAProxy, which tests take for one server.

    python -m tests.nodes.boxes DATABASE serve --data-dir DIR --port 0 --model instant …

`DATABASE`: a URL of PostgreSQL's, in which each run makes a database of its own. The flags of ports are HAProxy's, all
others those of each server; the engine without a model takes three times as long, so that the three do as much as one.
HAProxy gives each call to the next server, so that what one call leaves is asked for at another. `DIR` has what one
server's folder has: the run file, here also with the address of each server, and the certificates.
"""

import asyncio
import contextlib
import json
import os
import re
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import asyncpg

from server.cli.launcher import RUN_FILE
from tests.nodes.fleet import Fleet, fleet
from tests.support.haproxy import BOXES, balancing
from tests.support.postgres import Cluster
from tests.support.server_process import PROGRAM

# In turn, also where some have more calls than others; and the addresses of clients as HAProxy saw them.
IN_TURN = {"balance leastconn": "balance roundrobin"}
FLAGS = ("--trusted-proxies", "127.0.0.1", "--lameduck", "0")
HTTPS = 443


@contextlib.contextmanager
def taken_for_one(database: Cluster) -> Iterator[None]:
    """Context in which each server that a test starts is three, on databases of their own in this cluster."""
    before = PROGRAM[:]
    # Its socket, not a port: that is in the file system, also for a sandbox with a loopback of its own.
    url = f"postgresql://fourstep@/postgres?host={database.folder}&port={database.port}"
    PROGRAM[:] = [sys.executable, "-m", "tests.nodes.boxes", url]
    try:
        yield
    finally:
        PROGRAM[:] = before


def taken(flags: list[str], name: str, otherwise: str = "") -> str:
    """Remove a flag, wherever it is, and return its last value."""
    value = otherwise
    while name in flags:
        at = flags.index(name)
        value = flags[at + 1]
        del flags[at : at + 2]
    return value


def https_port(flags: list[str]) -> int:
    """Remove the flags of https; return the port that they name, 0 for a free one."""
    if "--takeover" in flags:
        flags.remove("--takeover")
        taken(flags, "--tls-port")
        return HTTPS
    return int(taken(flags, "--tls-port", "0"))


def slowed(flag: str) -> str:
    """Return `instant:MS` with three times as many milliseconds, and any other flag as it is."""
    return re.sub(r"^(instant\S*:)(\d+)$", lambda match: f"{match[1]}{int(match[2]) * BOXES}", flag)


async def new_database(url: str) -> str:
    """Return the URL of a new database beside the one that `url` names."""
    name = f"boxes_{os.getpid()}_{int.from_bytes(os.urandom(4))}"
    connection = await asyncpg.connect(url)
    await connection.execute(f"CREATE DATABASE {name}")
    await connection.close()
    return url.replace("/postgres?", f"/{name}?")


def stop_together(servers: Fleet) -> None:
    """Stop the servers as SIGTERM does, and wait for all."""
    for server in servers.servers.values():
        server.process.terminate()
    for server in servers.servers.values():
        server.process.wait()


def main(argv: list[str]) -> None:
    """Serve until SIGTERM."""
    database, _, *flags = map(slowed, argv)
    folder = Path(taken(flags, "--data-dir"))
    http, https = int(taken(flags, "--port")), https_port(flags)
    ours = {name: value for name, value in os.environ.items() if name.startswith("FOURSTEP_")}
    url = asyncio.run(new_database(database))
    run_file = folder / RUN_FILE
    with fleet(folder, url, BOXES, *flags, *FLAGS, own=dict.fromkeys(range(1, BOXES + 1), ours)) as servers:
        addresses = [server.host for server in servers.servers.values()]
        with balancing(folder, addresses, changes=IN_TURN, http=http, https=https) as balancer:
            bound = {"pid": os.getpid(), "url": balancer.url, "tls_url": balancer.tls_url}
            bound["boxes"] = [server.url for server in servers.servers.values()]
            run_file.with_suffix(".new").write_text(json.dumps(bound))
            run_file.with_suffix(".new").rename(run_file)
            try:
                signal.pause()
            finally:
                run_file.unlink()
                stop_together(servers)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    main(sys.argv[1:])
