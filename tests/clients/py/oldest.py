"""fal-client 0.1.0: run, submit, stream, upload."""

import fal_client
from kit import APP, INPUT, say

say({"run": fal_client.run(APP, INPUT)})
handle = fal_client.submit(APP, INPUT)
say({"result": handle.get(), "request_id": handle.request_id})
say({"stream": list(fal_client.stream(APP, INPUT))})
say({"upload": fal_client.sync_client.upload(b"hello", "text/plain")})
