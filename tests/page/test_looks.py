"""How the page looks: pictures of it at four widths in three dresses, nothing cut off, and nothing that axe objects to.

The pictures are kept in the folder that PAGE_LOOKS names, else in `.cache/looks`: look at them after a change.
"""

import contextlib
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, FloatRect, Page, expect

from tests.clients.kit import npm_ci
from tests.page.conftest import Visits
from tests.page.packages import JS, MODULES
from tests.support.browsers.chromium import ARGUMENTS, NO_HOST_IS_ELSEWHERE, program, said_by
from tests.support.server_process import Server

LOOKS = Path(os.environ.get("PAGE_LOOKS", Path(__file__).parents[2] / ".cache" / "looks"))
SIZES = {1440: (1440, 900), 1280: (1280, 800), 390: (390, 844), 320: (320, 640)}
DRESSES = {
    "light": {"scheme": "light"},
    "dark": {"scheme": "dark"},
    "forced": {"scheme": "dark", "forced_colors": "active"},
}


def generated(page: Page) -> None:
    page.get_by_role("button", name="Generate").click()
    expect(page.locator("#said")).to_contain_text("seed")


def opened(page: Page) -> None:
    expect(page.locator("[data-state=READY]")).to_be_attached()


def keys(page: Page) -> None:
    page.get_by_role("button", name="Keys").click()
    expect(page.get_by_role("dialog", name="Keys")).to_be_visible()


def refused(page: Page) -> None:
    page.locator("#strength").fill("7")
    page.get_by_role("button", name="Generate").click()
    expect(page.locator("#strength")).to_have_attribute("aria-invalid", "true")


def more(page: Page) -> None:
    page.get_by_text("More", exact=True).click()


def live(page: Page) -> None:
    page.get_by_role("button", name="Live", exact=True).click()
    expect(page.locator("#said")).to_have_text("Live")


def failed(page: Page) -> None:
    _told(page, {"state": "SETUP_FAILED", "detail": "No weights. Hint: `fourstep pull sd15`"})
    expect(page.get_by_role("button", name="Copy", exact=True)).to_be_visible()


def gone(page: Page) -> None:
    page.route("**/health", lambda route: route.abort())
    expect(page.locator(".notice", has_text="Not reachable")).to_be_visible()


def locked(page: Page) -> None:
    page.route("**/stream", lambda route: route.fulfill(status=401, json={"detail": "no"}))
    page.get_by_role("button", name="Generate").click()
    expect(page.get_by_label("API key")).to_be_visible()


def grid(page: Page) -> None:
    page.get_by_role("button", name="Grid").click()
    dialog = page.get_by_role("dialog", name="Grid")
    dialog.get_by_role("textbox").first.fill("0.5, nonsense")
    dialog.get_by_role("button", name="Make").click()
    expect(dialog.locator("[aria-invalid=true]")).to_be_visible()


def code(page: Page) -> None:
    page.get_by_role("button", name="Code").click()
    expect(page.locator("#code-program")).to_be_visible()


def share(page: Page) -> None:
    said_by(page, "Object.defineProperty(navigator, 'clipboard', { value: undefined })")
    page.get_by_role("button", name="Share").click()
    expect(page.get_by_role("dialog", name="Share")).to_be_visible()


def compared(page: Page) -> None:
    generated(page)
    page.get_by_role("button", name="Compare").click()
    expect(page.get_by_role("button", name="Compare")).to_have_attribute("aria-pressed", "true")


def queued(page: Page) -> None:
    page.get_by_role("button", name="Queue", exact=True).click()
    expect(page.get_by_role("list", name="Jobs in the queue")).to_be_visible()


def docs(page: Page) -> None:
    page.goto(page.url.rstrip("/") + "/docs")
    for call in (page.locator("details.call").nth(at) for at in (0, 1, 2)):
        call.locator("summary").click()
    page.get_by_role("button", name="Send").first.click()
    expect(page.locator("[role=status] img")).to_be_visible()


def insecure(page: Page) -> None:
    page.goto(page.url.rstrip("/") + "/trust")
    expect(page.locator("#how")).to_contain_text("--tls-port")


def trust(page: Page) -> None:
    local_ca = {"certificate": "https://127.0.0.1:8443/trust/ca.pem", "sha256": "AB:CD", "names": ["127.0.0.1"]}
    page.route("**/openapi.json", lambda route: route.fulfill(json=route.fetch().json() | {"x-local-ca": local_ca}))
    page.goto(page.url.rstrip("/") + "/trust")
    expect(page.locator("#secure")).to_be_visible()


def _told(page: Page, patch: dict[str, str]) -> None:
    page.route("**/health", lambda route: route.fulfill(json=route.fetch().json() | patch))


STATES: dict[str, Callable[[Page], None]] = {
    each.__name__: each
    for each in (
        *(opened, generated, compared, queued, more, refused, live, failed, gone, locked),
        *(keys, grid, code, share, docs, insecure, trust),
    )
}


def overflow(page: Page) -> int:
    """The CSS pixels by which the page is wider than its window."""
    return int(said_by(page, "document.documentElement.scrollWidth - document.documentElement.clientWidth"))


def objections(page: Page) -> list[str]:
    """What axe has to say of the page, at every level."""
    npm_ci(JS)
    said_by(page, (MODULES / "axe-core" / "axe.min.js").read_text() + ";0")
    found = said_by(page, "axe.run({resultTypes: ['violations']}).then(({violations}) => violations)")
    return [f"{each['id']} ({each['impact']}): {node['html'][:160]}" for each in found for node in each["nodes"]]


@pytest.fixture
def looked(visit) -> Callable[..., Page]:
    """Opens the page in a size and a dress; what its states provoke is no fault."""

    def opens(width: int, dress: str, **options: object) -> Page:
        page = visit(size=SIZES[width], phone=width < 900, **DRESSES[dress], **options)
        visit.allow("status of 4|ERR_FAILED")
        opened(page)
        return page

    return opens


@pytest.mark.parametrize("dress", DRESSES)
@pytest.mark.parametrize("width", SIZES)
def test_the_page_fits_its_window_and_is_kept_as_a_picture(width: int, dress: str, looked):
    page = looked(width, dress)
    generated(page)
    LOOKS.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=LOOKS / f"{width}-{dress}.png")
    page.screenshot(path=LOOKS / f"{width}-{dress}-whole.png", full_page=True)

    assert overflow(page) == 0


@pytest.fixture(scope="module")
def large_text(browser: Browser) -> Iterator[Browser]:
    """A browser whose owner has set text of twice the size."""
    arguments = [*ARGUMENTS, NO_HOST_IS_ELSEWHERE, "--blink-settings=defaultFontSize=32"]
    large = browser.browser_type.launch(executable_path=program(), args=arguments)
    yield large
    large.close()


@pytest.mark.parametrize("width", [1280, 390, 320])
def test_the_page_fits_its_window_with_text_of_twice_the_size(width: int, large_text: Browser, server: Server):
    with contextlib.ExitStack() as stack:
        visits = Visits(large_text, lambda: server.url, stack)
        page = visits(size=SIZES[width], phone=width < 900)
        opened(page)
        generated(page)
        LOOKS.mkdir(parents=True, exist_ok=True)
        page.screenshot(path=LOOKS / f"{width}-twice.png", full_page=True)

        assert overflow(page) == 0
        assert box(page, "#prompt")["width"] > width * 0.7
        assert box(page, ".tools")["width"] < box(page, ".in")["width"] + 1


def box(page: Page, selector: str) -> FloatRect:
    found = page.locator(selector).bounding_box()
    assert found is not None
    return found


@pytest.mark.parametrize("size", [(390, 844), (320, 640), (844, 390)])
def test_a_phone_shows_both_pictures_whole_above_its_foot(size: tuple[int, int], visit):
    page = visit(size=size, phone=True)
    opened(page)
    generated(page)
    foot = box(page, ".ask")["y"]

    for each in (".in", ".out"):
        square, row = box(page, f"{each} .square"), box(page, f"{each} > .bar")
        assert square["y"] + square["height"] <= foot
        assert row["height"] < 45
        assert 0 <= row["x"] <= row["x"] + row["width"] <= size[0]
    assert overflow(page) == 0


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize(("width", "dress"), [pytest.param(1280, "light", marks=pytest.mark.long), (390, "dark")])
def test_axe_objects_to_nothing(state: str, width: int, dress: str, looked):
    page = looked(width, dress)
    STATES[state](page)
    LOOKS.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=LOOKS / f"{state}-{width}-{dress}.png")

    assert objections(page) == []


def test_what_axe_objects_to_is_found(page: Page):
    said_by(page, "document.body.append(document.createElement('input'))")

    assert any(re.match(r"label \(critical\)", each) for each in objections(page))


@pytest.mark.parametrize("width", [1280, 390, 320])
def test_every_target_is_large_enough_for_a_finger(width: int, looked):
    page = looked(width, "light")
    boxes = [each.bounding_box() for each in page.locator("button:visible, summary:visible, select:visible").all()]

    small = [box for box in boxes if box and min(box["width"], box["height"]) < 43.9]
    assert len(boxes) > 5
    assert small == []


@pytest.mark.parametrize("row", [".in > .bar", ".out > .bar"])
@pytest.mark.parametrize("dress", DRESSES)
def test_on_the_narrowest_screen_each_row_of_buttons_is_one_line(dress: str, row: str, looked):
    buttons = looked(320, dress).locator(f"{row} button").all()

    assert len({round(box["y"]) for button in buttons if (box := button.bounding_box())}) == 1
