"""Uploads and files over HTTP, call by call as fal's JavaScript and Python clients make them."""

import asyncio
import contextlib
import datetime
import json

import pytest

from server.access.auth import has_shown_key
from server.storage.files import SPOOL_BYTES, Files
from tests.support import app_client, asgi_client
from tests.support.stores import object_store

pytestmark = pytest.mark.anyio


@pytest.fixture(autouse=True)
def everywhere(place, monkeypatch):
    """Each test runs wherever files may lie."""
    monkeypatch.setitem(app_client.CHOSEN, "files", place)


def pytest_generate_tests(metafunc):
    """Name the places."""
    metafunc.parametrize("place", object_store.PLACES, indirect=True)


JPEG = b"\xff\xd8\xff\xe0 a picture"
INITIATE = "/rest/storage/upload/initiate"
KEYS = "alice:secret,bob:secret"
ALICE = {"authorization": "Key alice:secret"}
BOB = {"authorization": "Key bob:secret"}


class Storage:
    """The storage routes, with real files behind them."""

    def __init__(self, app):
        self._app = app

    async def call(self, method, url, **options):
        """One request and its whole answer."""
        return await asgi_client.call(self._app, method, url, **options)

    def exchange(self, method, url, **options):
        """One request, message by message."""
        return asgi_client.exchange(self._app, method, url, **options)

    async def upload(self, data, content_type="image/jpeg", file_name="a.jpg", headers=None):
        """The URL of a file uploaded as JavaScript does it."""
        body = {"content_type": content_type, "file_name": file_name}
        urls = (await self.call("POST", INITIATE, body=body, headers=headers)).json()
        await self.call("PUT", urls["upload_url"], body=data, headers={"content-type": content_type})
        return urls["file_url"]


async def is_known_after(web, method, url, headers=None, body=b""):
    """Whether the connection of a call makes way last from then on."""
    scope = asgi_client.scope_of("http", method, url, headers, "localhost:8000")
    talk = asgi_client.Exchange(web.app, scope, [{"type": "http.request", "body": body, "more_body": False}])
    assert (await talk.hear())["status"] == 200
    await talk.task
    return has_shown_key(scope)


async def test_who_has_shown_a_key_a_ticket_or_the_key_of_a_private_file_is_known(tmp_path):
    hidden = {**ALICE, "x-fal-object-lifecycle": '{"initial_acl": {"default": "hide"}}'}
    async with app_client.serving(tmp_path, files=Files, keys="alice:secret") as web:
        ticket = (await web.call("POST", INITIATE, body={"content_type": "image/jpeg"}, headers=ALICE)).json()
        private = await web.call("POST", "/cdn/files/upload", body=JPEG, headers=hidden)
        calls = {
            "no key": ("GET", "/health"),
            "key": ("POST", INITIATE, ALICE, b"{}"),
            "ticket": ("PUT", ticket["upload_url"], {"content-type": "image/jpeg"}, JPEG),
            "key of a private file": ("GET", private.json()["access_url"], ALICE),
            "public file": ("GET", ticket["file_url"]),
        }
        known = {what: await is_known_after(web, *asked) for what, asked in calls.items()}

    assert [what for what in known if known[what]] == ["key", "ticket", "key of a private file"]


@contextlib.asynccontextmanager
async def serving(tmp_path, **chosen):
    """The storage routes with these settings."""
    async with app_client.serving(tmp_path, files=Files, **chosen) as web:
        yield Storage(web.app)


@pytest.fixture
async def storage(tmp_path):
    """An open server's storage."""
    async with serving(tmp_path) as found:
        yield found


@pytest.fixture
async def keyed(tmp_path):
    """The storage of a server with keys."""
    async with serving(tmp_path, keys=KEYS) as found:
        yield found


# --- JavaScript --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "base"),
    [
        ("https://rest.fal.ai/storage/upload/initiate?storage_type=fal-cdn-v3", "https://v3.fal.media"),
        ("https://rest.alpha.fal.ai/storage/upload/initiate", "https://v3.fal.media"),
        ("https://rest.fal.ai/storage/upload/initiate?storage_type=gcs", "https://v3.fal.media"),
        ("http://localhost:8000/rest/storage/upload/initiate", "http://localhost:8000/cdn"),
    ],
)
async def test_a_file_is_put_where_initiate_says_and_read_where_it_says(storage, url, base):
    urls = (await storage.call("POST", url, body={"content_type": "image/jpeg", "file_name": "a.jpg"})).json()
    put = await storage.call("PUT", urls["upload_url"], body=JPEG, headers={"content-type": "image/jpeg"})
    got = await storage.call("GET", urls["file_url"])

    assert urls["upload_url"].startswith(f"{base}/upload/")
    assert urls["file_url"].startswith(f"{base}/files/")
    assert (put.status, got.status, got.body) == (200, 200, JPEG)


async def test_links_are_under_the_public_url(tmp_path):
    async with serving(tmp_path, public_url="https://box.example/fal/") as storage:
        urls = (await storage.call("POST", INITIATE, body={})).json()

    assert urls["file_url"].startswith("https://box.example/fal/cdn/files/")


async def test_the_upload_url_needs_no_key_and_the_rest_does(keyed):
    body = {"content_type": "image/jpeg"}
    without = await keyed.call("POST", INITIATE, body=body)
    wrong = await keyed.call("POST", INITIATE, body=body, headers={"authorization": "Key alice:wrong"})
    urls = (await keyed.call("POST", INITIATE, body=body, headers=ALICE)).json()
    put = await keyed.call("PUT", urls["upload_url"], body=JPEG)

    assert (without.status, wrong.status, put.status) == (401, 401, 200)


@pytest.mark.parametrize(
    "change", [lambda u: u.partition("?")[0], lambda u: u + "x", lambda u: u.replace("/upload/", "/upload/0", 1)]
)
async def test_an_upload_url_that_was_changed_is_refused(storage, change):
    urls = (await storage.call("POST", INITIATE, body={})).json()

    answer = await storage.call("PUT", change(urls["upload_url"]), body=JPEG)

    assert answer.status == 403


async def test_putting_twice_is_no_error_and_changes_nothing(storage):
    urls = (await storage.call("POST", INITIATE, body={"content_type": "image/jpeg"})).json()

    answers = [await storage.call("PUT", urls["upload_url"], body=data) for data in (JPEG, JPEG + b"!")]

    assert [answer.status for answer in answers] == [200, 200]
    assert (await storage.call("GET", urls["file_url"])).body == JPEG


async def test_javascript_sends_parts_without_headers_and_reads_the_etag_from_the_body(storage):
    url = "/rest/storage/upload/initiate-multipart?storage_type=fal-cdn-v3"
    urls = (await storage.call("POST", url, body={"content_type": "video/mp4", "file_name": "a.mp4"})).json()
    path, _, query = urls["upload_url"].partition("?")
    parts = [(await storage.call("PUT", f"{path}/{n}?{query}", body=b"part%d" % n)).json() for n in (1, 2)]
    done = await storage.call("POST", f"{path}/complete?{query}", body={"parts": parts})

    assert [part["partNumber"] for part in parts] == [1, 2]
    assert (done.status, (await storage.call("GET", urls["file_url"])).body) == (200, b"part1part2")


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"", 422),
        (b"{", 422),
        (b"[]", 422),
        ({"parts": []}, 422),
        ({"parts": [{"partNumber": 0, "etag": "x"}]}, 422),
        ({"parts": [{"partNumber": 1}]}, 422),
        ({"parts": "all"}, 422),
        ({"parts": [{"partNumber": 1, "etag": "x"}]}, 400),
        ({"parts": [{"partNumber": 1, "etag": "../../../token.secret"}]}, 400),
    ],
)
async def test_a_completion_that_is_none_is_told(storage, body, status):
    urls = (await storage.call("POST", INITIATE, body={})).json()
    path, _, query = urls["upload_url"].partition("?")

    answer = await storage.call("POST", f"{path}/complete?{query}", body=body)

    assert (answer.status, answer.headers["content-type"]) == (status, "application/json")


@pytest.mark.parametrize("number", ["0", "10001", "99999999999999999999", "-1", "x", "9" * 5000])
async def test_a_part_has_a_number_within_reason(storage, number):
    urls = (await storage.call("POST", INITIATE, body={})).json()
    path, _, query = urls["upload_url"].partition("?")

    answer = await storage.call("PUT", f"{path}/{number}?{query}", body=b"part")

    assert answer.status in {400, 404}


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[]", {"content_type": 7}, {"file_name": ["a"]}, {"file_name": "x" * 20_000}]
)
async def test_a_malformed_initiate_is_422(storage, body):
    answer = await storage.call("POST", INITIATE, body=body)

    assert (answer.status, isinstance(answer.json()["detail"], list)) == (422, True)


@pytest.mark.parametrize(
    "body", [{}, {"content_type": None, "file_name": None}, {"content_type": "", "file_name": "\x00"}]
)
async def test_an_initiate_that_says_little_is_enough(storage, body):
    answer = await storage.call("POST", INITIATE, body=body)

    assert answer.status == 200


# --- Python ------------------------------------------------------------------------------------------------------

TOKEN = "https://rest.fal.ai/storage/auth/token?storage_type=fal-cdn-v3"


async def token_of(storage, headers=None):
    """The headers that Python sends to the CDN."""
    token = (await storage.call("POST", TOKEN, body={}, headers=headers)).json()
    return {"authorization": f"{token['token_type']} {token['token']}"}


async def test_a_cdn_token_has_the_four_keys_and_an_end_that_python_can_compare(keyed):
    token = (await keyed.call("POST", TOKEN, body={}, headers=ALICE)).json()

    assert set(token) == {"token", "token_type", "base_url", "expires_at"}
    assert token["base_url"] == "https://v3.fal.media"
    assert token["expires_at"].endswith("+00:00")
    assert "." not in token["expires_at"]
    assert datetime.datetime.fromisoformat(token["expires_at"]) > datetime.datetime.now(datetime.UTC)


async def test_python_uploads_with_the_token_under_a_name_that_can_do_no_harm(keyed):
    headers = {**await token_of(keyed, ALICE), "content-type": "text/plain", "x-fal-file-name": "../../hello.txt"}

    answer = await keyed.call("POST", "https://v3.fal.media/files/upload", body=b"Hello", headers=headers)
    got = await keyed.call("GET", answer.json()["access_url"])

    assert answer.json()["access_url"].startswith("https://v3.fal.media/files/")
    assert (got.body, got.headers["content-disposition"]) == (b"Hello", "attachment; filename*=UTF-8''hello.txt")


@pytest.mark.parametrize("host", ["fal.media", "v3.fal.media"])
async def test_older_python_uploads_with_its_key(keyed, host):
    answer = await keyed.call("POST", f"https://{host}/files/upload", body=JPEG, headers=ALICE)

    assert answer.status == 200


@pytest.mark.parametrize(
    "headers",
    [{}, {"authorization": "Key alice:wrong"}, {"authorization": "Bearer x.y.z"}, {"authorization": "Bearer"}],
)
@pytest.mark.parametrize("path", ["/cdn/files/upload", "/cdn/files/upload/multipart"])
async def test_the_cdn_takes_nothing_from_strangers(keyed, path, headers):
    answer = await keyed.call("POST", path, body=JPEG, headers=headers)

    assert answer.status == 401


async def test_a_token_of_the_cdn_calls_nothing_else(keyed):
    answer = await keyed.call("POST", INITIATE, body={}, headers=await token_of(keyed, ALICE))

    assert answer.status == 401


async def test_python_sends_parts_with_its_token_and_reads_the_etag_from_the_header(keyed):
    headers = {**await token_of(keyed, ALICE), "content-type": "application/zip", "x-fal-file-name": "a.zip"}
    begun = (await keyed.call("POST", "https://v3.fal.media/files/upload/multipart", headers=headers)).json()
    parts_url = f"{begun['access_url']}/multipart/{begun['uploadId']}"
    parts = []
    for number in (3, 1, 2):
        part = await keyed.call("PUT", f"{parts_url}/{number}", body=b"part%d" % number, headers=headers)
        parts.append({"partNumber": number, "etag": part.headers["etag"]})
    done = await keyed.call("POST", f"{parts_url}/complete", body={"parts": parts}, headers=headers)

    assert (done.status, (await keyed.call("GET", begun["access_url"])).body) == (200, b"part1part2part3")


async def test_parts_need_the_token_and_the_upload_id(keyed):
    headers = await token_of(keyed, ALICE)
    begun = (await keyed.call("POST", "https://v3.fal.media/files/upload/multipart", headers=headers)).json()

    no_token = await keyed.call("PUT", f"{begun['access_url']}/multipart/{begun['uploadId']}/1", body=b"x")
    no_id = await keyed.call(
        "PUT", f"{begun['access_url']}/multipart/{begun['uploadId']}x/1", body=b"x", headers=headers
    )

    assert (no_token.status, no_id.status) == (401, 403)


async def test_pythons_fallback_puts_with_its_key_in_the_headers(keyed):
    urls = (
        await keyed.call("POST", f"{INITIATE}?storage_type=gcs", body={"content_type": "image/jpeg"}, headers=ALICE)
    ).json()

    answer = await keyed.call("PUT", urls["upload_url"], body=JPEG, headers={**ALICE, "content-type": "image/jpeg"})

    assert answer.status == 200


# --- limits ------------------------------------------------------------------------------------------------------


async def test_an_upload_that_is_too_large_is_413(tmp_path):
    async with serving(tmp_path, max_upload_bytes=10) as storage:
        urls = (await storage.call("POST", INITIATE, body={})).json()
        told = await storage.call("PUT", urls["upload_url"], body=bytes(11), headers={"content-length": "11"})
        found = await storage.call("PUT", urls["upload_url"], body=bytes(11))

    assert (told.status, found.status) == (413, 413)


async def test_an_upload_that_breaks_off_is_not_there(storage):
    urls = (await storage.call("POST", INITIATE, body={})).json()
    incoming = [{"type": "http.request", "body": b"half", "more_body": True}, {"type": "http.disconnect"}]
    scope = asgi_client.scope_of("http", "PUT", urls["upload_url"], {}, "localhost:8000")

    await asgi_client.Exchange(storage._app, scope, incoming).task

    assert (await storage.call("GET", urls["file_url"])).status == 404


async def test_uploads_by_url_take_no_more_memory_than_their_owners_share(tmp_path):
    budget = {"body_budget_bytes": 4 * SPOOL_BYTES, "max_body_bytes": 1000}

    def put(url):
        scope = asgi_client.scope_of("http", "PUT", url, {}, "localhost:8000")
        return asgi_client.Exchange(keyed._app, scope, [{"type": "http.request", "body": b"half", "more_body": True}])

    async with serving(tmp_path, keys=KEYS, **budget) as keyed:
        urls = [(await keyed.call("POST", INITIATE, body={}, headers=ALICE)).json()["upload_url"] for _ in range(3)]
        another = (await keyed.call("POST", INITIATE, body={}, headers=BOB)).json()["upload_url"]
        held = [put(url) for url in urls[:2]]
        refused = await asyncio.wait_for(put(urls[2]).hear(), 5)
        accepted = await keyed.call("PUT", another, body=b"whole")
        for upload in held:
            upload.say({"type": "http.disconnect"})
            await upload.task

    assert (refused["status"], accepted.status) == (429, 200)


# --- reading -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content_type", "data", "shown"),
    [
        ("image/jpeg", JPEG, True),
        ("image/png", b"\x89PNG\r\n\x1a\n", True),
        ("image/webp", b"RIFF\0\0\0\0WEBP", True),
        ("image/jpeg", b"<script>alert(1)</script>", False),
        ("image/png", JPEG, False),
        ("image/gif", b"GIF89a", False),
        ("image/svg+xml", b"<svg/>", False),
        ("text/html", b"<script>alert(1)</script>", False),
        ("text/plain", b"Hello, World!", False),
        ("application/octet-stream", JPEG, False),
        ("nonsense", b"x", False),
    ],
)
async def test_a_browser_shows_pictures_alone_and_runs_nothing(storage, content_type, data, shown):
    url = await storage.upload(data, content_type)

    got = await storage.call("GET", url)

    assert (got.status, got.body) == (200, data)
    assert ("content-disposition" not in got.headers) == shown
    assert got.headers["x-content-type-options"] == "nosniff"
    assert got.headers["content-security-policy"] == "default-src 'none'; sandbox"
    assert got.headers["content-type"].startswith(content_type if "/" in content_type else "application/octet-stream")


@pytest.mark.parametrize("name", ["x", "0" * 32, "..%2f..%2ftoken.secret", "%2e%2e", "upload.secret", "a/b", "%00"])
async def test_a_file_that_is_not_there_is_404_in_json(storage, name):
    answer = await storage.call("GET", f"/cdn/files/{name}")

    assert (answer.status, answer.headers["content-type"]) == (404, "application/json")


@pytest.mark.parametrize(
    ("asked", "status", "body"),
    [
        ("bytes=0-3", 206, JPEG[:4]),
        ("bytes=-3", 206, JPEG[-3:]),
        ("bytes=4-", 206, JPEG[4:]),
        ("bytes=0-1,3-4", 200, JPEG),
        ("bytes=x", 200, JPEG),
        (f"bytes={'9' * 5000}-", 200, JPEG),
        ("lines=1-2", 200, JPEG),
        ("bytes=3-1", 200, JPEG),
    ],
)
async def test_a_range_of_a_file(storage, asked, status, body):
    url = await storage.upload(JPEG)

    got = await storage.call("GET", url, headers={"range": asked})

    assert (got.status, got.body) == (status, body)


@pytest.mark.parametrize("asked", ["bytes=1000-", "bytes=-0"])
async def test_a_range_beyond_the_end_of_a_file_is_refused_in_json(storage, asked):
    url = await storage.upload(JPEG)

    got = await storage.call("GET", url, headers={"range": asked})

    assert (got.status, got.headers["content-range"]) == (416, f"bytes */{len(JPEG)}")
    assert got.json()["detail"]


async def test_a_range_of_another_file_than_the_one_that_is_here_is_not_looked_at(storage):
    url = await storage.upload(JPEG)

    got = await storage.call("GET", url, headers={"range": "bytes=1000-", "if-range": '"another"'})

    assert (got.status, got.body) == (200, JPEG)


async def test_head_tells_all_but_the_bytes(storage):
    url = await storage.upload(JPEG)

    got = await storage.call("HEAD", url)

    assert (got.status, got.headers["content-length"], got.body) == (200, str(len(JPEG)), b"")


async def test_a_file_that_the_client_has_is_not_sent_again(storage):
    url = await storage.upload(JPEG)
    etag = (await storage.call("GET", url)).headers["etag"]

    again = await storage.call("GET", url, headers={"if-none-match": f'"other", W/{etag}'})

    assert (again.status, again.body) == (304, b"")


async def test_files_may_be_read_by_any_page(storage):
    got = await storage.call("GET", await storage.upload(JPEG), headers={"origin": "http://localhost:3000"})

    assert got.headers["cross-origin-resource-policy"] == "cross-origin"
    assert "access-control-allow-origin" in got.headers


# --- lifecycle ---------------------------------------------------------------------------------------------------


def acl(default, *rules):
    """The header that an upload with this ACL carries."""
    entries = [{"user": user, "decision": decision} for user, decision in rules]
    return json.dumps({"initial_acl": {"default": default, "rules": entries}})


@pytest.mark.parametrize(
    ("header", "reader", "status"),
    [
        (acl("allow"), {}, 200),
        (acl("forbid"), {}, 403),
        (acl("hide"), {}, 404),
        (acl("forbid"), ALICE, 200),
        (acl("hide"), ALICE, 200),
        (acl("forbid"), BOB, 403),
        (acl("hide"), BOB, 404),
        (acl("hide", ("bob", "allow")), BOB, 200),
        (acl("hide", ("bob", "allow")), {}, 404),
        (acl("allow", ("bob", "forbid")), BOB, 403),
        (acl("allow", ("bob", "forbid")), {}, 200),
    ],
)
async def test_an_acl_is_kept(keyed, header, reader, status):
    url = await keyed.upload(JPEG, headers={**ALICE, "x-fal-object-lifecycle": header})

    assert (await keyed.call("GET", url, headers=reader)).status == status


async def test_a_private_file_is_kept_out_of_caches(keyed):
    url = await keyed.upload(JPEG, headers={**ALICE, "x-fal-object-lifecycle": acl("forbid")})

    assert (await keyed.call("GET", url, headers=ALICE)).headers["cache-control"] == "private, no-store"


async def test_without_keys_nobody_is_the_owner_of_a_private_file(storage):
    url = await storage.upload(JPEG, headers={"x-fal-object-lifecycle": acl("hide")})

    assert (await storage.call("GET", url, headers=ALICE)).status == 404


@pytest.mark.parametrize("name", ["x-fal-object-lifecycle", "x-fal-object-lifecycle-preference"])
async def test_a_file_may_be_cached_for_no_longer_than_it_lives(storage, name):
    url = await storage.upload(JPEG, headers={name: '{"expiration_duration_seconds": 60}'})

    cached = (await storage.call("GET", url)).headers["cache-control"]

    assert cached in {"public, max-age=59, immutable", "public, max-age=60, immutable"}


@pytest.mark.parametrize("path", [INITIATE, "/cdn/files/upload", "/cdn/files/upload/multipart"])
async def test_a_malformed_lifecycle_is_400(storage, path):
    answer = await storage.call("POST", path, body={}, headers={"x-fal-object-lifecycle": "1h"})

    assert answer.status == 400
