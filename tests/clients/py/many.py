"""The same call again and again; how each ended."""

import time

import fal_client
from kit import APP, INPUT, OPTIONS, say

calls = {"run": fal_client.run, "subscribe": fal_client.subscribe, "stream": lambda *a: list(fal_client.stream(*a))}
ended = []
for _ in range(OPTIONS["times"]):
    began = time.perf_counter()
    try:
        calls[OPTIONS["call"]](APP, INPUT)
        outcome = "ok"
    except Exception as error:  # noqa: BLE001 — whatever the client raises is what the test is about
        outcome = type(error).__name__
    ended.append({"outcome": outcome, "ms": 1000 * (time.perf_counter() - began)})
say(ended)
