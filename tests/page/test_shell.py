"""The page itself: its top, its foot, its policy, what it does when it is opened."""

import pytest
from playwright.sync_api import Page, expect

from tests.support.browsers.chromium import said_by
from tests.support.server_process import until


def test_the_page_says_how_the_server_is(page: Page):
    expect(page.locator(".chip.state")).to_contain_text("READY")
    expect(page.locator(".notice")).to_contain_text("No model is loaded")


def test_generate_shows_the_picture_that_came_out(page: Page):
    page.get_by_role("button", name="Generate").click()

    expect(page.locator("#said")).to_contain_text("seed")
    expect(page.get_by_role("img", name="the picture that came out")).to_be_visible()


@pytest.mark.parametrize(
    ("deed", "fault"),
    [
        ("console.error('no')", "error: no"),
        ("setTimeout(() => { throw new Error('thrown') })", "error: thrown"),
        ("fetch('https://example.com/').catch(() => 0)", "connect-src"),
        ("new WebSocket('wss://example.com/')", "connect-src"),
        ("location = 'https://example.com/'", "request: https://example.com/"),
        ("eval('1')", "unsafe-eval"),
        ("document.body.innerHTML = '<p>'", "TrustedHTML"),
        ("document.body.setAttribute('style', 'color: red')", "style-src"),
        ("fetch('nothing').then(() => 0)", "status of 404"),
    ],
)
def test_a_fault_of_the_page_is_seen(deed: str, fault: str, page: Page, visit):
    said_by(page, f"setTimeout(() => {{ {deed} }})")
    [watch] = visit.watches

    def seen() -> bool:
        page.wait_for_timeout(20)  # lets the browser's events in
        return any(fault in each for each in watch.faults)

    until(seen)
    watch.allow(".")
