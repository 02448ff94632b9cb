"""Cancel, and everything that a client may ask afterwards."""

import fal_client
from kit import APP, INPUT, OPTIONS, fault, say

before = [fal_client.submit(APP, INPUT) for _ in range(OPTIONS.get("behind", 0))]
handle = fal_client.submit(APP, INPUT)
while (was := type(handle.status()).__name__) == "Queued" and OPTIONS.get("when_running"):
    pass
handle.cancel()
for other in before:
    other.cancel()
while not isinstance(status := handle.status(with_logs=True), fal_client.Completed):
    pass
said = {"was": was, "status": vars(status)}
for name, call in {"result": handle.get, "second": handle.cancel}.items():
    try:
        said[name] = call()
    except fal_client.FalClientHTTPError as error:
        said[name] = fault(error)
say(said)
