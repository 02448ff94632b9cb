"""The asynchronous client, which takes any redirect for an error."""

import asyncio

import fal_client
from kit import APP, INPUT, say


async def main():
    say({"run": await fal_client.run_async(APP, INPUT)})
    say({"subscribe": await fal_client.subscribe_async(APP, INPUT)})
    async with fal_client.realtime_async(APP) as socket:
        await socket.send({**INPUT, "request_id": "one"})
        say({"realtime": await socket.recv()})


asyncio.run(main())
