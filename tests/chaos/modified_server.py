"""`fourstep` with shorter waits, or with one promise broken: the server of the chaos tests.

    python -m tests.chaos.modified_server '{"patience_s": 3}' serve --model instant …

The first argument is a JSON object of the differences; all else is the server as it ships.

    patience_s          seconds that an engine may be silent
    faulty              engines that do what the prompt says: see tests/support/faulty_engine.py
    webhook_scale       what the waits between a webhook's attempts are multiplied with
    webhook_timeout_s   seconds that a receiver may take
    webhook_lease_s     seconds after which another server sends what one has taken, of several
    lease_s             seconds after which a silent server has lost its jobs
    heartbeat_s         seconds between its signs of life
    one_pool            control: large pictures are decoded on the threads of all others
    one_try             control: what an engine ended on is not run again
    no_retries          control: a webhook is tried once
    lets_go_first       control: leases that have run out are given up before they are renewed
    hasty               control: a submit is answered before the job is on disk
    twice               control: every twentieth run is done twice
    silent_names        seconds for which looking up a name that ends in `.never.test` blocks
    shared_lookups      control: all look-ups share four threads
    endings_stay        control: who was answered or closed stays until its peer ends; probes have no room of their own
    one_owner           control: all stored files count for one owner
    shared_decoder      control: data URIs are decoded on the threads that store files, in one go
    no_shares           control: connections and status streams have no limit for one key
    broken_promise      control, of one of several servers: see tests/chaos/modified_fleet.py
"""

import asyncio
import base64
import dataclasses
import functools
import itertools
import json
import socket
import sys
import threading
import time
from pathlib import Path
from urllib.parse import unquote_to_bytes

from typing_extensions import override

from server.access.limits import Limits
from server.app import Parts
from server.fal import data_uri
from server.generate import generate
from server.inputs import DataUris, Inputs
from server.jobs.job import Snapshot
from server.jobs.queue import Queue
from server.jobs.sqlite import statements
from server.jobs.sqlite.store import LEASE_S, SQLiteStore
from server.jobs.store import Held
from server.jobs.times import QueueTimes
from server.outbound.fetch import Fetch
from server.outbound.slots import resolve
from server.storage.files import Files
from server.storage.names import COMMON, Names
from server.transport.room import Rank, Room
from server.webhooks import delivery
from server.workers import pool as workers
from tests.support.server_process import serve

FAULTY_ENGINE = Path(__file__).parents[1] / "support" / "faulty_engine.py"
ONE_POOL_ENGINE = FAULTY_ENGINE.with_name("one_pool_engine.py")
HASTE_S = 0.2


class Hasty(SQLiteStore):
    """Answers that a job is stored a moment before it is."""

    _seqs = itertools.count(1)

    @override
    def submit(self, new):
        loop = asyncio.get_running_loop()
        loop.call_later(HASTE_S, super().submit, new)
        answer = loop.create_future()
        answer.set_result(Snapshot.accepted(new, next(self._seqs), self.clock()))
        return answer


class LetsGo(SQLiteStore):
    """Takes its own leases for lapsed, when it has only been frozen: releases before it renews."""

    @override
    async def heartbeat(self, running):
        now = {"now": self.clock()}
        lapsed = await self.database.write(lambda on: list(on.execute(statements.RELEASE_LAPSED, now).scalars()))
        held = await super().heartbeat(running)
        return Held(held.fences, [*lapsed, *held.requeued])


class SharedDecoder(DataUris):
    """Decodes on the loop's default threads, escape by escape."""

    @override
    async def decode(self, uri, max_bytes, *, tenant):
        return await asyncio.to_thread(_decoded_slowly, uri, max_bytes)


def _decoded_slowly(uri, max_bytes):
    head, _, text = uri.partition(",")
    is_base64 = head.endswith(";base64")
    plain = text if is_base64 else base64.b64encode(unquote_to_bytes(text)).decode()
    return data_uri.decode(f"data:;base64,{plain}", max_bytes)


def resolver(silent_s, *, shared):
    """Return what looks names up."""
    threads = threading.Semaphore(4 if shared else 1 << 20)

    def look_up(host, port):
        with threads:
            if not host.endswith(".never.test"):
                return resolve(host, port)
            time.sleep(silent_s)
            raise socket.gaierror(socket.EAI_AGAIN, "no answer")

    return look_up


class EndingsStay(Room):
    """Lets those stay of whom the rest of a request, or the answer to a Close, does not come."""

    def __init__(self, places):
        super().__init__(places, for_probes=0, for_newcomers=0, linger_s=60)

    @override
    def idle(self, connection, rank):
        if rank is not Rank.ENDING:
            super().idle(connection, rank)


class NoShares(Limits):
    """Counts neither the connections of a key nor status streams."""

    @override
    def connection(self, connection, caller):
        pass

    @override
    def status_stream(self, connection, caller):
        pass


class OneOwner(Names):
    """Knows no owner of any file."""

    @override
    def account(self, name):
        return COMMON


def twice():
    """Return the use case of a server that does every twentieth run twice."""
    numbers = itertools.count()

    async def generate_twice(ctx, data, call, on_event=None):
        if next(numbers) % 20 == 0:
            await generate(ctx, data, dataclasses.replace(call, id=f"{call.id}-again"))
        return await generate(ctx, data, call, on_event)

    return generate_twice


def main():
    """Apply the differences, then run the command."""
    asked = json.loads(sys.argv[1])
    pool = {"patience_s": asked["patience_s"]} if "patience_s" in asked else {}
    if asked.get("faulty"):
        pool["command"] = (sys.executable, "-P", str(FAULTY_ENGINE))
    if asked.get("one_pool"):
        pool["command"] = (sys.executable, "-P", str(ONE_POOL_ENGINE))
    if asked.get("broken_promise") or "webhook_lease_s" in asked:
        from tests.chaos import modified_fleet  # an extra

        modified_fleet.modify(asked.get("broken_promise"), asked.get("webhook_lease_s"))
    times = {"heartbeat": asked["heartbeat_s"]} if "heartbeat_s" in asked else {}
    store = Hasty if asked.get("hasty") else LetsGo if asked.get("lets_go_first") else SQLiteStore
    retries = {"retries": 0} if asked.get("no_retries") else {}
    spread_s = asked.get("webhook_scale", 1.0) * delivery.RetrySchedule.spread_s
    if asked.get("one_try"):
        pool["reruns"] = workers.RerunLimits(tries=1)
    parts = Parts(
        pool=functools.partial(workers.Pool, **pool),
        fetch=functools.partial(
            Fetch, resolver=resolver(asked.get("silent_names", 0.0), shared=asked.get("shared_lookups", False))
        ),
        files=functools.partial(Files, names=OneOwner if asked.get("one_owner") else Names),
        inputs=functools.partial(Inputs, data_uris=SharedDecoder() if asked.get("shared_decoder") else DataUris()),
        limits=NoShares if asked.get("no_shares") else Limits,
        store=functools.partial(store, lease_s=asked.get("lease_s", LEASE_S)),
        queue=functools.partial(Queue, times=QueueTimes(**times)),
        deliverer=functools.partial(
            delivery.Deliverer,
            schedule=delivery.RetrySchedule(**retries, spread_s=spread_s),
            timeout_s=asked.get("webhook_timeout_s", delivery.TIMEOUT_S),
        ),
        room=EndingsStay if asked.get("endings_stay") else Room,
        generate=twice() if asked.get("twice") else generate,
    )
    sys.exit(serve(parts, sys.argv[2:]))


if __name__ == "__main__":
    main()
