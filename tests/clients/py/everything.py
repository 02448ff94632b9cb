"""One of each call with the default hosts: run, stream, realtime with a token, and uploads of two sizes."""

import fal_client
from kit import APP, INPUT, say

say({"run": fal_client.run(APP, INPUT)})
say({"stream": list(fal_client.stream(APP, INPUT))})
with fal_client.realtime(APP) as socket:
    socket.send({**INPUT, "request_id": "one"})
    say({"realtime": socket.recv()})
say({"upload": fal_client.upload(b"hello", "text/plain", file_name="../hello.txt")})
