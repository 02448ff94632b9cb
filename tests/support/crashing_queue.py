"""A server's queue in a process of its own, to be killed at any moment. Reports what it does through a pipe:

    ("accepted", id, seed)     a submit was answered
    ("ran", id, "")            a run began
    ("result", id, token)      the owner was given this result
    ("delivered", id, token)   the webhook's receiver was given this one
    ("drained", "", "")        nothing is left to do

Each run makes a token of its own, beginning with the seed: two tokens for one id are two results.
"""

import asyncio
import json
import uuid
from collections.abc import Mapping, Sequence
from multiprocessing.connection import Connection
from pathlib import Path

from pipelines.messages import Started
from server.jobs.job import NewJob
from server.jobs.sqlite.database import Database
from server.jobs.sqlite.store import SQLiteStore
from server.settings import Settings
from server.webhooks.delivery import Deliverer
from server.webhooks.signing_keys import SigningKeys
from tests.jobs.queues import outbox_of, queue_on

CLIENTS = 8


def serve(folder: Path, pipe: Connection, known: Sequence[str], submits: bool) -> None:  # noqa: FBT001
    """Ask for the results of the `known` jobs; with `submits` go on until killed, else until all jobs are done."""
    asyncio.run(_serve(folder, pipe, known, submits=submits))


async def _serve(folder: Path, pipe: Connection, known: Sequence[str], *, submits: bool) -> None:
    async def run(job, on_event):
        pipe.send(("ran", job.id, ""))
        on_event(Started(job.id))
        await asyncio.sleep(0.002)
        return {"token": f"{json.loads(job.input)['seed']} {uuid.uuid4().hex}"}

    async def post(url: str, body: bytes, headers: Mapping[str, str], timeout: float, *, tenant: str) -> int:  # noqa: ASYNC109
        content = json.loads(body)
        pipe.send(("delivered", content["request_id"], content["payload"]["token"]))
        return 200

    async def wait_event(request_id: str) -> None:
        async for _ in queue.watch(request_id):
            pass
        pipe.send(("result", request_id, json.loads((await queue.result(request_id)).body)["token"]))

    async def client() -> None:
        while True:
            seed = uuid.uuid4().hex
            new = NewJob(app="fal-ai/x", input=json.dumps({"seed": seed}).encode(), webhook="http://receiver/hook")
            await queue.submit(new)
            pipe.send(("accepted", new.id, seed))
            await wait_event(new.id)

    store = SQLiteStore(Database(folder / "jobs.sqlite"))
    outbox = outbox_of(store)
    queue = queue_on(store, run, capacity=lambda: 4, settings=Settings(data_dir=folder), key_share=0.5)
    deliverer = Deliverer(queue, outbox, SigningKeys(folder / "keys.json"), post)
    await queue.start()
    await deliverer.start()
    clients = [client() for _ in range(CLIENTS if submits else 0)]
    await asyncio.gather(*map(wait_event, known), *clients)
    while await outbox.next_due_in() is not None:  # noqa: ASYNC110
        await asyncio.sleep(0.01)
    pipe.send(("drained", "", ""))
    await deliverer.close()
    await queue.close()
    await store.close()
