import fal_client
from fal_client.client import RealtimeError
from kit import APP, INPUT, OPTIONS, fault, say

results, errors = [], []
with fal_client.realtime(
    APP, use_jwt=OPTIONS.get("use_jwt", True), max_buffering=OPTIONS.get("max_buffering")
) as socket:
    for changes in OPTIONS.get("inputs", [{"request_id": "one"}, {"request_id": "two"}]):
        socket.send({**INPUT, "sync_mode": True, **changes})
        try:
            results.append(socket.recv())
        except RealtimeError as error:
            errors.append(fault(error))
say({"results": results, "errors": errors})
