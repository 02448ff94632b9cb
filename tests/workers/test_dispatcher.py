"""Assignment of requests to engines, with devices that only record what they are sent."""

import msgspec
import pytest

from pipelines.messages import Cancelled, Decoded, Failed, Generated, GenerationParams, Large, Priority, Work
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


def pending(name, *, tenant="", suspect=False):
    params = GenerationParams(prompt="", seed=1)
    work = Work(id=name, params=params, image=b"", priority=Priority.RUN, tenant=tenant, previews=False)
    return PendingRequest(work, None, None, 0.0, suspect=suspect)


def test_suspects_go_one_at_a_time():
    device = Device(State.READY)
    dispatcher = Dispatcher([device])
    for name in "ab":
        dispatcher.queue(pending(name, suspect=True))
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
        dispatcher.queue(pending(name, suspect=True))
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


def large(name, *, tenant="", alone=False):
    """Return a request that an engine has given back."""
    request = pending(name, tenant=tenant)
    request.work, request.alone = msgspec.structs.replace(request.work, large=True), alone
    return request


def test_a_request_that_is_given_back_is_sent_again_to_a_decoder():
    device = Device(State.READY)
    dispatcher = Dispatcher([device])
    request = pending("a")
    dispatcher.queue(request)
    dispatcher.dispatch(0.0)
    dispatcher.queue(dispatcher.give_back(device, Large("a", alone=True), 1.0))
    dispatcher.dispatch(1.0)

    assert device.sent == ["a", "a"]
    assert (request.work.large, request.alone, request.decoding) == (True, True, True)


def test_requests_with_large_pictures_take_no_capacity_until_those_are_decoded():
    device = Device(State.READY)
    dispatcher = Dispatcher([device])
    for name in "abc":
        dispatcher.queue(large(name))
    dispatcher.dispatch(0.0)  # "a" gets the decoder
    seen = []
    for name in "xyz":
        dispatcher.queue(pending(name))
        dispatcher.dispatch(0.0)
        seen.append(device.sent[-1])
    dispatcher.note_decoded(device, Decoded("a"), 1.0)
    dispatcher.pop(device, "x", 1.0)
    dispatcher.dispatch(1.0)

    assert seen == ["x", "y", "y"]  # the capacity is two
    assert device.sent[-1] == "y"  # "a" has the place of "x"


def test_large_pictures_that_are_being_decoded_count_before_another_one():
    device = Device(State.READY)
    device.decoders = 9
    dispatcher = Dispatcher([device])
    for name in "abc":
        dispatcher.queue(large(name))
    dispatcher.dispatch(0.0)

    assert device.sent == ["a", "b"]  # the capacity is two


def test_a_decoder_gets_one_large_picture_after_the_other():
    device = Device(State.READY)
    dispatcher = Dispatcher([device])
    for name in "ab":
        dispatcher.queue(large(name))
    dispatcher.dispatch(0.0)
    sent = [list(device.sent)]
    dispatcher.note_decoded(device, Decoded("a"), 1.0)
    dispatcher.dispatch(1.0)
    sent.append(list(device.sent))

    assert sent == [["a"], ["a", "b"]]


def test_of_two_pictures_which_take_much_memory_one_is_decoded_at_a_time():
    device = Device(State.READY)
    device.decoders = 2
    dispatcher = Dispatcher([device])
    for name in "abc":
        dispatcher.queue(large(name, tenant=name, alone=name in "ab"))
    dispatcher.dispatch(0.0)

    assert device.sent == ["a", "c"]


def test_a_tenant_gets_a_second_decoder_only_when_no_other_waits_that_has_fewer():
    device = Device(State.READY)
    device.capacity, device.decoders = 9, 3
    dispatcher = Dispatcher([device])
    for name in ("a1", "a2", "a3", "b1", "b2"):
        dispatcher.queue(large(name, tenant=name[0]))
    dispatcher.dispatch(0.0)

    assert device.sent == ["a1", "b1", "a2"]


@pytest.mark.parametrize(("decoders", "alone", "sent"), [(9, True, 1), (2, False, 2)])
def test_engines_of_one_machine_share_its_memory_and_processors_for_decoding(decoders, alone, sent):
    devices = [Device(State.READY) for _ in range(3)]
    for device in devices:
        device.decoders = decoders
    dispatcher = Dispatcher(devices)
    for name in "abc":
        dispatcher.queue(large(name, tenant=name, alone=alone))
    dispatcher.dispatch(0.0)

    assert sum(len(device.sent) for device in devices) == sent


def test_the_tenant_that_had_least_decoding_time_gets_the_decoder():
    device = Device(State.READY)
    dispatcher = Dispatcher([device])
    for name, tenant in (("a1", "a"), ("a2", "a"), ("b1", "b"), ("a3", "a"), ("b2", "b")):
        dispatcher.queue(large(name, tenant=tenant))
    device.sent.clear()
    now = 0.0
    for name, seconds in (("a1", 3.0), ("b1", 1.0), ("b2", 1.0), ("a2", 1.0), ("a3", 1.0)):
        dispatcher.dispatch(now)
        now += seconds
        dispatcher.note_decoded(device, Decoded(name), now)
        dispatcher.pop(device, name, now)

    assert device.sent == ["a1", "b1", "b2", "a2", "a3"]


def test_a_request_whose_picture_is_being_decoded_is_no_suspect_of_its_engines_end():
    device = Device(State.READY)
    dispatcher = Dispatcher([device])
    requests = large("a"), pending("b")
    for request in requests:
        dispatcher.queue(request)
    dispatcher.dispatch(0.0)
    dispatcher.empty(device, 0.0)

    assert [(request.suspect, request.solo_failures, request.tries) for request in requests] == [
        (False, 0, 1),
        (True, 1, 1),
    ]


def test_a_suspect_with_a_large_picture_stays_alone():
    device = Device(State.READY)
    dispatcher = Dispatcher([device])
    suspect = large("a")
    dispatcher.queue(suspect)
    dispatcher.dispatch(0.0)
    suspect.suspect = True
    for request in dispatcher.empty(device, 0.0):
        dispatcher.queue(request)
    dispatcher.queue(pending("b"))
    device.sent.clear()
    dispatcher.dispatch(0.0)

    assert (device.sent, suspect.decoding) == (["a"], True)
