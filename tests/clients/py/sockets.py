"""What Python may do with a socket beside asking for pictures in turn."""

import json
import time
from pathlib import Path

import fal_client
from kit import APP, INPUT, OPTIONS, say


def outlive_the_token():
    """The token ends; the socket does not."""
    with fal_client.realtime(APP, token_expiration=3) as socket:
        time.sleep(3.1)  # it counts whole seconds, rounded down: two to three
        socket.send({**INPUT, "request_id": "late"})
        return socket.recv()["request_id"]


def wait_for_the_end():
    """Nothing is sent for too long."""
    with fal_client.realtime(APP) as socket:
        socket.send({**INPUT, "request_id": "one"})
        return [socket.recv()["request_id"], socket.recv()]


def drained():
    """Three inputs at once to a server that is told to stop meanwhile."""
    with fal_client.realtime(APP, use_jwt=False) as socket:
        for number in range(3):
            socket.send({**INPUT, "request_id": str(number)})
        received = []
        while (result := socket.recv()) is not None:
            received.append(result["request_id"])
        return received


def raw():
    """`ws_connect`: no suffix, no codec."""
    with fal_client.ws_connect(APP) as socket:
        socket.send(json.dumps({**INPUT, "request_id": "raw"}))
        return json.loads(socket.recv())["request_id"]


def large():
    """A frame of megabytes each way, and a picture by URL."""
    url = fal_client.upload(Path(OPTIONS["picture"]).read_bytes(), "image/jpeg")
    with fal_client.realtime(APP) as socket:
        socket.send({**INPUT, "image_url": url, "sync_mode": True, "num_images": 8})
        linked = socket.recv()
        socket.send({**INPUT, "image_url": linked["images"][0]["url"], "sync_mode": True})
        inline = socket.recv()
    sizes = [len(image["url"]) for image in linked["images"]]
    return {"bytes": sum(sizes), "keys": [type(key).__name__ for key in linked], "again": inline["images"][0]["width"]}


say(globals()[OPTIONS["what"]]())
