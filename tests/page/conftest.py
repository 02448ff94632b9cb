"""The page in the system's Chromium. A module shares one browser and one server; each test has a context of its own.

A test fails when its page says an error or a warning in the console, breaks the policy, or asks anyone but its server.
What a test provokes it allows: `visit.allow("status of 429")`.
"""

import contextlib
import io
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import Browser, BrowserContext, Locator, Page, expect

from tests.support.browsers.chromium import FAKE_CAMERA, NO_HOST_IS_ELSEWHERE, Watch, chromium, program
from tests.support.server_process import Server, serving

# Of a small camera's kind: what there is to ask for permission, and what a page may put on the clipboard.
PERMISSIONS = ("camera", "clipboard-read", "clipboard-write")
DESKTOP, PHONE = (1280, 800), (390, 844)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """One browser for a module: its event loop would be in the way of other modules' tests that are asynchronous."""
    path = program()
    if path is None:
        pytest.skip("needs Chromium")
    expect.set_options(timeout=20_000)
    with chromium(path, NO_HOST_IS_ELSEWHERE, *FAKE_CAMERA) as browser:
        yield browser


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """The engine that sends back what it gets, 20 ms a picture; shared by tests that leave it as they found it."""
    with serving("--model", "instant+jpeg:20") as server:
        yield server


@pytest.fixture(scope="module")
def slow() -> Iterator[Server]:
    """The same with two seconds a picture, one after the other: time for previews, to cancel, to wait in the queue."""
    with serving("--model", "instant+jpeg:2000", "--max-batch", "1") as server:
        yield server


def closed(context: BrowserContext) -> None:
    """Close a context; an answer that a test makes in place of the server's may just be on its way."""
    for page in context.pages:
        page.unroute_all(behavior="ignoreErrors")
    context.close()


class Visits:
    """Opens pages, each with a fresh profile, and knows what they did that none may do."""

    def __init__(self, browser: Browser, server: Callable[[], str], stack: contextlib.ExitStack):
        self._browser = browser
        self._server = server
        self._stack = stack
        self.watches: list[Watch] = []

    def __call__(
        self,
        url: str = "",
        *,
        size: tuple[int, int] = DESKTOP,
        scheme: str = "light",
        phone: bool = False,
        permissions: Sequence[str] = PERMISSIONS,
        **options: Any,
    ) -> Page:
        """Open a URL, or a path of the module's server.

        `phone`: touch, and two device pixels for one; `options`: further ones of Playwright's `new_context`.
        """
        base = self._server() if not url.startswith("http") else ""
        width, height = PHONE if phone and size == DESKTOP else size
        touch = {"has_touch": True, "is_mobile": True, "device_scale_factor": 2} if phone else {}
        context = self._browser.new_context(
            viewport={"width": width, "height": height},
            color_scheme=scheme,
            permissions=[*permissions],
            **touch,
            **options,
        )
        self._stack.callback(closed, context)
        self.watches.append(Watch(context, base or "/".join(url.split("/")[:3])))
        page = context.new_page()
        page.on("filechooser", lambda _: None)  # Playwright hears of one only once it has been told to
        page.goto(f"{base}/{url.lstrip('/')}" if base else url)
        if page.locator("section.in").count():  # its form comes first
            page.get_by_role("group", name="Source").wait_for()
        return page

    def allow(self, pattern: str) -> None:
        """Expect an error of the last page's, by a regular expression."""
        self.watches[-1].allow(pattern)


@pytest.fixture
def visit(browser: Browser, request: pytest.FixtureRequest) -> Iterator[Visits]:
    """Opens pages: `visit()`, `visit(slow.url)`, `visit(phone=True)`, `visit(size=(320, 640), scheme="dark")`."""
    with contextlib.ExitStack() as stack:
        visits = Visits(browser, lambda: request.getfixturevalue("server").url, stack)
        yield visits
        faults = [fault for watch in visits.watches for fault in watch.faults]
    assert faults == []


@pytest.fixture
def page(visit: Visits) -> Page:
    """The page at 1280×800, its server ready."""
    page = visit()
    expect(page.locator("[data-state=READY]")).to_be_visible()
    return page


def pixels(locator: Locator) -> np.ndarray:
    """What is seen of an element, as it is painted: (height, width, 3), uint8."""
    return np.asarray(Image.open(io.BytesIO(locator.screenshot())).convert("RGB"))


def colour(locator: Locator, x: float = 0.5, y: float = 0.5) -> tuple[int, ...]:
    """The colour of an element at a share of its width and height."""
    seen = pixels(locator)
    height, width = seen.shape[:2]
    return tuple(int(value) for value in seen[int(y * (height - 1)), int(x * (width - 1))])
