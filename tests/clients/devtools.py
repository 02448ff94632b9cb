"""A page in a running Chromium, asked through the Chrome DevTools Protocol."""

import contextlib
import json
import subprocess
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from websockets.sync.client import ClientConnection, connect

from tests.support.server_process import until


class Page:
    """The open page."""

    def __init__(self, socket: ClientConnection):
        self._socket = socket
        self._sent = 0

    def evaluate(self, expression: str) -> Any:
        """The value of a JavaScript expression; raises `AssertionError` where it throws."""
        self._sent += 1
        params = {"expression": expression, "returnByValue": True, "awaitPromise": True}
        self._socket.send(json.dumps({"id": self._sent, "method": "Runtime.evaluate", "params": params}))
        while (answer := json.loads(self._socket.recv(timeout=60))).get("id") != self._sent:
            pass
        assert "exceptionDetails" not in answer["result"], answer
        return answer["result"]["result"].get("value")

    def text(self, selector: str) -> str:
        """What a reader sees of an element."""
        return str(self.evaluate(f"document.querySelector({json.dumps(selector)})?.innerText ?? ''"))


@contextlib.contextmanager
def visiting(command: Sequence[str], profile: Path, url: str, env: Mapping[str, str]) -> Iterator[Page]:
    """Opens `url`; the browser ends with the block."""
    port_file = profile / "DevToolsActivePort"
    port_file.unlink(missing_ok=True)
    browser = subprocess.Popen([*command, "--remote-debugging-port=0", url], env=env, stderr=subprocess.DEVNULL)
    try:
        until(lambda: port_file.exists() and port_file.read_text().count("\n") >= 1)
        port = int(port_file.read_text().split()[0])
        until(lambda: bool(_pages(port, url)))
        with connect(_pages(port, url)[0], max_size=None, compression=None) as socket:
            yield Page(socket)
    finally:
        browser.terminate()
        browser.wait()


def _pages(port: int, url: str) -> list[str]:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/json/list", timeout=60) as answer:
        targets = json.load(answer)
    return [each["webSocketDebuggerUrl"] for each in targets if each["type"] == "page" and each["url"].startswith(url)]
