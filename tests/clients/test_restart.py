"""A server is killed under its clients and started again: what was accepted is finished."""

import threading

import pytest

from tests.clients.conftest import by_environment, count
from tests.support.server_process import free_port, start_server


@pytest.fixture
def start(tmp_path):
    """Start the server again and again on the same ports and data."""
    ports = ("--port", str(free_port()), "--tls-port", str(free_port()))
    running = []

    def start():
        running.append(start_server("--model", "instant:300", "--max-batch", "1", *ports, data_dir=tmp_path))
        return running[-1]

    yield start
    if running[-1].process.poll() is None:
        running[-1].kill()


def test_a_subscription_survives_the_death_of_the_server(start, picture):
    first = start()
    first.wait_ready()
    said = []
    subscribing = threading.Thread(target=lambda: said.extend(by_environment(first, picture).py("subscribe.py")))
    subscribing.start()
    while not first.get("/health")["queue"]["running"]:
        assert subscribing.is_alive()
    first.kill()

    start()

    subscribing.join()
    assert said[0]["result"]["seed"] == 7


def test_what_waits_on_a_socket_is_answered_before_the_server_stops(start, picture):
    server = start()
    server.wait_ready()
    said = []
    clients = by_environment(server, picture)
    sending = threading.Thread(target=lambda: said.extend(clients.py("sockets.py", what="drained")))
    sending.start()
    while count(server, "fourstep_inference_seconds_count") < 1:  # one is answered, so the other two have arrived
        assert sending.is_alive()

    server.stop()

    sending.join()
    assert said == [["0", "1", "2"]]
