"""Who goes to which engine, with engines that only note what they are sent."""

from pipelines.messages import GenerationParams, Priority, Work
from server.workers.dispatcher import Hands
from server.workers.supervisor import State
from server.workers.ticket import Ticket


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
    return Ticket(work, None, None, 0.0)


def test_suspects_go_one_at_a_time():
    device = Device(State.READY)
    hands = Hands([device])
    for name in "ab":
        hands.queue(ticket(name), suspect=True)
    hands.queue(ticket("c"))
    seen = []
    for last in (None, "a", "b"):
        if last:
            hands.pop(device, last)
        hands.dispatch(0.0)
        seen.append(list(device.sent))

    assert seen == [["a"], ["a", "b"], ["a", "b", "c"]]


def test_a_suspect_is_not_sent_to_an_engine_that_has_just_ended():
    one, two = Device(State.STARTING), Device(State.READY)
    hands = Hands([one, two])
    for name in "ab":
        hands.queue(ticket(name), suspect=True)
    hands.dispatch(0.0)
    one.state, two.state = State.READY, State.STARTING
    hands.pop(two, "a")  # its last word
    hands.dispatch(0.0)

    assert (one.sent, two.sent) == (["b"], ["a"])
