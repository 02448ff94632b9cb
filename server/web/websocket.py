"""Constants of the websocket routes."""

# The code of the disconnect by which `server.transport.websocket_protocol` says that the server drains. The route may
# still answer.
DRAINING = 1012

# Seconds until a socket's next input is read after one that was refused: refusing costs the server more than being
# refused costs a client.
REFUSAL_PAUSE_S = 0.1
