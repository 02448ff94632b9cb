"""More calls at once than the server takes."""

import asyncio

import fal_client
from kit import APP, INPUT, OPTIONS, say


async def main():
    calls = [fal_client.run_async(APP, INPUT) for _ in range(OPTIONS["calls"])]
    say([result["seed"] for result in await asyncio.gather(*calls)])


asyncio.run(main())
