"""What an engine's last word on a request means to its caller."""

import pytest

from pipelines.messages import Cancelled, Failed, Generated
from server.fal.errors import InvalidInput
from server.workers.ticket import verdict


@pytest.mark.parametrize(
    ("message", "error_type"),
    [
        (Cancelled("a"), "client_cancelled"),
        (Failed(id="a", kind="image_too_small", message="Too small"), "image_too_small"),
        (Failed(id="a", kind="engine_error", message="Something broke"), "runner_server_error"),
    ],
)
def test_what_an_engines_last_word_means(message, error_type):
    error = verdict(message)

    assert error.error_type == error_type
    assert isinstance(error, InvalidInput) == (error_type == "image_too_small")


def test_a_finished_request_is_its_own_verdict():
    message = Generated(id="a", pictures=(), timings={})

    assert verdict(message) is message
