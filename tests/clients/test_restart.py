"""A server is killed under its clients and started again: what was accepted is finished."""

import socket
import threading

import pytest

from tests.clients.kit import Clients
from tests.harness import start_server


def free_port() -> int:
    """A port that a server can be started on twice."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


@pytest.fixture
def start(tmp_path):
    """Start the server again and again on the same ports and data."""
    ports = ("--port", str(free_port()), "--tls-port", str(free_port()))
    running = []

    def start():
        running.append(start_server("--model", "instant:1000", "--max-batch", "1", *ports, data_dir=tmp_path))
        return running[-1]

    yield start
    running[-1].kill()


def test_a_subscription_survives_the_death_of_the_server(start, picture):
    first = start()
    first.wait_ready()
    clients = Clients(
        {
            "FAL_KEY": "any:thing",
            "FAL_RUN_HOST": f"{first.tls_host}/run",
            "FAL_QUEUE_RUN_HOST": f"{first.tls_host}/queue",
            "SSL_CERT_FILE": str(first.bundle),
            "PICTURE": picture,
        }
    )
    said = []
    subscribing = threading.Thread(target=lambda: said.extend(clients.py("subscribe.py")))
    subscribing.start()
    while not first.get("/health")["queue"]["running"]:
        assert subscribing.is_alive()
    first.kill()

    start()

    subscribing.join()
    assert said[0]["result"]["seed"] == 7
