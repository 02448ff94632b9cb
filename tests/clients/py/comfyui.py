"""The calls of ComfyUI's nodes for fal, in their order and with their libraries: fal_client and requests."""

import asyncio
import base64
import os
import tempfile

import fal_client
import requests
from fal_client.client import SyncClient
from kit import APP, INPUT, say

KEY = os.environ["FAL_KEY"]


async def variations(arguments, count):
    """The same input with one seed after another, all at once."""
    client = fal_client.AsyncClient(key=KEY)

    async def one(seed):
        handle = await client.submit(APP, arguments={**arguments, "seed": seed})
        async for status in handle.iter_events(with_logs=True):
            last = status
        assert last.error is None
        return (await handle.get())["seed"]

    return await asyncio.gather(*map(one, range(count)))


client = SyncClient(key=KEY)
with tempfile.NamedTemporaryFile(suffix=".png") as file:
    file.write(base64.b64decode(INPUT["image_url"].partition(",")[2]))
    file.flush()
    arguments = {**INPUT, "image_url": client.upload_file(file.name)}

ids, updates = [], []
result = client.subscribe(
    APP, arguments=arguments, with_logs=True, on_enqueue=ids.append, on_queue_update=updates.append
)
picture = requests.get(result["images"][0]["url"], timeout=(10, 180))
picture.raise_for_status()

handle = client.get_handle(APP, ids[0])
events = [type(event).__name__ for event in handle.iter_events(with_logs=False, interval=0.05)]
say(
    {
        "updates": [type(update).__name__ for update in updates],
        "type": picture.headers["content-type"],
        "recovered": [events[-1], handle.get() == result],
        "seeds": asyncio.run(variations(arguments, 3)),
    }
)
