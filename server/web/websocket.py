"""Constants of the websocket routes."""

# Code of the disconnect which a websocket route receives when the server drains. The route may still answer.
DRAINING = 1012

# Seconds until a socket's next input is read after a refused one: a refusal costs the server more than the client.
REFUSAL_PAUSE_S = 0.1
