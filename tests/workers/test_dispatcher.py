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
        self.processors = 64
        self.sent = []

    def send(self, message):
        self.sent.append(message.id)


def pending(name, *, tenant="", suspect=False, priority=Priority.RUN, images=1):
    params = GenerationParams(prompt="", seed=1, num_images=images)
    work = Work(id=name, params=params, image=b"", priority=priority, tenant=tenant, previews=False)
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
        dispatcher.dispatch(0.0)  # after another change
        seen.append(list(device.sent))

    assert seen == [["a"], ["a", "b"], ["a", "b", "c"]]


def test_an_engine_that_is_not_ready_is_sent_nothing():
    device = Device(State.STARTING)
    dispatcher = Dispatcher([device])
    dispatcher.queue(pending("a"))
    dispatcher.dispatch(0.0)

    assert device.sent == []


def test_the_engine_with_the_fewest_images_is_next():
    one, two = Device(State.READY), Device(State.READY)
    dispatcher = Dispatcher([one, two])
    for name, images in (("a", 4), ("b", 1), ("c", 1)):
        dispatcher.queue(pending(name, images=images))
        dispatcher.dispatch(0.0)

    assert (one.sent, two.sent) == (["a"], ["b", "c"])


def test_a_tenant_that_fills_an_engine_leaves_room_for_another():
    device = Device(State.READY)
    dispatcher = Dispatcher([device])
    for name in ("a1", "a2", "a3", "b1", "b2"):
        dispatcher.queue(pending(name, tenant=name[0]))
        dispatcher.dispatch(0.0)

    assert device.sent == ["a1", "a2", "b1"]


def test_a_full_engine_takes_what_is_more_urgent():
    device = Device(State.READY)
    dispatcher = Dispatcher([device])
    for name, priority in (("a", Priority.RUN), ("b", Priority.RUN), ("c", Priority.RUN), ("d", Priority.REALTIME)):
        dispatcher.queue(pending(name, priority=priority))
        dispatcher.dispatch(0.0)

    assert device.sent == ["a", "b", "d"]


def test_a_suspect_goes_to_the_engine_which_is_idle():
    one, two = Device(State.READY), Device(State.READY)
    dispatcher = Dispatcher([one, two])
    dispatcher.queue(pending("a"))
    dispatcher.dispatch(0.0)
    dispatcher.queue(pending("b", suspect=True))
    dispatcher.dispatch(0.0)

    assert (one.sent, two.sent) == (["a"], ["b"])


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
    request.work = msgspec.structs.replace(request.work, large=True, alone=alone)
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


@pytest.mark.parametrize(
    ("processors", "alone", "sent"), [(64, True, 1), (1, False, 1), (5, False, 2), (6, False, 3), (64, False, 3)]
)
def test_engines_of_one_machine_share_its_memory_and_processors_for_decoding(processors, alone, sent):
    devices = [Device(State.READY) for _ in range(3)]
    for device in devices:
        device.processors = processors
    dispatcher = Dispatcher(devices)
    for name in "abc":
        dispatcher.queue(large(name, tenant=name, alone=alone))
    dispatcher.dispatch(0.0)

    assert sum(len(device.sent) for device in devices) == sent


@pytest.mark.parametrize("failed", [False, True])
@pytest.mark.parametrize(
    ("seconds", "order"),
    [
        ({"a": 3.0, "b": 1.0}, ["a1", "b1", "b2", "b3", "a2", "a3"]),
        ({"a": 0.25, "b": 0.9}, ["a1", "b1", "a2", "a3", "b2", "b3"]),
    ],
)
def test_the_tenant_that_had_least_decoding_time_gets_the_decoder(seconds, order, failed):
    device = Device(State.READY)
    dispatcher = Dispatcher([device])
    for name in ("a1", "a2", "b1", "a3", "b2", "b3"):
        dispatcher.queue(large(name, tenant=name[0]))
    now = 0.0
    for _ in order:
        dispatcher.dispatch(now)
        name = device.sent[-1]
        now += seconds[name[0]]
        if not failed:
            dispatcher.note_decoded(device, Decoded(name), now)
        dispatcher.pop(device, name, now)

    assert device.sent == order


def test_the_time_in_the_decoder_of_an_engine_that_has_ended_counts():
    device = Device(State.READY)
    dispatcher = Dispatcher([device])
    first, second = large("a", tenant="a"), large("b", tenant="b")
    second.arrived = 0.5
    for request in (first, second):
        dispatcher.queue(request)
    dispatcher.dispatch(0.0)
    dispatcher.empty(device, 1.0)
    left = first.supervisor
    dispatcher.queue(first)
    dispatcher.dispatch(1.0)

    assert (device.sent, left) == (["a", "b"], None)


def test_small_pictures_do_not_keep_a_large_one_from_a_free_decoder():
    device = Device(State.READY)
    dispatcher = Dispatcher([device])
    for request in (pending("a"), pending("b"), large("c")):
        dispatcher.queue(request)
    dispatcher.dispatch(0.0)

    assert device.sent == ["c", "a", "b"]


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
