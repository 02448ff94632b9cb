"""tldraw/draw-fast's message pattern: serverless-client 0.6.1 on the 2023 gateway, a picture with every stroke."""

import pytest

from tests.clients.conftest import taking_over

PACKAGE = "serverless-client-0.6"
# What the app waits for an answer before it gives one up.
PATIENCE_MS = 5000


@pytest.fixture(scope="module")
def busy(picture, tmp_path_factory):
    """Clients of a server that can't keep up: ten pictures a second."""
    flags = ("--model", "instant:100", "--max-batch", "1")
    with taking_over(tmp_path_factory.mktemp("busy"), picture, *flags) as server:
        yield server.clients


@pytest.mark.slow
def test_every_stroke_is_answered_by_a_server_that_keeps_up(takeover):
    [said] = takeover.clients.js("draw_fast.mjs", package=PACKAGE, perSecond=15, messages=90)

    assert (said["errors"], said["unknown"]) == ([], [])
    first = said["answered"][0]  # while it connects, the client keeps only the latest
    assert said["answered"] == list(range(first, 91))
    assert first <= 15


def test_a_server_that_can_not_keep_up_stays_near_the_newest_stroke(busy):
    [said] = busy.js("draw_fast.mjs", package=PACKAGE, perSecond=30, messages=60)

    assert (said["errors"], said["unknown"]) == ([], [])
    assert said["answered"] == sorted(said["answered"])
    assert said["answered"][-1] == said["sent"] == 60
    assert len(said["answered"]) < 60, "the server kept up: nothing was tried"
    assert said["slowest"] < PATIENCE_MS


def test_a_page_behind_the_proxy_of_its_time_gets_token_and_picture(takeover):
    [said] = takeover.clients.js("old_proxy.mjs", package=PACKAGE, app="110602490-lcm-sd15-i2i")

    assert said["result"]["request_id"] == "page"
    assert "200 POST rest.alpha.fal.ai/tokens/" in said["seen"]
