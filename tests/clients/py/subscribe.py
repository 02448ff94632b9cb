import fal_client
from kit import APP, INPUT, OPTIONS, say

updates = []
result = fal_client.subscribe(
    APP,
    INPUT,
    with_logs=True,
    on_queue_update=lambda update: updates.append({"kind": type(update).__name__, **vars(update)}),
    client_timeout=OPTIONS.get("client_timeout"),
)
say({"result": result, "updates": updates})
