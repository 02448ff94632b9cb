"""Good clients beside slow ones and flooders: the short form of `make slow-clients`, without its figures."""

import asyncio

import pytest

from tests.chaos.slow_clients import good_clients, loaded, served


@pytest.mark.slow
def test_good_clients_are_answered_beside_slow_ones_and_flooders():
    with served() as server, loaded(server.url, server.tls_url):
        walls = asyncio.run(good_clients(server, seconds=2))

        health = server.get("/health")

    assert all(walls.values())
    assert health["engines"][0]["restarts"] == 0
