"""Submit, poll, fetch: each call on its own."""

import fal_client
from kit import APP, INPUT, say

handle = fal_client.submit(APP, INPUT)
events = [{"kind": type(event).__name__, **vars(event)} for event in handle.iter_events(with_logs=True)]
say({"handle": {name: getattr(handle, name) for name in ("request_id", "response_url", "status_url", "cancel_url")}})
say({"events": events})
say({"result": handle.get(), "again": handle.get()})
