"""One call that fails, and what the client makes of it."""

import fal_client
from kit import APP, INPUT, OPTIONS, fault, say

calls = {
    "run": lambda: fal_client.run(APP, INPUT),
    "subscribe": lambda: fal_client.subscribe(APP, INPUT),
    "stream": lambda: list(fal_client.stream(APP, INPUT)),
    "status": lambda: fal_client.status(APP, OPTIONS["request_id"]),
    "result": lambda: fal_client.result(APP, OPTIONS["request_id"]),
    "cancel": lambda: fal_client.cancel(APP, OPTIONS["request_id"]),
}
try:
    say({"value": calls[OPTIONS["call"]]()})
except Exception as error:  # noqa: BLE001 — whatever the client raises is what the test is about
    say(fault(error))
