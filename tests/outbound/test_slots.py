"""Places of outbound calls: shared among keys, and taken until the last look-up of a host name has ended."""

import asyncio
import contextlib
import socket
import threading

import pytest

from server.fal.errors import RequestError
from server.outbound.slots import Slots

pytestmark = pytest.mark.anyio

PATIENCE_S = 0.05
ADDRESS = ["93.184.216.34"]


class Resolver:
    """Blocks for names that end in `never.example`, until `end` is set."""

    def __init__(self):
        self.end = threading.Event()

    def __call__(self, host, port):
        if host.endswith("never.example"):
            self.end.wait(60)
            raise socket.gaierror(socket.EAI_AGAIN, "no answer")
        return ADDRESS


@pytest.fixture
def resolver():
    resolver = Resolver()
    yield resolver
    resolver.end.set()


def slots(resolver, total=4, **options):
    return Slots(total, 0.5, patience_s=PATIENCE_S, resolver=resolver, **options)


async def leaves(slots, key, *hosts):
    """Look names up one after the other in one place, and leave those that never resolve."""
    async with slots.one(key) as slot:
        for host in hosts:
            lookup = asyncio.ensure_future(slot.addresses(host, 80))
            await asyncio.sleep(0)  # it has begun
            if host.endswith("never.example"):
                lookup.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await lookup


async def taken(slots, key):
    """Whether all places of this key are taken."""
    try:
        async with slots.one(key):
            return False
    except RequestError as error:
        return error.status == 429


async def test_a_look_up_without_an_answer_takes_its_keys_place_and_no_others(resolver):
    places = slots(resolver)

    await asyncio.gather(*(leaves(places, "bad", "never.example") for _ in range(2)))

    assert (await taken(places, "bad"), await taken(places, "good")) == (True, False)


async def test_with_all_places_of_a_key_stalled_another_keys_names_resolve(resolver):
    places = slots(resolver, total=32)
    await asyncio.gather(*(leaves(places, "bad", f"{number}.never.example") for number in range(16)))

    async with places.one("good") as slot:
        assert await slot.addresses("example.com", 80) == ADDRESS


async def test_a_place_is_free_again_once_the_look_up_has_ended(resolver):
    places = slots(resolver, total=2)
    await leaves(places, "bad", "never.example")

    resolver.end.set()

    async with asyncio.timeout(10):
        while await taken(places, "bad"):  # noqa: ASYNC110
            await asyncio.sleep(0)


async def test_a_place_in_which_two_look_ups_were_left_waits_for_both(resolver):
    first, second = Resolver(), Resolver()
    places = slots(lambda host, port: (first if host == "1.never.example" else second)(host, port), total=2)
    await leaves(places, "bad", "1.never.example", "2.never.example")

    second.end.set()

    assert await taken(places, "bad")
    first.end.set()
    async with asyncio.timeout(10):
        while await taken(places, "bad"):  # noqa: ASYNC110
            await asyncio.sleep(0)


async def test_look_ups_that_were_left_are_counted_and_answered_ones_are_not(resolver):
    left = []
    places = slots(resolver, abandoned=lambda: left.append(1))

    await leaves(places, "bad", "example.com", "never.example")

    assert len(left) == 1


async def test_a_failed_look_up_is_the_callers_to_hear_of(resolver):
    resolver.end.set()

    async with slots(resolver).one("key") as slot:
        with pytest.raises(socket.gaierror):
            await slot.addresses("never.example", 80)


async def test_without_keys_there_is_one_caller_and_no_share(resolver):
    places = slots(resolver, total=2)
    await leaves(places, "anonymous", "never.example")

    assert not await taken(places, "anonymous")


async def test_a_look_up_for_which_there_is_no_thread_is_answered_429(resolver, monkeypatch):
    class Thread(threading.Thread):
        def start(self):
            raise RuntimeError("can't start new thread")

    monkeypatch.setattr("server.outbound.slots.threading.Thread", Thread)

    async with slots(resolver).one("key") as slot:
        with pytest.raises(RequestError) as refused:
            await slot.addresses("example.com", 80)
    assert (refused.value.status, slot.lookups) == (429, set())
