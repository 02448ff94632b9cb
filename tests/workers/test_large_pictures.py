"""Requests with large pictures in a pool of real engines: what they hold up, and what becomes of their decoders."""

import asyncio
import os
import signal
import sys
from pathlib import Path

import psutil
import pytest
from PIL import Image

from pipelines.messages import QUICK_BYTES, Decoded, Generated, GenerationParams, Large, Started, Work
from server.fal.errors import InvalidInput
from server.workers.pool import COMMAND, State
from tests.images.test_codec import saved
from tests.workers.test_pool import is_running, pid_of, pool_of, restarts, until

SMALL = saved(Image.new("RGB", (64, 64), "teal"), "JPEG")
ONE_DECODER = (sys.executable, "-P", str(Path(__file__).parents[1] / "support" / "one_decoder_engine.py"))
LARGE = saved(Image.new("RGB", (1600, 1200), "teal"), "PNG")


def engines():
    return pool_of(model="instant+jpeg", command=ONE_DECODER)


def run(pool, name, image, tenant=""):
    params = GenerationParams(prompt="", seed=1)
    return asyncio.create_task(pool.run(Work(id=name, params=params, image=image, tenant=tenant)))


async def before_start(image):
    """Return what is said of a request with this picture before it is started."""
    heard = []
    async with engines() as pool:
        await pool.run(Work(id="a", params=GenerationParams(prompt="", seed=1), image=image), heard.append)
    return heard[: heard.index(Started("a"))]


async def decoder_of(pool):
    """Return the process id of the engine's decoder, which is started for this."""
    await run(pool, "first", LARGE)
    [decoder] = psutil.Process(pid_of(pool)).children()
    return decoder.pid


@pytest.mark.anyio
async def test_a_large_picture_is_decoded_and_answered():
    async with engines() as pool:
        answer = await run(pool, "a", LARGE)

    assert (answer.pictures[0].width, answer.pictures[0].height) == (1024, 768)
    assert "decode_image" in answer.timings


@pytest.mark.anyio
async def test_a_picture_whose_file_is_long_goes_to_a_decoder_at_once():
    assert await before_start(SMALL + bytes(QUICK_BYTES)) == [Large("a", alone=False), Decoded("a")]


@pytest.mark.anyio
async def test_a_long_file_whose_picture_takes_much_memory_is_decoded_alone():
    data = saved(Image.new("RGB", (4000, 4400)), "PNG") + bytes(QUICK_BYTES)

    assert await before_start(data) == [Large("a", alone=False), Large("a", alone=True), Decoded("a")]


@pytest.mark.anyio
async def test_a_long_file_is_as_good_as_any_other_to_an_engine_that_reads_none():
    async with pool_of(command=COMMAND) as pool:
        answer = await run(pool, "a", bytes(QUICK_BYTES + 1))

    assert isinstance(answer, Generated)


@pytest.mark.anyio
async def test_others_are_answered_while_more_large_pictures_than_the_engine_has_places_wait():
    async with engines() as pool:
        decoder = await decoder_of(pool)
        os.kill(decoder, signal.SIGSTOP)
        large = [run(pool, f"large {number}", LARGE, "bad") for number in range(3 * pool.capacity)]
        small = [await run(pool, f"small {number}", SMALL, "good") for number in range(20)]
        waiting, state = [not task.done() for task in large], pool.state
        os.kill(decoder, signal.SIGCONT)
        answers = await asyncio.gather(*large)

    assert {type(answer) for answer in (*small, *answers)} == {Generated}
    assert (all(waiting), state) == (True, State.READY)


@pytest.mark.anyio
async def test_a_decoder_that_is_killed_in_the_middle_costs_no_request():
    async with engines() as pool:
        decoder = await decoder_of(pool)
        os.kill(decoder, signal.SIGSTOP)
        large = run(pool, "a", LARGE)
        await run(pool, "b", SMALL)
        os.kill(decoder, signal.SIGKILL)
        answer = await large
        again = restarts(pool)

    assert (type(answer), again) == (Generated, [0])


@pytest.mark.anyio
async def test_a_cancelled_large_picture_frees_its_decoder():
    async with engines() as pool:
        decoder = await decoder_of(pool)
        os.kill(decoder, signal.SIGSTOP)
        hung, waiting = run(pool, "a", LARGE), run(pool, "b", LARGE)
        await run(pool, "c", SMALL)
        hung.cancel()
        answer = await waiting

    assert isinstance(answer, Generated)


@pytest.mark.anyio
async def test_a_large_picture_that_waits_is_dropped_when_it_is_cancelled():
    async with engines() as pool:
        decoder = await decoder_of(pool)
        os.kill(decoder, signal.SIGSTOP)
        first, waiting = run(pool, "a", LARGE), run(pool, "b", LARGE)
        await run(pool, "c", SMALL)
        waiting.cancel()
        again = run(pool, "b", SMALL)  # the id is free
        await again
        os.kill(decoder, signal.SIGCONT)
        await first

    assert waiting.cancelled()


@pytest.mark.anyio
async def test_a_damaged_large_picture_is_its_callers_fault():
    async with engines() as pool:
        with pytest.raises(InvalidInput) as caught:
            await run(pool, "a", LARGE[:-20])

    assert caught.value.error_type == "image_load_error"


@pytest.mark.anyio
async def test_what_waits_for_a_decoder_runs_on_the_next_engine_when_one_dies():
    async with engines() as pool:
        os.kill(await decoder_of(pool), signal.SIGSTOP)
        large = [run(pool, f"large {number}", LARGE) for number in range(4)]
        await run(pool, "small", SMALL)
        os.kill(pid_of(pool), signal.SIGKILL)
        answers = await asyncio.gather(*large)

    assert {type(answer) for answer in answers} == {Generated}


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not end a stopped process with its parent")
@pytest.mark.anyio
async def test_no_decoder_outlives_a_killed_engine():
    async with engines() as pool:
        decoder = await decoder_of(pool)
        os.kill(decoder, signal.SIGSTOP)  # it can't see the end of its stream
        os.kill(pid_of(pool), signal.SIGKILL)
        await until(lambda: not is_running(decoder))


@pytest.mark.anyio
async def test_no_decoder_outlives_a_drained_engine():
    async with engines() as pool:
        decoder = await decoder_of(pool)
        await pool.close(1.0)

        assert not is_running(decoder)
