"""`fourstep` that gets no more memory at one place: `python -m tests.support.exhausted_server PLACE serve …`.

The places, each reached by a client's first run or submit: "run", "job", "write" (on the writer's thread), "callback"
(of the event loop), "task" (which no other awaits), "thread"; and "housekeeping", reached at the heartbeat after it.
"""

import asyncio
import functools
import sys
import threading

from server.app import Parts
from server.generate import generate
from server.jobs.queue import Queue
from server.jobs.sqlite.store import SQLiteStore
from server.jobs.times import QueueTimes
from tests.support.server_process import serve


def exhaust(*_, **__):
    raise MemoryError


async def exhaust_soon():
    exhaust()


class Store(SQLiteStore):
    """A store without memory at the places of its own."""

    place = ""
    is_due = False

    def submit(self, new):
        if self.place == "write":
            return self.database.write(exhaust)
        return super().submit(new)

    def heartbeat(self, running):
        if self.is_due:
            exhaust()
        return super().heartbeat(running)


def main():
    Store.place = place = sys.argv[1]

    async def generate_without(ctx, data, call, on_event=None):
        match place:
            case "callback":
                asyncio.get_running_loop().call_soon(exhaust)
            case "task":
                asyncio.get_running_loop().create_task(exhaust_soon())
            case "thread":
                threading.Thread(target=exhaust, name="helper").start()
            case "housekeeping":
                Store.is_due = True
            case _:
                exhaust()
        return await generate(ctx, data, call, on_event)

    queue = functools.partial(Queue, times=QueueTimes(heartbeat=0.2))
    sys.exit(serve(Parts(generate=generate_without, store=Store, queue=queue), sys.argv[2:]))


if __name__ == "__main__":
    main()
