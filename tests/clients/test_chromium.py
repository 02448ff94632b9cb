"""Chromium: what it thinks of the local CA, and a page of another origin that uses the API.

The browser's trust store and profile are the test's own.
"""

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from playwright.sync_api import Error

from server.settings import Settings
from server.transport import tls
from tests.support.browsers.chromium import ANY_HOST_IS_HERE, program, with_profile
from tests.support.certificates import answering, rogue_context

ERROR = re.compile(r"net::(ERR_\w+)")


class Browser:
    """Chromium with a home of its own."""

    def __init__(self, path: str, home: Path):
        self.path, self.home = path, home
        self._certutil = ["certutil", "-d", f"sql:{home / '.pki' / 'nssdb'}"]
        (home / ".pki" / "nssdb").mkdir(parents=True)
        subprocess.run([*self._certutil, "-N", "--empty-password"], check=True)

    def trust(self, ca: Path) -> None:
        """Do what the trust instructions say for Chromium on Linux."""
        subprocess.run([*self._certutil, "-A", "-t", "C,,", "-n", "fourstep", "-i", str(ca)], check=True)

    def open(self, url: str) -> str:
        """The page, or the name of the error; every host name leads to loopback."""
        with with_profile(self.path, self.home, ANY_HOST_IS_HERE) as context:
            page = context.new_page()
            try:
                page.goto(url)
            except Error as error:
                return ERROR.findall(str(error))[0]
            return page.content()


@pytest.fixture
def browser(tmp_path):
    path = program()
    if path is None or shutil.which("certutil") is None:
        pytest.skip("needs Chromium and certutil (libnss3-tools)")
    return Browser(path, tmp_path / "home")


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

    [said] = takeover.clients.py("page.py", browser=browser.path, home=str(browser.home))

    assert said.pop("requestId")
    assert said == {"seed": 7, "put": 200, "stored": "hello", "realtime": "page", "closed": 1000}
