"""R7: good clients beside 300 slow connections and 100 websocket flooders.

    python -m tests.chaos.slow_clients [--rounds 4] [--seconds 6]

Two good clients use run and two realtime; each sends one request after the other with a pause between. They are in this
process; the load (`tests.chaos.slow_load`) is in a process of its own and uses another key. The engine takes 25 ms. The
first three cases take turns; the last runs once, on its own server:

    alone       the good clients without load
    harness     with the load aimed at a process that discards it: the cost of sharing two cores
    attacked    with the load aimed at the server: p99 must stay under twice that of `alone`
    control     two protections less: the load has the good clients' key, and frames of websockets are not limited; p99
                must be twice that of `alone` or more

Prints a table; the last line is JSON; exits 1 if a bound does not hold.
"""

import argparse
import asyncio
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import msgspec
from websockets.asyncio.client import connect

from server.cli.launcher import running
from tests.fuzz.values import data_uri_of, pictures
from tests.support.server_process import APP, clean_env

MODEL = "instant+jpeg:25"
GOOD, BAD = "good:a", "bad:b"
PAUSE_S = 0.05
SETTLE_S = 4.0  # until all clients are connected
UNLIMITED = ("--max-frame-rate", "1000000000")

SINK = """
import asyncio, sys
async def serve(reader, writer):
    try:
        if (await reader.readline()).endswith(b'realtime HTTP/1.1\\r\\n'):
            await reader.readuntil(b'\\r\\n\\r\\n')
            writer.write(b'HTTP/1.1 101 Switching Protocols\\r\\n\\r\\n')
        while await reader.read(1 << 18):
            pass
    except Exception:
        pass
    finally:
        writer.transport.abort()
async def main():
    server = await asyncio.start_server(serve, '127.0.0.1', 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()
asyncio.run(main())
"""


@contextlib.contextmanager
def loaded(url, tls_url="", key=BAD):
    """Run the slow clients and flooders, all connected. Without a `tls_url` the target answers nothing."""
    command = [sys.executable, "-m", "tests.chaos.slow_load", url, tls_url, key]
    with subprocess.Popen(command, stdin=subprocess.PIPE) as load:
        try:
            time.sleep(SETTLE_S)
            yield
        finally:
            load.stdin.close()


@contextlib.contextmanager
def sink():
    """Yield the URL of a process that discards all it receives."""
    with subprocess.Popen([sys.executable, "-c", SINK], stdout=subprocess.PIPE, text=True) as process:
        try:
            yield f"http://127.0.0.1:{process.stdout.readline().strip()}"
        finally:
            process.kill()


@contextlib.contextmanager
def served(*flags):
    """Yield a server with two keys."""
    with tempfile.TemporaryDirectory(prefix="fourstep-slow-") as folder:
        log = Path(folder) / "log"
        env = clean_env({"FOURSTEP_KEYS": f"{GOOD},{BAD}"})
        with (
            log.open("wb") as sink_,
            running(Path(folder), "--model", MODEL, "--tls-port", "0", *flags, env=env, log=sink_) as server,
        ):
            yield server


# --- the good clients


async def good_clients(server, seconds):
    """Return the milliseconds of each answer, by endpoint."""
    until = time.perf_counter() + seconds
    walls = {"run": [], "realtime": []}
    async with asyncio.TaskGroup() as group:
        for _ in range(2):
            group.create_task(runs(server, until, walls["run"]))
            group.create_task(realtime(server, until, walls["realtime"]))
    return walls


def arguments():
    return {"prompt": "p", "image_url": data_uri_of(pictures()["jpeg"]), "seed": 1, "sync_mode": True}


async def runs(server, until, walls):
    body = json.dumps(arguments()).encode()
    names = {"Host": server.host, "Authorization": f"Key {GOOD}", "Content-Length": len(body)}
    head = "".join(f"{name}: {value}\r\n" for name, value in names.items())
    reader, writer = await asyncio.open_connection("127.0.0.1", int(server.host.rpartition(":")[2]))
    while time.perf_counter() < until:
        await asyncio.sleep(PAUSE_S)
        began = time.perf_counter()
        writer.write(f"POST /run/{APP} HTTP/1.1\r\n{head}\r\n".encode() + body)
        answer = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
        assert answer.startswith("http/1.1 200"), answer
        await reader.readexactly(int(answer.partition("content-length: ")[2].partition("\r\n")[0]))
        walls.append((time.perf_counter() - began) * 1e3)
    writer.transport.abort()


async def realtime(server, until, walls):
    body = msgspec.msgpack.encode(arguments())
    headers = {"Authorization": f"Key {GOOD}"}
    async with connect(
        f"ws://{server.host}/run/{APP}/realtime", additional_headers=headers, compression=None
    ) as socket:
        while time.perf_counter() < until:
            await asyncio.sleep(PAUSE_S)
            began = time.perf_counter()
            await socket.send(body)
            answer = await socket.recv()
            assert isinstance(answer, bytes), answer
            walls.append((time.perf_counter() - began) * 1e3)


def quantile(values, q):
    ordered = sorted(values)
    return round(ordered[min(len(ordered) - 1, int(q * len(ordered)))], 1)


def measured(rounds, seconds):
    """Return milliseconds by case and endpoint."""
    walls = {case: {"run": [], "realtime": []} for case in ("alone", "harness", "attacked", "control")}

    def take(case, server):
        for endpoint, values in asyncio.run(good_clients(server, seconds)).items():
            walls[case][endpoint] += values

    with served() as server, sink() as sink_url:
        take("alone", server)
        walls["alone"] = {"run": [], "realtime": []}  # the first was to warm up
        for _ in range(rounds):
            take("alone", server)
            with loaded(sink_url):
                take("harness", server)
            with loaded(server.url, server.tls_url):
                take("attacked", server)
    with served(*UNLIMITED) as server, loaded(server.url, server.tls_url, GOOD):
        take("control", server)
    return walls


def main():
    """Measure all cases, print a table and judge it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--seconds", type=float, default=6)
    asked = parser.parse_args()
    load = os.getloadavg()[0]
    walls = measured(asked.rounds, asked.seconds)
    report, held = {}, True
    print(f"{'':<10}{'endpoint':<10}{'answers':>8}{'p50':>8}{'p99':>8}   p99 / alone")
    for case, endpoints in walls.items():
        for endpoint, values in endpoints.items():
            row = {"answers": len(values), "p50": quantile(values, 0.5), "p99": quantile(values, 0.99)}
            row["ratio"] = round(row["p99"] / quantile(walls["alone"][endpoint], 0.99), 2)
            good = {"attacked": row["ratio"] < 2, "control": row["ratio"] >= 2}.get(case, True)
            held = held and good
            report.setdefault(case, {})[endpoint] = row
            shown = f"{row['answers']:>8}{row['p50']:>8}{row['p99']:>8}{row['ratio']:>8}"
            print(f"{case:<10}{endpoint:<10}{shown}{'' if good else '   BROKEN'}")
    print(json.dumps({"benchmark": "slow_clients", "load_before": round(load, 1), "held": held, "ms": report}))
    sys.exit(0 if held else 1)


if __name__ == "__main__":
    main()
