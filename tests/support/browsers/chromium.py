"""The system's Chromium, driven by Playwright, and what no visit to the page may do.

The page's policy forbids `eval`, which Playwright's `page.evaluate` needs: tests use locators, else `said_by`.
"""

import contextlib
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from playwright.sync_api import Browser, BrowserContext, ConsoleMessage, Page, sync_playwright

from tests.support.server_process import clean_env

# Its own sandbox needs a user that is not root.
ARGUMENTS = ("--no-sandbox", "--disable-dev-shm-usage")
NO_HOST_IS_ELSEWHERE = (
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1, EXCLUDE localhost, EXCLUDE *.localhost"
)
ANY_HOST_IS_HERE = "--host-resolver-rules=MAP * 127.0.0.1"
# A green picture with a moving dial instead of a camera's, and no question before it or before a screen is shown.
FAKE_CAMERA = ("--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream")


def program() -> str | None:
    """The system's Chromium, or another browser of its kind."""
    return next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@contextlib.contextmanager
def chromium(path: str, *arguments: str) -> Iterator[Browser]:
    """A running browser, without a window."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=[*ARGUMENTS, *arguments])
        try:
            yield browser
        finally:
            browser.close()


@contextlib.contextmanager
def with_profile(path: str, home: Path, *arguments: str) -> Iterator[BrowserContext]:
    """The same with the profile and the trust store that are in `home`."""
    with sync_playwright() as playwright:
        context = playwright.chromium.launch_persistent_context(
            home / "profile", executable_path=path, args=[*ARGUMENTS, *arguments], env=clean_env({"HOME": str(home)})
        )
        try:
            yield context
        finally:
            context.close()


def said_by(page: Page, expression: str) -> Any:
    """The value of a JavaScript expression, asked by the debugger, to which the page's policy does not apply."""
    session = page.context.new_cdp_session(page)
    try:
        answer = session.send(
            "Runtime.evaluate", {"expression": expression, "awaitPromise": True, "returnByValue": True}
        )
    finally:
        session.detach()
    assert "exceptionDetails" not in answer, answer["exceptionDetails"]
    return answer["result"].get("value")


class Watch:
    """What pages of a context did that none may do: an error, one of the policy, a request to elsewhere."""

    def __init__(self, context: BrowserContext, origin: str):
        self._origin = origin
        self._allowed: list[str] = []
        self._seen: list[str] = []
        self.requests = 0
        context.on("console", self._console)
        context.on("weberror", lambda event: self._seen.append(f"error: {event.error}"))
        context.on("request", lambda request: self._asked(request.url))
        context.on("page", lambda page: page.on("websocket", lambda socket: self._asked(socket.url)))

    def allow(self, pattern: str) -> None:
        """From now on, and before, an error that has this regular expression is none."""
        self._allowed.append(pattern)

    def also(self, origin: str) -> None:
        """Take another server for the page's own too."""
        self._allowed.append(f"^request: {re.escape(origin)}")

    @property
    def faults(self) -> list[str]:
        """What has not been allowed."""
        return [each for each in self._seen if not any(re.search(pattern, each) for pattern in self._allowed)]

    def _console(self, message: ConsoleMessage) -> None:
        if message.type in {"error", "warning"}:
            self._seen.append(f"{message.type}: {message.text} ({message.location.get('url', '')})")

    def _asked(self, url: str) -> None:
        self.requests += 1
        own = (self._origin, self._origin.replace("http", "ws", 1), "data:", "blob:")
        if not url.startswith(own):
            self._seen.append(f"request: {url}")
