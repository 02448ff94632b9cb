"""The client inside the `fal` SDK: run, stream, realtime and HTTP over websocket."""

import json

import fal.apps
from kit import APP, INPUT, say

say({"run": fal.apps.run(APP, INPUT)})
handle = fal.apps.submit(APP, INPUT)
handle.get()
say({"status": type(handle.status(logs=True)).__name__})
lines = [line for line in fal.apps.stream(APP, INPUT, path="/stream") if line.startswith("data:")]
say({"stream": [json.loads(line.removeprefix("data:")) for line in lines]})
with fal.apps._connect(APP) as connection:
    say({"realtime": connection.run({**INPUT, "request_id": "one"})})
with fal.apps.ws(APP) as connection:
    say({"ws": json.loads(connection.run({**INPUT, "request_id": "two"}))})
