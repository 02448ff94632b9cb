"""Who goes to which engine, with engines that only note what they are sent."""

from pipelines.messages import GenerationParams, Priority, Work
from server.workers.dispatcher import Dispatcher
from server.workers.supervisor import State
from server.workers.ticket import PendingRequest


class Device:
    """In place of a slot."""

    def __init__(self, state):
        self.state = state
        self.capacity = 2
        self.sent = []

    def send(self, message):
        self.sent.append(message.id)


def ticket(name):
    params = GenerationParams(prompt="", seed=1)
    work = Work(id=name, params=params, image=b"", priority=Priority.RUN, tenant="", previews=False)
    return PendingRequest(work, None, None, 0.0)


def test_suspects_go_one_at_a_time():
    device = Device(State.READY)
    dispatcher = Dispatcher([device])
    for name in "ab":
        dispatcher.queue(ticket(name), suspect=True)
    dispatcher.queue(ticket("c"))
    seen = []
    for last in (None, "a", "b"):
        if last:
            dispatcher.pop(device, last)
        dispatcher.dispatch(0.0)
        seen.append(list(device.sent))

    assert seen == [["a"], ["a", "b"], ["a", "b", "c"]]


def test_a_suspect_is_not_sent_to_an_engine_that_has_just_ended():
    one, two = Device(State.STARTING), Device(State.READY)
    dispatcher = Dispatcher([one, two])
    for name in "ab":
        dispatcher.queue(ticket(name), suspect=True)
    dispatcher.dispatch(0.0)
    one.state, two.state = State.READY, State.STARTING
    dispatcher.pop(two, "a")  # its last word
    dispatcher.dispatch(0.0)

    assert (one.sent, two.sent) == (["b"], ["a"])
