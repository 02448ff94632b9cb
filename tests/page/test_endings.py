"""A server that is stopped while the page is at work: what comes still, and that the page goes on with the next one."""

import re
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from playwright.sync_api import Page, Route, expect

from tests.support.server_process import Server, serving, start_server

CUT = "ERR_CONNECTION|ERR_EMPTY_RESPONSE|ERR_INCOMPLETE_CHUNKED_ENCODING|Error in connection establishment"
GONE = ".chip.state[data-state=GONE]"
SAID = "#said"


def press(page: Page, name: str) -> None:
    page.get_by_role("button", name=name, exact=True).click()


@contextmanager
def told_to_stop(visit, tmp_path: Path, work: str, milliseconds: int, *flags: str) -> Iterator[tuple[Page, Server]]:
    """A page at work and its server, which is draining."""
    server = start_server("--model", f"instant+jpeg:{milliseconds}", *flags, data_dir=tmp_path)
    try:
        server.wait_ready()
        page = visit(server.url)
        visit.allow(CUT)
        press(page, work)
        begun = page.locator(".jobs") if work == "Queue" else page.locator(SAID)
        expect(begun).to_contain_text(re.compile("is being made|Step 1|Live"))
        server.process.send_signal(signal.SIGTERM)
        yield page, server
    finally:
        server.kill()


def the_next(server: Server, tmp_path: Path):
    return serving("--model", "instant+jpeg:5", "--port", server.url.rpartition(":")[2], data_dir=tmp_path, ready=False)


def test_what_a_stopping_server_has_begun_still_comes(visit, tmp_path: Path):
    with told_to_stop(visit, tmp_path, "Generate", 4000) as (page, _):
        expect(page.get_by_role("alert")).to_contain_text("what it has begun may still come")
        expect(page.locator(SAID)).to_contain_text("seed")

        expect(page.locator(GONE)).to_be_visible()


@pytest.mark.parametrize("work", [pytest.param("Generate", marks=pytest.mark.long), "Queue"])
def test_what_a_stopping_server_had_no_time_for_is_made_by_the_next(work: str, visit, tmp_path: Path):
    with told_to_stop(visit, tmp_path, work, 8000, "--drain-timeout", "1") as (page, server):
        server.process.wait(20)
        expect(page.locator(GONE)).to_be_visible()
        if work == "Generate":
            expect(page.locator(SAID)).to_have_text("The server is not reachable: this goes on once it is back")
        with the_next(server, tmp_path):
            expect(page.locator(SAID)).to_contain_text("seed")


def test_what_is_asked_for_while_no_server_is_there_can_be_cancelled(visit, tmp_path: Path):
    with told_to_stop(visit, tmp_path, "Generate", 8000, "--drain-timeout", "0") as (page, _):
        expect(page.locator(SAID)).to_contain_text("once it is back")
        page.keyboard.press("Escape")

        expect(page.locator(SAID)).to_have_text("Cancelled")


def test_live_is_back_within_seconds_of_the_server_however_long_that_was_away(visit, tmp_path: Path):
    with told_to_stop(visit, tmp_path, "Live", 5) as (page, server):
        server.process.wait(20)
        expect(page.locator(SAID)).to_contain_text("again in 8 s", timeout=30_000)
        with the_next(server, tmp_path):
            answers = time.monotonic()
            expect(page.locator(SAID)).to_have_text("Live")

            assert time.monotonic() - answers < 4


def test_what_breaks_off_while_the_server_is_there_is_not_asked_for_ever(page: Page, visit):
    asked = []

    def broken(route: Route) -> None:
        asked.append(route.request.url)
        route.fulfill(status=200, content_type="text/event-stream", body="")

    page.route("**/stream", broken)
    press(page, "Generate")

    expect(page.locator(SAID)).to_contain_text("The answer broke off")
    assert len(asked) == 4


@pytest.mark.parametrize("answer", [{"body": "<p>Sign in to this network"}, {"status": 502, "body": "Bad Gateway"}])
def test_an_answer_that_is_not_the_servers_is_no_server(answer: dict, page: Page, visit):
    visit.allow("status of 502")
    page.route("**/health", lambda route: route.fulfill(**answer))
    expect(page.locator(GONE)).to_be_visible()
    page.unroute("**/health")

    expect(page.locator("[data-state=READY]")).to_be_visible()


def test_a_server_that_says_nothing_is_gone_and_found_again(visit):
    with serving("--model", "instant+jpeg:5") as server:
        page = visit(server.url)
        expect(page.locator("[data-state=READY]")).to_be_visible()
        visit.allow("ERR_")
        server.process.send_signal(signal.SIGSTOP)
        try:
            expect(page.locator(GONE)).to_be_visible()
        finally:
            server.process.send_signal(signal.SIGCONT)

        expect(page.locator("[data-state=READY]")).to_be_visible()
