"""Assignment of requests to engines, with devices that only record what they are sent."""

import pytest

from pipelines.messages import Cancelled, Failed, Generated, GenerationParams, Priority, Work
from server.fal.errors import InvalidInput
from server.workers.dispatcher import Dispatcher
from server.workers.pending import PendingRequest, RerunLimits, verdict
from server.workers.supervisor import State


class Device:
    """Stand-in for a supervisor."""

    def __init__(self, state):
        self.state = state
        self.capacity = 2
        self.decoders = 1
        self.sent = []

    def send(self, message):
        self.sent.append(message.id)


def pending(name, *, tenant="", tries=0):
    params = GenerationParams(prompt="", seed=1)
    work = Work(id=name, params=params, image=b"", priority=Priority.RUN, tenant=tenant, previews=False)
    return PendingRequest(work, None, None, 0.0, tries=tries)


def test_suspects_go_one_at_a_time():
    device = Device(State.READY)
    dispatcher = Dispatcher([device])
    for name in "ab":
        dispatcher.queue(pending(name, tries=1))
    dispatcher.queue(pending("c"))
    seen = []
    for last in (None, "a", "b"):
        if last:
            dispatcher.pop(device, last, 0.0)
        dispatcher.dispatch(0.0)
        seen.append(list(device.sent))

    assert seen == [["a"], ["a", "b"], ["a", "b", "c"]]


def test_a_suspect_is_not_sent_to_an_engine_that_has_just_ended():
    one, two = Device(State.STARTING), Device(State.READY)
    dispatcher = Dispatcher([one, two])
    for name in "ab":
        dispatcher.queue(pending(name, tries=1))
    dispatcher.dispatch(0.0)
    one.state, two.state = State.READY, State.STARTING
    dispatcher.pop(two, "a", 0.0)  # its last message
    dispatcher.dispatch(0.0)

    assert (one.sent, two.sent) == (["b"], ["a"])


@pytest.mark.parametrize(
    ("solo_failures", "tries", "exhausted"), [(0, 0, False), (1, 3, False), (2, 2, True), (0, 4, True)]
)
def test_a_request_is_run_again_up_to_either_limit(solo_failures, tries, exhausted):
    request = pending("a")
    request.solo_failures, request.tries = solo_failures, tries

    assert request.exhausted(RerunLimits(solo_failures=2, tries=4)) is exhausted


@pytest.mark.parametrize(
    ("message", "error_type"),
    [
        (Cancelled("a"), "client_cancelled"),
        (Failed(id="a", kind="image_too_small", message="Too small"), "image_too_small"),
        (Failed(id="a", kind="engine_error", message="Something broke"), "runner_server_error"),
    ],
)
def test_an_engines_last_message_becomes_the_callers_answer(message, error_type):
    error = verdict(message)

    assert error.error_type == error_type
    assert isinstance(error, InvalidInput) == (error_type == "image_too_small")


def test_a_finished_request_is_its_own_verdict():
    message = Generated(id="a", pictures=(), timings={})

    assert verdict(message) is message
