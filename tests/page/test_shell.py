"""The page itself: its top, its foot, its policy, what it does when it is opened."""

import pytest
from playwright.sync_api import Page, expect

from tests.support.browsers.chromium import said_by
from tests.support.server_process import until


def test_the_page_says_how_the_server_is(page: Page):
    expect(page.locator(".chip.state")).to_contain_text("READY")
    expect(page.locator(".notice")).to_contain_text("No model is loaded")


def test_a_shared_link_has_the_settings_and_nonsense_in_it_is_left_out(visit):
    page = visit("/#prompt=a+cat&strength=0.35&num_inference_steps=99&guidance_scale=x&seed=12&side=3&num_images=")

    expect(page.locator("#strength")).to_have_value("0.35")
    expect(page.get_by_label("Prompt", exact=True)).to_have_value("a cat")
    expect(page.locator("#num_inference_steps")).to_have_value("4")
    expect(page.locator("#guidance_scale")).to_have_value("1")
    expect(page.get_by_label("Seed", exact=True)).to_have_value("12")
    expect(page.get_by_role("button", name="Keep this seed")).to_have_attribute("aria-pressed", "true")
    expect(page.locator("#side")).to_have_value("512")
    expect(page.locator("#num_images")).to_have_value("1")


@pytest.mark.parametrize("fragment", ["%", "%E0%A4%A", "prompt", "=&=&&", "__proto__=1&constructor=2", "<script>"])
def test_a_link_of_nonsense_alone_opens_the_page(fragment: str, visit):
    page = visit(f"/#{fragment}")
    page.get_by_role("button", name="Generate").click()

    expect(page.locator("#said")).to_contain_text("seed")


def test_the_keys_of_the_page_do_what_their_list_says(page: Page):
    seed = page.get_by_label("Seed", exact=True)
    before = seed.input_value()
    page.keyboard.press("s")
    expect(seed).not_to_have_value(before)
    page.keyboard.press("l")
    expect(page.get_by_role("button", name="Live", exact=True)).to_have_attribute("aria-pressed", "true")
    page.keyboard.press("Escape")
    expect(page.get_by_role("button", name="Live", exact=True)).to_have_attribute("aria-pressed", "false")
    page.keyboard.press("?")
    keys = page.get_by_role("dialog", name="Keys")
    expect(keys).to_contain_text("Generate")
    page.keyboard.press("Escape")
    expect(keys).to_be_hidden()
    page.keyboard.press("Enter")
    expect(page.locator("#said")).to_contain_text("seed")


def test_a_key_is_a_letter_while_somebody_types(page: Page):
    seed = page.get_by_label("Seed", exact=True).input_value()
    page.get_by_label("Prompt", exact=True).fill("")
    page.get_by_label("Prompt", exact=True).press_sequentially("lsxgc?123")

    expect(page.get_by_label("Prompt", exact=True)).to_have_value("lsxgc?123")
    expect(page.get_by_label("Seed", exact=True)).to_have_value(seed)
    expect(page.get_by_role("dialog")).to_have_count(0)
    expect(page.get_by_role("button", name="Live", exact=True)).to_have_attribute("aria-pressed", "false")


def test_a_button_that_has_the_focus_keeps_its_own_enter(page: Page):
    page.get_by_role("button", name="Keep this seed").focus()
    page.keyboard.press("Enter")

    expect(page.get_by_role("button", name="Keep this seed")).to_have_attribute("aria-pressed", "true")
    expect(page.locator("#said")).to_be_empty()


def test_every_module_is_asked_for_with_the_page_and_not_one_after_the_other(page: Page):
    asked = "performance.getEntriesByType('resource').map(each => each.name).filter(name => /[.]m?js$/.test(name))"
    preloaded = "[...document.querySelectorAll('link[rel=modulepreload]')].map(each => each.href)"

    own = {f"{page.url}static/page/{name}" for name in ("app.js", "sources/worker.js")}  # the page's, and a worker's
    assert set(said_by(page, asked)) - own == set(said_by(page, preloaded)) - own


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
