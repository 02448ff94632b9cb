"""Chromium: what it thinks of the local CA, and a page of another origin that uses the API.

The browser's trust store and profile are the test's own.
"""

import contextlib
import re
import shutil
import subprocess
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from pipelines.engine.instant import SIDE
from server.settings import Settings
from server.transport import tls
from tests.clients.devtools import Page, visiting
from tests.support.certificates import answering, rogue_context
from tests.support.path_proxy import under_a_path
from tests.support.server_process import clean_env, serving, until

ERROR = re.compile(r"net::(ERR_\w+)")
ANY_HOST_IS_HERE = "--host-resolver-rules=MAP * 127.0.0.1"


class Browser:
    """Chromium with a home of its own."""

    def __init__(self, program: str, home: Path):
        self.home = home
        self._certutil = ["certutil", "-d", f"sql:{home / '.pki' / 'nssdb'}"]
        (home / ".pki" / "nssdb").mkdir(parents=True)
        subprocess.run([*self._certutil, "-N", "--empty-password"], check=True)
        quiet = (
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-dev-shm-usage",
            "--disable-background-networking",
        )
        self.profile = home / "profile"
        self.command = [program, *quiet, f"--user-data-dir={self.profile}"]

    def trust(self, ca: Path) -> None:
        """Do what the trust instructions say for Chromium on Linux."""
        subprocess.run([*self._certutil, "-A", "-t", "C,,", "-n", "fourstep", "-i", str(ca)], check=True)

    def open(self, url: str) -> str:
        """The page, or the name of the error; every host name leads to loopback."""
        command = [*self.command, ANY_HOST_IS_HERE, "--dump-dom", url]
        done = subprocess.run(command, env=self._env, capture_output=True, text=True, timeout=60, check=False)
        error = ERROR.search(done.stderr + done.stdout)  # newer ones say it on their own page
        return error[1] if error else done.stdout

    def visiting(self, url: str) -> AbstractContextManager[Page]:
        """The page for as long as the block lasts, to wait for what its script does."""
        return visiting(self.command, self.profile, url, self._env)

    @property
    def _env(self) -> dict[str, str]:
        return clean_env({"HOME": str(self.home)})


@pytest.fixture
def browser(tmp_path):
    program = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if program is None or shutil.which("certutil") is None:
        pytest.skip("needs Chromium and certutil (libnss3-tools)")
    return Browser(program, tmp_path / "home")


@pytest.fixture
def files(tmp_path):
    return tls.ensure(Settings(data_dir=tmp_path / "data"))


@pytest.fixture
def trusting(browser, files):
    browser.trust(files.ca)
    return browser


@pytest.mark.parametrize("name", ["fal.run", "localhost", "110602490-lcm-sd15-i2i.gateway.alpha.fal.ai"])
def test_chromium_accepts_the_certificate_for(name, trusting, files):
    with answering(tls.server_context(files)) as port:
        assert "<title>hello</title>" in trusting.open(f"https://{name}:{port}/")


def test_chromium_refuses_what_the_stolen_key_signs_outside_the_names(trusting, files):
    with answering(rogue_context(files, "example.com")) as port:
        assert trusting.open(f"https://example.com:{port}/") == "ERR_CERT_INVALID"


def test_chromium_takes_the_stolen_key_for_other_names_of_fal(trusting, files):
    with answering(rogue_context(files, "other.fal.run")) as port:
        assert "<title>hello</title>" in trusting.open(f"https://other.fal.run:{port}/")


def test_chromium_refuses_the_certificate_when_it_was_not_told(browser, files):
    with answering(tls.server_context(files)) as port:
        assert browser.open(f"https://fal.run:{port}/") == "ERR_CERT_AUTHORITY_INVALID"


def test_a_page_of_another_origin_runs_uploads_and_opens_a_socket(browser, takeover):
    browser.trust(Path(takeover.clients.env["NODE_EXTRA_CA_CERTS"]))

    [said] = takeover.clients.py("page.py", browser=browser.command, home=str(browser.home))

    assert said.pop("requestId")
    assert said == {"seed": 7, "put": 200, "stored": "hello", "realtime": "page", "closed": 1000}


def test_the_playground_shows_how_the_server_is(browser, instant):
    with browser.visiting(instant.url) as page:
        until(lambda: "No model is loaded" in page.text("#notice"))

        assert page.text("#state").startswith("READY")


def test_generate_shows_the_picture_that_came_out(browser, instant):
    with browser.visiting(instant.url) as page:
        until(lambda: page.text("#state").startswith("READY"))
        page.evaluate("document.querySelector('[name=seed]').value = 7")
        page.evaluate("document.querySelector('#form button').click()")
        until(lambda: "seed 7" in page.text("#said"))

        assert page.evaluate("document.querySelector('#after').decode().then(() => after.naturalWidth)") == SIDE


def test_generate_wakes_an_unloaded_engine_and_the_page_shows_it(browser):
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(serving("--model", "instant", "--idle-unload", "0.05"))
        until(lambda: server.get("/health")["state"] == "UNLOADED")
        page = stack.enter_context(browser.visiting(server.url))
        until(lambda: page.text("#state").startswith("UNLOADED"))
        page.evaluate("document.querySelector('#form button').click()")
        until(lambda: "seed" in page.text("#said"))

        until(lambda: page.text("#state").startswith("READY"))


def test_the_page_works_under_a_path_of_a_proxy(browser):
    with contextlib.ExitStack() as stack:
        url = stack.enter_context(under_a_path(lambda: int(server.url.rpartition(":")[2])))
        server = stack.enter_context(serving("--model", "instant", "--public-url", url))
        page = stack.enter_context(browser.visiting(url))
        until(lambda: page.text("#state").startswith("READY"))
        page.evaluate("document.querySelector('#form button').click()")
        until(lambda: page.text("#said") not in ("", "…"))

        assert "seed" in page.text("#said")
        assert page.evaluate("before.naturalWidth") > 0
        assert page.evaluate("getComputedStyle(document.querySelector('main')).display") == "grid"


def test_generate_says_what_the_server_refused(browser, instant):
    with browser.visiting(instant.url) as page:
        until(lambda: page.text("#state").startswith("READY"))
        page.evaluate("form.noValidate = true; document.querySelector('[name=strength]').value = 7")
        page.evaluate("document.querySelector('#form button').click()")
        until(lambda: page.text("#said") not in ("", "…"))

        assert page.evaluate("said.className") == "wrong"
        assert "strength" in page.text("#said")
