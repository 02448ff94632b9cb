"""Chromium: what it thinks of the local CA, and a page of another origin that uses the API.

The browser's trust store and profile are the test's own.
"""

import json
import re
import shutil
import subprocess
import urllib.parse
from pathlib import Path

import pytest

from server import tls
from server.settings import Settings
from tests.certificates import answering, rogue_context
from tests.clients.conftest import KEY
from tests.harness import clean_env

PAGE = Path(__file__).with_name("page.html")
ERROR = re.compile(r"net::(ERR_\w+)")


@pytest.fixture
def browse(tmp_path):
    """Open a URL in a browser that trusts `ca`, if any; return the page as it stands, or the name of the error."""
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if chromium is None or shutil.which("certutil") is None:
        pytest.skip("needs Chromium and certutil (libnss3-tools)")
    store = tmp_path / ".pki" / "nssdb"
    store.mkdir(parents=True)
    certutil = ["certutil", "-d", f"sql:{store}"]
    subprocess.run([*certutil, "-N", "--empty-password"], check=True)

    def browse(url: str, ca: Path | None = None, *flags: str, wrap=list) -> str:
        if ca is not None:
            subprocess.run([*certutil, "-A", "-t", "C,,", "-n", "fourstep", "-i", str(ca)], check=True)
        command = [
            chromium,
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-dev-shm-usage",
            "--disable-background-networking",
            f"--user-data-dir={tmp_path / 'profile'}",
            *flags,
            "--dump-dom",
            url,
        ]
        env = clean_env({"HOME": str(tmp_path)})
        done = subprocess.run(wrap(command), env=env, capture_output=True, text=True, timeout=60, check=False)
        error = ERROR.search(done.stderr)
        return error[1] if error else done.stdout

    return browse


@pytest.fixture
def files(tmp_path):
    return tls.ensure(Settings(data_dir=tmp_path / "data"))


ANY_HOST_IS_HERE = "--host-resolver-rules=MAP * 127.0.0.1"


@pytest.mark.parametrize("name", ["fal.run", "localhost", "110602490-lcm-sd15-i2i.gateway.alpha.fal.ai"])
def test_chromium_accepts_the_certificate_for(name, browse, files):
    with answering(tls.server_context(files)) as port:
        assert "<title>hello</title>" in browse(f"https://{name}:{port}/", files.ca, ANY_HOST_IS_HERE)


def test_chromium_refuses_what_the_stolen_key_signs_outside_the_names(browse, files):
    with answering(rogue_context(files, "example.com")) as port:
        assert browse(f"https://example.com:{port}/", files.ca, ANY_HOST_IS_HERE) == "ERR_CERT_INVALID"


def test_chromium_takes_the_stolen_key_for_other_names_of_fal(browse, files):
    with answering(rogue_context(files, "other.fal.run")) as port:
        assert "<title>hello</title>" in browse(f"https://other.fal.run:{port}/", files.ca, ANY_HOST_IS_HERE)


def test_chromium_refuses_the_certificate_when_it_was_not_told(browse, files):
    with answering(tls.server_context(files)) as port:
        assert browse(f"https://fal.run:{port}/", None, ANY_HOST_IS_HERE) == "ERR_CERT_AUTHORITY_INVALID"


def test_a_page_of_another_origin_runs_uploads_and_opens_a_socket(browse, takeover):
    options = urllib.parse.quote(json.dumps({"key": KEY, "picture": takeover.clients.env["PICTURE"]}))
    ca = Path(takeover.clients.env["NODE_EXTRA_CA_CERTS"])

    page = browse(f"{PAGE.as_uri()}#{options}", ca, "--virtual-time-budget=20000", wrap=takeover.clients.wrap)

    said = json.loads(re.search(r"<pre id=.said.>(.*)</pre>", page)[1])
    assert said.pop("requestId")
    assert said == {"seed": 7, "put": 200, "stored": "hello", "realtime": "page", "closed": 1000}
