"""The client's own patience with a request that does not start or end in time."""

import os
import threading

import fal_client
from kit import APP, INPUT, OPTIONS, fault, say

ids = []
calls = {
    "run": lambda: fal_client.run(APP, INPUT, start_timeout=1.1),
    "subscribe": lambda: fal_client.subscribe(APP, INPUT, client_timeout=1.2, on_enqueue=ids.append),
}
# Runs go before jobs: only other runs are in the way of a run. Once one is through, the others have arrived.
one_done = threading.Event()
for _ in range(OPTIONS["behind"]):
    threading.Thread(target=lambda: (fal_client.run(APP, INPUT), one_done.set()), daemon=True).start()
one_done.wait()
said = {"error": None}
try:
    calls[OPTIONS["call"]]()
except Exception as error:  # noqa: BLE001 — whatever the client raises is what the test is about
    said["error"] = fault(error)
for request_id in ids:  # of several servers another hears of the cancel a little later
    while not isinstance(status := fal_client.status(APP, request_id), fal_client.Completed):
        pass
    said["status"] = vars(status)
say(said)
os._exit(0)  # the others are left to themselves
