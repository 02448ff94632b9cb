"""Live: every change is painted, the newest wins, and a lost connection is made again."""

import asyncio
import contextlib
import json
import queue
import re
import threading
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
from playwright.sync_api import Page, WebSocket, expect

from tests.page.conftest import Visits, pixels
from tests.support.browsers.chromium import said_by
from tests.support.server_process import Server, serving, start_server, until

OUT = ".out canvas[role=img]"


def live(page: Page) -> None:
    page.get_by_role("button", name="Live", exact=True).click()


def camera(page: Page) -> None:
    page.get_by_role("button", name="Camera", exact=True).click()


def figures(page: Page) -> dict[str, float]:
    """Frames a second, milliseconds of a round trip, dropped frames."""
    text = page.locator(".speed").inner_text()
    found = dict(zip(("rate", "trip", "dropped"), map(float, re.findall(r"[\d.]+", text)), strict=False))
    return {"dropped": 0.0, **found}


def eventually(page: Page, condition: Any) -> None:
    """Wait until something holds, while the browser's events come in."""

    def holds() -> bool:
        page.wait_for_timeout(50)
        return bool(condition())

    until(holds, 20)


@pytest.fixture
def frames(page: Page) -> list[dict[str, Any]]:
    """Every frame that the page has sent."""
    sent: list[dict[str, Any]] = []

    def hear(socket: WebSocket) -> None:
        socket.on("framesent", lambda frame: sent.append(msgspec.msgpack.decode(frame)))

    page.on("websocket", hear)
    return sent


def test_the_cameras_pictures_are_painted_many_times_a_second(page: Page):
    camera(page)
    live(page)
    expect(page.locator("#said")).to_have_text("Live")
    eventually(page, lambda: figures(page)["rate"] >= 8)

    before = pixels(page.locator(OUT))
    eventually(page, lambda: (pixels(page.locator(OUT)) != before).mean() > 0.01)
    live(page)
    expect(page.locator("#said")).to_have_text("Live is off")


def test_one_frame_is_sent_of_a_picture_that_does_not_change(page: Page, frames):
    live(page)
    expect(page.get_by_role("img", name="the picture that came out")).to_be_visible()
    page.wait_for_timeout(300)

    assert len(frames) == 1


def test_a_change_of_any_control_is_painted(page: Page, frames):
    live(page)
    eventually(page, lambda: len(frames) == 1)
    page.get_by_label("Prompt", exact=True).fill("a cat")
    eventually(page, lambda: frames[-1]["prompt"] == "a cat")
    page.locator("#strength").fill("0.4")
    eventually(page, lambda: frames[-1]["strength"] == 0.4)
    page.get_by_role("button", name="Another seed").click()

    eventually(page, lambda: frames[-1]["seed"] != frames[0]["seed"])


def test_what_is_drawn_is_painted(page: Page, frames):
    page.get_by_role("button", name="Draw", exact=True).click()
    live(page)
    eventually(page, lambda: len(frames) == 1)
    box = page.locator(".in canvas").bounding_box()
    assert box is not None
    page.mouse.move(box["x"] + 60, box["y"] + 60)
    page.mouse.down()
    page.mouse.move(box["x"] + 200, box["y"] + 200, steps=10)
    page.mouse.up()

    eventually(page, lambda: len(frames) > 1 and frames[-1]["image_bytes"] != frames[0]["image_bytes"])


def test_the_newest_frame_wins_and_the_others_are_counted(visit):
    with serving("--model", "instant+jpeg:400", "--max-batch", "1") as server:
        page = visit(server.url)
        camera(page)
        live(page)

        eventually(page, lambda: figures(page)["dropped"] > 5)
        until(lambda: server.get("/health")["queue"]["waiting"] == 0)


def test_a_frame_that_is_refused_marks_its_field_and_the_next_one_is_painted(page: Page):
    live(page)
    expect(page.locator("#said")).to_have_text("Live")
    page.locator("#strength").fill("7")
    expect(page.locator("#strength")).to_have_attribute("aria-invalid", "true")
    expect(page.locator("#said")).to_contain_text("strength")
    page.locator("#strength").fill("0.5")

    expect(page.locator("#said")).to_have_text("Live")
    expect(page.locator("#strength")).to_have_attribute("aria-invalid", "false")


def test_a_hidden_tab_ends_it(page: Page):
    live(page)
    expect(page.locator("#said")).to_have_text("Live")
    said_by(
        page,
        "Object.defineProperty(document, 'hidden', {value: true});"
        "document.dispatchEvent(new Event('visibilitychange'))",
    )

    expect(page.locator("#said")).to_contain_text("stopped while the page was hidden")
    expect(page.get_by_role("button", name="Live", exact=True)).to_have_attribute("aria-pressed", "false")


def test_it_goes_on_when_the_server_is_back(visit, tmp_path):
    server = start_server("--model", "instant+jpeg:5", data_dir=tmp_path)
    try:
        server.wait_ready()
        page = visit(server.url)
        visit.allow("ERR_CONNECTION_REFUSED|ERR_CONNECTION_RESET|ERR_EMPTY_RESPONSE|Error in connection establishment")
        camera(page)
        live(page)
        eventually(page, lambda: figures(page)["rate"] > 3)
    finally:
        server.kill()
    expect(page.locator("#said")).to_contain_text(re.compile("not reachable.*again in [0-9.]+ s"))
    expect(page.locator(".chip.state")).to_contain_text("not reachable")
    with serving("--model", "instant+jpeg:5", "--port", server.url.rpartition(":")[2], data_dir=tmp_path):
        expect(page.locator("#said")).to_have_text("Live")
        expect(page.locator(".chip.state")).to_contain_text(re.compile("READY|BUSY"))


def test_a_server_with_keys_gives_a_token_for_each_connection(visit):
    with serving("--model", "instant+jpeg:5", env={"FOURSTEP_KEYS": "one:secret"}) as server:
        page = visit(server.url)
        visit.allow("status of 401|ERR_ABORTED|status code: 401")
        live(page)
        page.get_by_label("API key").fill("one:secret")
        page.get_by_role("button", name="Use this key").click()
        with page.expect_websocket() as opened:
            live(page)
        expect(page.get_by_role("img", name="the picture that came out")).to_be_visible()

        assert "fal_jwt_token=" in opened.value.url
        assert "secret" not in opened.value.url


@contextlib.contextmanager
def far_away(server: Server, seconds: float) -> Iterator[str]:
    """The URL of the server behind a network that takes its time, each way."""

    async def pipe(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(1 << 20):
                await asyncio.sleep(seconds)
                writer.write(data)
        finally:
            writer.close()

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there = await asyncio.open_connection("127.0.0.1", int(server.url.rpartition(":")[2]))
        await asyncio.gather(pipe(reader, there[1]), pipe(there[0], writer), return_exceptions=True)

    async def run() -> None:
        async with await asyncio.start_server(connected, "127.0.0.1", 0) as listening:
            told.put((asyncio.get_running_loop(), listening.sockets[0].getsockname()[1]))
            await ended.wait()

    told: queue.Queue[tuple[asyncio.AbstractEventLoop, int]] = queue.Queue()
    ended = asyncio.Event()
    # Playwright's event loop runs in this thread already.
    thread = threading.Thread(target=asyncio.run, args=(run(),))
    thread.start()
    loop, port = told.get()
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        loop.call_soon_threadsafe(ended.set)
        thread.join()


def test_a_slow_network_gets_smaller_pictures(browser, server: Server):
    with far_away(server, 0.1) as url, contextlib.ExitStack() as stack:
        page = Visits(browser, lambda: url, stack)()
        sent: list[int] = []
        page.on("websocket", lambda socket: socket.on("framesent", lambda frame: sent.append(len(frame))))
        camera(page)
        live(page)
        eventually(page, lambda: len(sent) > 2)
        largest = max(sent)

        eventually(page, lambda: sent[-1] < largest * 0.8)


def test_the_next_picture_is_made_while_a_frame_is_under_way(visit):
    with serving("--model", "instant+jpeg:200", "--max-batch", "1") as server:
        page = visit(server.url)
        said_by(
            page,
            "(() => { const take = createImageBitmap; globalThis.order = [];"
            "globalThis.createImageBitmap = (from, ...rest) => {"
            " if (from instanceof HTMLCanvasElement) order.push('take'); return take(from, ...rest); };"
            "globalThis.WebSocket = class extends WebSocket {"  # hears each answer before the page does
            " constructor(url) { super(url); this.addEventListener('message', () => order.push('heard')); }"
            " send(data) { order.push('send'); super.send(data); } }; })()",
        )
        camera(page)
        live(page)
        eventually(page, lambda: "send take heard send" in " ".join(said_by(page, "order")))

        assert "send send" not in " ".join(each for each in said_by(page, "order") if each != "take")


def test_figures_and_times_are_rendered_four_times_a_second(page: Page):
    camera(page)
    live(page)
    eventually(page, lambda: figures(page)["rate"] >= 5)
    said_by(
        page,
        "(() => { globalThis.rendered = 0; const count = new MutationObserver(() => (rendered += 1));"
        "for (const each of ['.stages', '.speed', '.strip', '.out .bar'])"
        " count.observe(document.querySelector(each), { subtree: true, childList: true, characterData: true }); })()",
    )
    page.wait_for_timeout(2000)

    assert 0 < said_by(page, "rendered") <= 20


def test_messages_are_packed_as_the_server_reads_them(page: Page):
    module = "import('./static/page/ways/msgpack.js').then(({ pack, unpack }) => "
    given = {"text": "Strände ☀", "whole": 4, "most": 2**53 - 1, "less": -7, "part": 0.25, "yes": True, "no": False}
    packed = said_by(page, f"{module}[...pack({{...{json.dumps(given)}, bytes: Uint8Array.of(1, 2), none: NaN}})])")
    kinds = [None, *range(-40, 140, 15), *(sign * 2**power for power in (7, 8, 16, 31) for sign in (1, -1)), 0.1]
    told = {"deep": {"list": [*kinds, *["x" * length for length in (3, 40, 300, 70_000)]]}, "seed": 2**32 - 1}
    unpacked = said_by(page, f"{module}unpack(Uint8Array.from({[*msgspec.msgpack.encode(told)]}).buffer))")

    assert msgspec.msgpack.decode(bytes(packed)) == {**given, "bytes": b"\1\2", "none": None}
    assert unpacked == told
