"""A page of another site, in real browsers: in no way must it have a server without keys make a picture."""

import contextlib
import functools
import http.server
import re
import threading
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import pytest

from tests.fuzz.values import data_uri_of, pictures
from tests.support.browsers import firefox
from tests.support.browsers.chromium import ANY_HOST_IS_HERE, chromium, program
from tests.support.server_process import APP, Server, addresses, post, serving, until

ELSEWHERE = "elsewhere.test"
WAYS = 13  # twelve requests and a websocket
# What the test itself asks for, and the balancer of several servers each second.
PROBES = ('route="metrics"', 'route="health"', 'route="ready"')
JPEG = data_uri_of(pictures()["jpeg"])


class Chromium:
    """Opens a page of any host name, all of them here."""

    def __init__(self, _: Path):
        path = program()
        if path is None:
            pytest.skip("needs Chromium")
        self._path = path

    @contextlib.contextmanager
    def showing(self, url: str) -> Iterator[None]:
        """Show the page for the length of the block."""
        with chromium(self._path, ANY_HOST_IS_HERE) as browser:
            browser.new_page().goto(url)
            yield


class Firefox:
    """The same in Firefox."""

    def __init__(self, home: Path):
        path = firefox.program()
        if path is None:
            pytest.skip("needs Firefox")
        self._path = path
        self._home = home

    @contextlib.contextmanager
    def showing(self, url: str) -> Iterator[None]:
        """Show the page for the length of the block."""
        with firefox.firefox(self._path, self._home, url, preferences={"network.dns.localDomains": ELSEWHERE}):
            yield


@pytest.fixture(params=[Chromium, pytest.param(Firefox, marks=pytest.mark.long)])
def browser(request, tmp_path):
    return request.param(tmp_path / "home")


class Quiet(http.server.SimpleHTTPRequestHandler):
    """Serves files, and keeps the paths that were asked for."""

    heard: ClassVar[list[str]] = []

    def log_message(self, *_):
        self.heard.append(self.path)


@contextlib.contextmanager
def page_server(folder: Path) -> Iterator[int]:
    """The port on which the files of a folder are served."""
    handler = functools.partial(Quiet, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_port
        server.shutdown()


def counted(server: Server, metric: str) -> int:
    """The sum of a metric over its labels, but for those of `PROBES`."""
    lines = []
    for url in addresses(server.data_dir):
        with urllib.request.urlopen(f"{url}/metrics", timeout=60) as answer:
            lines += answer.read().decode().splitlines()
    matching = [line for line in lines if re.match(rf"{metric}(\{{|\s)", line)]
    found = [line for line in matching if not any(probe in line for probe in PROBES)]
    return round(sum(float(line.rpartition(" ")[2]) for line in found))


def pictures_made(browser, *flags: str, host: str = ELSEWHERE) -> int:
    """The number of pictures which a page of `host` has a server make; a socket is counted when it is closed."""
    flags = ("--model", "instant", "--session-idle-timeout", "1", *flags)
    with serving(*flags) as server, page_server(Path(__file__).parent) as port:
        before = counted(server, "fourstep_requests_total")
        with browser.showing(f"http://{host}:{port}/foreign_page.html#{server.url}"):
            until(lambda: counted(server, "fourstep_requests_total") >= before + WAYS)
        return counted(server, "fourstep_images_total")


def test_a_page_of_another_site_makes_no_picture(browser):
    assert pictures_made(browser) == 0


def test_where_any_page_may_call_every_way_makes_one(browser):
    assert pictures_made(browser, "--allow-origin", "*") >= 8


def test_a_page_on_another_port_of_this_machine_makes_pictures_by_its_scripts(browser):
    assert pictures_made(browser, host="127.0.0.1") >= 1


def test_a_result_is_shown_on_a_page_of_another_site(browser, tmp_path):
    with serving("--model", "instant+jpeg") as server, page_server(tmp_path) as port:
        url = post(server, f"/run/{APP}", image_url=JPEG, sync_mode=False)["images"][0]["url"]
        (tmp_path / "page.html").write_text(f'<img src="{url}" onload="fetch(`/shown`)" onerror="fetch(`/refused`)">')
        heard = Quiet.heard
        heard.clear()
        with browser.showing(f"http://{ELSEWHERE}:{port}/page.html"):
            until(lambda: "/shown" in heard or "/refused" in heard)

    assert "/shown" in heard
