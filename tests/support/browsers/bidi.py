"""A page in Firefox, driven by the browser's own WebDriver BiDi (JSON over one websocket), and what no page may do.

Playwright drives no Firefox but its own. The page's policy does not apply to what BiDi evaluates.
"""

import base64
import contextlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from websockets.sync.client import ClientConnection, connect

from tests.support.browsers.firefox import firefox
from tests.support.server_process import until

EVENTS = ["log.entryAdded", "network.beforeRequestSent", "network.responseCompleted"]
# WebDriver's code points of the keys that are no letters.
KEYS = {"Control": "\ue009", "Enter": "\ue007", "Escape": "\ue00c"}


@contextlib.contextmanager
def driven(path: str, home: Path, preferences: dict[str, Any]) -> Iterator["Driver"]:
    """A running browser that does as it is told; what it downloads goes to `home/downloads`."""
    saves = {"browser.download.folderList": 2, "browser.download.dir": str(home / "downloads")}
    arguments = ("--remote-debugging-port=0", "--remote-allow-system-access")
    with firefox(path, home, *arguments, preferences=saves | preferences) as profile:
        until((profile / "WebDriverBiDiServer.json").exists)
        port = json.loads((profile / "WebDriverBiDiServer.json").read_text())["ws_port"]
        with connect(f"ws://127.0.0.1:{port}/session", max_size=None) as connection:
            driver = Driver(connection, home / "downloads")
            driver.ask("session.new", capabilities={})
            driver.ask("session.subscribe", events=EVENTS)
            yield driver


class Driver:
    """Asks the browser, and keeps what it tells meanwhile."""

    def __init__(self, connection: ClientConnection, downloads: Path):
        self._connection = connection
        self._asked = 0
        self.downloads = downloads
        self.events: list[dict[str, Any]] = []

    def ask(self, method: str, **params: Any) -> Any:
        """The result of a command. Raises `AssertionError` with the browser's own words."""
        self._asked += 1
        self._connection.send(json.dumps({"id": self._asked, "method": method, "params": params}))
        while True:
            told = json.loads(self._connection.recv(60))
            if told["type"] == "event":
                self.events.append(told)
            elif told["id"] == self._asked:
                assert told["type"] == "success", f"{method}: {told['error']}: {told['message']}"
                return told["result"]

    def tab(self, size: tuple[int, int]) -> "Tab":
        """A tab of a fresh profile; `size`: of its window, in CSS pixels."""
        user = self.ask("browser.createUserContext")["userContext"]
        tab = Tab(self, self.ask("browsingContext.create", type="tab", userContext=user)["context"], user)
        tab.resize(size)
        return tab

    def prefer(self, name: str, value: int) -> None:
        """Change a preference, as a person may on that page."""
        tab = self.tab((1280, 800))
        tab.goto("about:config")
        tab.said(f"Services.prefs.setIntPref({json.dumps(name)}, {value})")
        tab.close()


class Tab:
    """A page, and what it did that none may do: an error, one of its policy, a request to elsewhere."""

    def __init__(self, driver: Driver, context: str, user: str):
        self._driver = driver
        self._context = context
        self._user = user
        self._since = len(driver.events)
        self._allowed: list[str] = []
        self._origin = ""

    def ask(self, method: str, **params: Any) -> Any:
        """The result of a command on this tab."""
        return self._driver.ask(method, context=self._context, **params)

    def resize(self, size: tuple[int, int]) -> None:
        """Make its window as large as that, in CSS pixels."""
        self.ask("browsingContext.setViewport", viewport=dict(zip(("width", "height"), size, strict=True)))

    def goto(self, url: str) -> None:
        """Open a URL; its origin may be asked from then on."""
        self._origin = "/".join(url.split("/")[:3])
        self.ask("browsingContext.navigate", url=url, wait="complete")

    def reload(self) -> None:
        """Load the page again."""
        self.ask("browsingContext.reload", wait="complete")

    def close(self) -> None:
        """Close the tab and forget its profile."""
        self._driver.ask("browser.removeUserContext", userContext=self._user)

    def said(self, expression: str) -> Any:
        """The value of a JavaScript expression, or what its promise gives; of the kinds that JSON has."""
        told = self._driver.ask(
            "script.evaluate",
            expression=f"Promise.resolve({expression}).then((value) => JSON.stringify(value ?? null))",
            target={"context": self._context},
            awaitPromise=True,
            userActivation=True,
        )
        assert told["type"] == "success", told["exceptionDetails"]["text"]
        return json.loads(told["result"]["value"])

    def becomes(self, expression: str) -> None:
        """Wait until an expression is true."""
        with contextlib.suppress(AssertionError):
            return until(lambda: self.said(f"Boolean({expression})"), 20)
        raise AssertionError(f"never: {expression}; the page says: {self.said('document.body.innerText')}")

    def says(self, words: str, css: str = "#said") -> None:
        """Wait until an element's text has a regular expression."""
        self.becomes(f"RegExp({json.dumps(words)}).test(document.querySelector({json.dumps(css)})?.textContent ?? '')")

    def find(self, css: str) -> dict[str, Any]:
        """Wait for the first element of a selector."""
        return self._located({"type": "css", "value": css})

    def _located(self, locator: dict[str, Any]) -> dict[str, Any]:
        nodes: list[dict[str, Any]] = []

        def found() -> bool:
            nodes[:] = self.ask("browsingContext.locateNodes", locator=locator, maxNodeCount=1)["nodes"]
            return bool(nodes)

        with contextlib.suppress(AssertionError):
            until(found, 20)
        assert nodes, f"no {locator['value']}; the page says: {self.said('document.body.innerText')}"
        return {"sharedId": nodes[0]["sharedId"]}

    def press(self, name: str, role: str = "button") -> None:
        """Click what has a role and an accessible name."""
        self.point(self._located({"type": "accessibility", "value": {"role": role, "name": name}}), (0, 0))

    def point(self, element: dict[str, Any], *points: tuple[int, int], by: str = "mouse") -> None:
        """Go through points with the button down, counted from the middle of an element, which comes into sight."""
        self._driver.ask(
            "script.callFunction",
            functionDeclaration='(element) => element.scrollIntoView({ block: "nearest", behavior: "instant" })',
            arguments=[element],
            target={"context": self._context},
            awaitPromise=False,
        )
        origin = {"type": "element", "element": element}
        first, *others = ({"type": "pointerMove", "x": x, "y": y, "origin": origin} for x, y in points)
        down, up = ({"type": act, "button": 0} for act in ("pointerDown", "pointerUp"))
        pointer = {"type": "pointer", "id": by, "parameters": {"pointerType": by}}
        self.ask("input.performActions", actions=[pointer | {"actions": [first, down, *others, up]}])

    def keys(self, *names: str) -> None:
        """Press keys together: letters, or names of `KEYS`."""
        values = [KEYS.get(name, name) for name in names]
        down = [{"type": "keyDown", "value": value} for value in values]
        up = [{"type": "keyUp", "value": value} for value in reversed(values)]
        self.ask("input.performActions", actions=[{"type": "key", "id": "keys", "actions": [*down, *up]}])

    def picture(self, css: str = "", *, whole: bool = False) -> bytes:
        """What is seen, of one element or of the `whole` page, as PNG."""
        clip = {"clip": {"type": "element", "element": self.find(css)}} if css else {}
        origin = "document" if whole else "viewport"
        return base64.b64decode(self.ask("browsingContext.captureScreenshot", origin=origin, **clip)["data"])

    def allow(self, pattern: str) -> None:
        """A fault that has this regular expression is none."""
        self._allowed.append(pattern)

    @property
    def faults(self) -> list[str]:
        """What has not been allowed."""
        self._driver.ask("session.status")  # what has happened before is told before this answer
        seen = filter(None, map(self._fault, self._driver.events[self._since :]))
        return [each for each in seen if not any(re.search(pattern, each) for pattern in self._allowed)]

    def _fault(self, event: dict[str, Any]) -> str:
        params = event["params"]
        if params.get("source", params)["context"] != self._context:
            return ""
        if event["method"] == "log.entryAdded":
            return f"{params['level']}: {params['text']}" if params["level"] in {"error", "warn"} else ""
        url = params["request"]["url"]
        if event["method"] == "network.responseCompleted":
            status = params["response"]["status"]
            return f"status of {status}: {url}" if status >= 400 else ""
        own = url.startswith((self._origin, self._origin.replace("http", "ws", 1), "data:", "blob:", "about:"))
        return "" if own else f"request: {url}"
