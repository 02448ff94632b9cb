"""The pages' files and their policy; that they exist on our own names only; the local CA that the server hands out."""

import base64
import gzip
import hashlib
import http.client
import json
import re
import shutil
import ssl
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from server.api import playground
from server.fal.hosts import FAL_HOSTS, FAL_SITE, GATEWAY
from server.settings import Settings
from server.transport import tls
from server.transport.takeover import trust_instructions
from tests.support.app_client import serving
from tests.support.path_proxy import under_a_path

PAGES = ["/", "/docs", "/trust"]
DOCUMENTS = [*PAGES, "/docs/", "/trust/", "/openapi.json", "/trust/ca.pem", "/trust/bundle.pem"]
FILES = [f"/static/{name}" for name in playground._FILES]
OF_FAL = [*FAL_HOSTS, FAL_SITE, f"110602490-lcm-sd15-i2i{GATEWAY}", f"1-x{GATEWAY}"]


def get(server, path):
    """An answer's headers and text."""
    with urllib.request.urlopen(server.url + path, timeout=30) as answer:
        return answer.headers, answer.read().decode("utf-8", "replace")


@pytest.mark.parametrize("path", ["/", "/static/page/app.js", "/static/style/base.css", "/static/beach.jpg"])
def test_a_browser_gets_texts_compressed(instant, path):
    asked = urllib.request.Request(instant.url + path, headers={"Accept-Encoding": "br, gzip"})
    with urllib.request.urlopen(asked, timeout=30) as answer:
        body, coding = answer.read(), answer.headers["Content-Encoding"]
    with urllib.request.urlopen(instant.url + path, timeout=30) as answer:
        plain = answer.read()

    assert coding == (None if path.endswith(".jpg") else "gzip")
    assert plain == (body if coding is None else gzip.decompress(body))


@pytest.mark.parametrize("path", PAGES)
def test_every_file_that_a_page_names_is_served(instant, path):
    _, page = get(instant, path)

    names = set(re.findall(r'"(?:\./)?(static/[^"]+)"', page))
    assert {"static/icon.svg", "static/style/base.css", "static/vendor/preact.mjs"} <= names
    assert all(get(instant, f"/{name}")[1] for name in names)


@pytest.mark.parametrize("page", ["docs", "trust"])
def test_a_slash_behind_a_pages_name_leads_to_it_under_a_path_too(instant, page):
    with under_a_path(lambda: int(instant.url.rpartition(":")[2])) as base:
        found = [urllib.request.urlopen(f"{url}/{page}/", timeout=30) for url in (instant.url, base.rstrip("/"))]
    for answer in found:
        answer.close()

    assert [answer.url for answer in found] == [f"{instant.url}/{page}", f"{base}{page}"]


@pytest.mark.anyio
async def test_two_slashes_lead_to_it_too(tmp_path):
    async with serving(tmp_path) as web:
        answer = await web.call("GET", "/docs//")

    # A browser, unlike Python's urljoin, counts the empty name between two slashes.
    assert (answer.status, answer.headers["location"]) == (307, "../../docs")


@pytest.mark.parametrize("path", [*PAGES, *(path for path in FILES if path.endswith((".js", ".css", ".html")))])
def test_no_link_begins_at_the_hosts_root(instant, path):
    _, text = get(instant, path)

    assert re.findall(r"""(?:href|src|from|import|URL|fetch|at|call)[=(\s]*["'`]/.*|url\(\s*["']?/.*""", text) == []


@pytest.mark.parametrize("path", [*PAGES, "/static/page/app.js", "/static/style/base.css", "/trust/ca.pem"])
def test_nothing_from_elsewhere_may_run_in_a_page(instant, path):
    headers, _ = get(instant, path)

    policy = dict(rule.partition(" ")[::2] for rule in headers["Content-Security-Policy"].split("; "))
    assert re.fullmatch(r"'self' 'sha256-[\w+/]{43}='", policy.pop("script-src"))
    assert policy == {
        "default-src": "'none'",
        "style-src": "'self'",
        "img-src": "'self' data: blob:",
        "media-src": "'self' blob:",
        "connect-src": "'self'",
        "worker-src": "'self'",
        "base-uri": "'none'",
        "form-action": "'none'",
        "frame-ancestors": "'none'",
        "require-trusted-types-for": "'script'",
    }
    assert headers["Permissions-Policy"] == "camera=(self), display-capture=(self), microphone=(), geolocation=()"
    assert headers["X-Content-Type-Options"] == "nosniff"


@pytest.mark.parametrize("path", PAGES)
def test_the_policy_has_the_hash_of_the_import_map(instant, path):
    headers, page = get(instant, path)

    maps = re.findall(r"<script type=\"importmap\">(.*?)</script>", page, re.DOTALL)
    hashes = [base64.b64encode(hashlib.sha256(each.encode()).digest()).decode() for each in maps]
    assert all(f"'sha256-{each}'" in headers["Content-Security-Policy"] for each in hashes)
    assert len(re.findall(r"<script(?! type=\"module\" src=)", page)) == len(maps)


def test_another_byte_in_the_import_map_is_another_hash(tmp_path):
    page = shutil.copy(playground._FILES["index.html"], tmp_path)
    text = Path(page).read_text()
    before = playground._policy({"index.html": Path(page)})
    Path(page).write_text(text.replace('"imports": {', '"imports":  {'))

    assert playground._policy({"index.html": Path(page)}) != before


@pytest.mark.parametrize("name", ["nothing.js", "..%2f..%2fapp.py", "%2e%2e%2fsettings.py", "vendor/vendor.json"])
def test_no_other_file_is_served(instant, name):
    with pytest.raises(urllib.error.HTTPError) as refused:
        get(instant, f"/static/{name}")

    with refused.value:
        assert refused.value.code == 404


@pytest.mark.parametrize("secure", [False, True], ids=["http", "https"])
@pytest.mark.parametrize("host", OF_FAL)
def test_under_fals_names_there_are_no_pages(instant, host, secure):
    trust = ssl.create_default_context(cafile=instant.bundle)
    port = int(instant.tls_host.rpartition(":")[2])
    paths = [*DOCUMENTS, "/static/", *{Path(path).suffix: path for path in FILES}.values(), "/static/beach.jpg"]
    found = {}
    if secure:
        connection = http.client.HTTPSConnection("127.0.0.1", port, timeout=30)
        connection.sock = trust.wrap_socket(connection_to(port), server_hostname=host)
    else:
        connection = http.client.HTTPConnection("127.0.0.1", int(instant.url.rpartition(":")[2]), timeout=30)
    for path in paths:
        for method in ("GET", "HEAD"):
            connection.request(method, path, headers={"Host": host})
            answer = connection.getresponse()
            body = answer.read()
            found[method, path] = (answer.status, sorted(json.loads(body)) if body and answer.status == 404 else [])
    connection.close()

    wanted = {("GET", path): (404, ["detail", "message"]) for path in paths}
    wanted |= {("HEAD", path): (404, []) for path in paths}
    # fal's document of the endpoint links to it.
    wanted |= {(method, "/static/beach.jpg"): (200, []) for method in ("GET", "HEAD")}
    assert found == wanted


def connection_to(port):
    """A connected socket."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    connection.connect()
    return connection.sock


@pytest.mark.anyio
@pytest.mark.parametrize("host", OF_FAL)
async def test_the_thumbnail_of_fals_document_is_there(tmp_path, host):
    async with serving(tmp_path) as web:
        document = (await web.call("GET", f"https://{host}/api/openapi/queue/openapi.json")).json()
        thumbnail = document["info"]["x-fal-metadata"]["thumbnailUrl"]
        answer = await web.call("GET", thumbnail)

    assert thumbnail == f"https://{host}/static/beach.jpg"
    assert (answer.status, answer.body[:2]) == (200, b"\xff\xd8")


@pytest.mark.anyio
@pytest.mark.parametrize("path", [*PAGES, "/openapi.json", "/trust/ca.pem", "/static/page/app.js"])
async def test_a_page_elsewhere_may_link_to_them(tmp_path, path):
    settings = Settings(data_dir=tmp_path, tls_port=8443)
    tls.ensure(settings)
    headers = {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate", "user-agent": "Mozilla/5.0"}
    async with serving(tmp_path, tls_port=8443) as web:
        assert (await web.call("GET", path, headers=headers)).status == 200


@pytest.mark.parametrize(("name", "file"), [("ca.pem", "ca.pem"), ("bundle.pem", "bundle.pem")])
def test_the_ca_is_handed_out_and_never_its_key(instant, name, file):
    _, text = get(instant, f"/trust/{name}")

    assert text == (instant.data_dir / "tls" / file).read_text()
    assert "PRIVATE KEY" not in text


@pytest.mark.parametrize("name", ["ca-key.pem", "key.pem", "cert.pem", "..%2ftoken.secret"])
def test_nothing_else_of_its_folder_is(instant, name):
    with pytest.raises(urllib.error.HTTPError) as refused:
        get(instant, f"/trust/{name}")

    with refused.value:
        assert refused.value.code == 404


@pytest.mark.anyio
async def test_without_tls_there_is_no_ca_although_one_was_made(tmp_path):
    tls.ensure(Settings(data_dir=tmp_path))
    async with serving(tmp_path) as web:
        answers = [await web.call("GET", path) for path in ("/trust/ca.pem", "/trust/bundle.pem")]
        document = (await web.call("GET", "/openapi.json")).json()

    assert [answer.status for answer in answers] == [404, 404]
    assert "--tls-port 8443" in answers[0].json()["detail"]
    assert "x-local-ca" not in document
    assert [server["url"] for server in document["servers"]] == ["http://localhost:8000"]


def test_the_page_has_the_lines_of_the_command():
    page = playground._FILES["trust.html"].read_text().replace("&amp;", "&")
    lines = trust_instructions(Path("ca.pem"), Path("bundle.pem"))

    shown = re.findall(r"<pre tabindex=\"0\">(.*?)</pre>", page)
    assert len(shown) == 5
    assert [line for line in shown if f"  {line}\n" not in lines] == []
