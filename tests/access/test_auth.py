"""Keys, tokens, and who may call a server without keys."""

import dataclasses
import json
import stat
import time
from concurrent.futures import ThreadPoolExecutor

import jwt
import pytest
from starlette.requests import HTTPConnection

from server.access import api_keys
from server.access.api_keys import KeysError
from server.access.auth import ANONYMOUS, Auth, Caller, has_keys
from server.app import Cors
from server.fal.endpoints import LCM_SD15_I2I
from server.fal.errors import PlainError
from server.settings import Settings, SettingsError
from server.web.origin_guard import OriginGuard
from server.web.responses import json_response
from tests.support.asgi_client import Refused, call, connect, scope_of

KEY = "alice:s3cret"
OTHER_APP = dataclasses.replace(LCM_SD15_I2I, alias="other")


@pytest.fixture
def settings(tmp_path):
    return Settings(data_dir=tmp_path, keys=f"{KEY},bob:hunter2")


@pytest.fixture
def auth(settings):
    return Auth(settings)


def connection(authorization=None, query=""):
    headers = {"authorization": authorization}
    return HTTPConnection(scope_of("http", "POST", f"http://localhost/run?{query}", headers, "localhost"))


def refusal(auth, connection, app=LCM_SD15_I2I):
    with pytest.raises(PlainError) as caught:
        auth.caller(connection, app)
    return caught.value


# --- keys


@pytest.mark.parametrize("scheme", ["Key", "key"])
def test_a_key_of_the_settings_is_let_in(auth, scheme):
    assert auth.caller(connection(f"{scheme} {KEY}")) == Caller("alice", "alice")


@pytest.mark.parametrize(
    ("authorization", "detail"),
    [
        (None, 'Cannot access application "fal-ai/lcm-sd15-i2i"'),
        ("Key alice:wrong", "No user found for Key ID and Secret"),
        ("Key stranger:s3cret", "No user found for Key ID and Secret"),
        ("Key alice:", "No user found for Key ID and Secret"),
        ("Key alice", "Invalid Key Authorization header format"),
        ("Key", "Invalid Key Authorization header format"),
        ("Bearer not-a-token", "Invalid or expired token"),
        ("Basic YTpi", "Unsupported Authorization scheme"),
    ],
)
def test_missing_and_wrong_credentials_are_401(auth, authorization, detail):
    error = refusal(auth, connection(authorization))

    assert error.status == 401
    assert error.body["detail"].startswith(detail)


def test_errors_do_not_repeat_the_key(auth):
    error = refusal(auth, connection("Key alice:canary"))

    assert "canary" not in json.dumps(error.body)


@pytest.mark.parametrize("name", ["", "  ", "a\tb", "a\nb", "\u202ea", "n" * 65])
def test_a_name_that_a_list_would_not_show_is_refused(name, tmp_path):
    with pytest.raises(KeysError, match="in 1 to 64 printable characters"):
        api_keys.add(tmp_path / "keys.json", name)

    assert api_keys.read(tmp_path / "keys.json") == []


@pytest.mark.parametrize("name", ["n" * 64, "Zoë’s phone", "x"])
def test_a_name_in_any_script_is_taken(name, tmp_path):
    api_keys.add(tmp_path / "keys.json", name)

    assert [key.name for key in api_keys.read(tmp_path / "keys.json")] == [name]


def test_a_key_in_the_query_opens_a_socket(auth):
    assert auth.caller(connection(query="fal_key_id=alice&fal_key_secret=s3cret"), LCM_SD15_I2I).id == "alice"


def test_a_made_key_works_until_it_is_revoked(tmp_path):
    settings = Settings(data_dir=tmp_path)
    credential = api_keys.add(api_keys.path(settings), "phone app")
    auth = Auth(settings)
    before = auth.caller(connection(f"Key {credential}")).name

    api_keys.revoke(api_keys.path(settings), "phone app")

    assert before == "phone app"
    assert refusal(auth, connection(f"Key {credential}")).status == 401


def test_a_running_server_closes_when_its_first_key_is_made(tmp_path):
    settings = Settings(data_dir=tmp_path)
    auth = Auth(settings)
    before = auth.caller(connection())

    api_keys.add(api_keys.path(settings), "first")

    assert before == ANONYMOUS
    assert refusal(auth, connection()).status == 401


def test_a_server_whose_keys_are_all_revoked_stays_closed(tmp_path):
    settings = Settings(data_dir=tmp_path)
    api_keys.add(api_keys.path(settings), "only")
    api_keys.revoke(api_keys.path(settings), "only")

    assert has_keys(settings)
    assert refusal(Auth(settings), connection()).status == 401


def test_the_key_file_holds_no_secret_and_is_its_owners_alone(tmp_path):
    file = api_keys.path(Settings(data_dir=tmp_path))

    secret = api_keys.add(file, "app").partition(":")[2]

    assert secret not in file.read_text()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_an_unknown_key_can_not_be_revoked(tmp_path):
    with pytest.raises(KeysError, match="stranger"):
        api_keys.revoke(api_keys.path(Settings(data_dir=tmp_path)), "stranger")


def test_a_broken_key_file_stops_the_start_instead_of_opening_the_server(tmp_path):
    (tmp_path / "keys.json").write_text("{}")

    with pytest.raises(KeysError):
        Auth(Settings(data_dir=tmp_path))


@pytest.mark.parametrize(
    "content",
    [
        b"junk",
        b"{}",
        b'{"keys": [{"id": "a"}]}',
        b'{"keys": [{"id": "a", "name": "a", "digest": null, "created": ""}]}',
    ],
)
def test_a_key_file_that_is_none_is_said_with_what_would_do(tmp_path, content):
    (tmp_path / "keys.json").write_bytes(content)

    with pytest.raises(KeysError, match=r"keys\.json is no key file .* Hint: restore it"):
        api_keys.read(tmp_path / "keys.json")


def lose(file):
    file.unlink()


def damage(file):
    file.write_text("junk")


@pytest.mark.parametrize("spoil", [lose, damage])
def test_a_running_server_whose_key_file_is_spoilt_keeps_its_keys_and_stays_closed(tmp_path, caplog, spoil):
    settings = Settings(data_dir=tmp_path)
    credential = api_keys.add(api_keys.path(settings), "app")
    auth = Auth(settings)

    spoil(api_keys.path(settings))

    assert auth.caller(connection(f"Key {credential}")).name == "app"
    assert refusal(auth, connection()).status == 401
    assert [record.levelname for record in caplog.records] == ["ERROR"]


def test_a_key_file_that_comes_back_is_read_again(tmp_path):
    settings = Settings(data_dir=tmp_path)
    api_keys.add(api_keys.path(settings), "app")
    auth = Auth(settings)
    away = api_keys.path(settings).rename(tmp_path / "away")
    before = auth.open
    away.rename(api_keys.path(settings))

    credential = api_keys.add(api_keys.path(settings), "second")

    assert not before
    assert auth.caller(connection(f"Key {credential}")).name == "second"


@pytest.mark.parametrize("content", ["junk", '{"keys": []}'])
def test_a_key_file_without_keys_that_appears_closes_a_running_server(tmp_path, content):
    settings = Settings(data_dir=tmp_path)
    auth = Auth(settings)
    before = auth.open

    api_keys.path(settings).write_text(content)

    assert before
    assert refusal(auth, connection()).status == 401


def test_a_name_in_use_is_not_given_twice(tmp_path):
    file = api_keys.path(Settings(data_dir=tmp_path))
    api_keys.add(file, "app")

    with pytest.raises(KeysError, match="'app' already"):
        api_keys.add(file, "app")


def test_a_revoked_keys_name_may_be_given_again(tmp_path):
    file = api_keys.path(Settings(data_dir=tmp_path))
    api_keys.add(file, "app")
    api_keys.revoke(file, "app")

    api_keys.add(file, "app")

    assert [key.revoked for key in api_keys.read(file)] == [True, False]


def test_of_keys_with_one_name_from_an_earlier_release_each_is_revoked_by_its_id(tmp_path):
    file = api_keys.path(Settings(data_dir=tmp_path))
    for name in ("app", "other"):
        api_keys.add(file, name)
    file.write_text(file.read_text().replace('"other"', '"app"'))

    with pytest.raises(KeysError, match="2 keys are called 'app'"):
        api_keys.revoke(file, "app")
    for key in api_keys.read(file):
        api_keys.revoke(file, key.id)

    assert all(key.revoked for key in api_keys.read(file))


def test_keys_that_are_added_at_once_are_all_kept(tmp_path):
    file = api_keys.path(Settings(data_dir=tmp_path))

    with ThreadPoolExecutor(8) as threads:
        made = list(threads.map(lambda number: api_keys.add(file, f"app {number}"), range(24)))

    assert {key.id for key in api_keys.read(file)} == {credential.partition(":")[0] for credential in made}


@pytest.mark.parametrize("written", ["alice", "alice:", ":s", "a:b,c"])
def test_malformed_keys_in_the_settings_stop_the_start(tmp_path, written):
    with pytest.raises(SettingsError):
        Auth(Settings(data_dir=tmp_path, keys=written))


# --- tokens


@pytest.mark.parametrize(
    "allowed",
    [
        "lcm-sd15-i2i",
        "fal-ai/lcm-sd15-i2i",
        "/fal-ai/lcm-sd15-i2i/",
        "fal-ai/lcm-sd15-i2i/realtime",
        "110602490/lcm-sd15-i2i",
        "110602490-lcm-sd15-i2i",
    ],
)
def test_a_token_is_good_for_its_app_however_that_is_written(auth, allowed):
    token = auth.issue(Caller("alice", "alice"), 120, ["other", allowed])

    assert auth.caller(connection(query=f"fal_jwt_token={token}"), LCM_SD15_I2I).id == "alice"


@pytest.mark.parametrize("apps", [[], ["other"], ["lcm"], ["someone/lcm-sd15-i2i"], ["fal-ai"]])
def test_a_token_of_other_apps_is_refused(auth, apps):
    token = auth.issue(Caller("alice", "alice"), 120, apps)

    assert refusal(auth, connection(query=f"fal_jwt_token={token}")).status == 403


def test_a_token_can_be_used_again_and_as_a_bearer(auth):
    token = auth.issue(Caller("alice", "alice"), 120, ["lcm-sd15-i2i"])

    callers = [auth.caller(connection(f"Bearer {token}"), LCM_SD15_I2I).id for _ in range(3)]

    assert callers == ["alice"] * 3


def test_an_expired_token_is_refused(auth):
    token = auth.issue(Caller("alice", "alice"), -1, ["lcm-sd15-i2i"])

    assert refusal(auth, connection(query=f"fal_jwt_token={token}")).status == 401


def test_a_token_ends_by_the_clock_of_all_servers(settings):
    now = 1_000_000.0
    auth = Auth(settings, lambda: now)
    token = auth.issue(Caller("alice", "alice"), 120, ["lcm-sd15-i2i"])
    caller = auth.caller(connection(f"Bearer {token}"), LCM_SD15_I2I).id
    now += 120

    assert caller == "alice"
    assert refusal(auth, connection(query=f"fal_jwt_token={token}")).status == 401


def test_a_token_counts_only_where_an_app_is_called(auth):
    token = auth.issue(Caller("alice", "alice"), 120, ["lcm-sd15-i2i"])

    assert refusal(auth, connection(query=f"fal_jwt_token={token}"), app=None).status == 401


def test_a_token_dies_with_the_key_that_asked_for_it(tmp_path):
    settings = Settings(data_dir=tmp_path)
    credential = api_keys.add(api_keys.path(settings), "app")
    auth = Auth(settings)
    token = auth.issue(auth.caller(connection(f"Key {credential}")), 120, ["lcm-sd15-i2i"])

    api_keys.revoke(api_keys.path(settings), "app")

    assert refusal(auth, connection(query=f"fal_jwt_token={token}")).status == 401


def test_a_token_outlives_a_restart(settings):
    token = Auth(settings).issue(Caller("bob", "bob"), 120, ["lcm-sd15-i2i"])

    assert Auth(settings).caller(connection(query=f"fal_jwt_token={token}"), LCM_SD15_I2I).id == "bob"


def test_a_token_made_before_the_clock_was_set_back_stays_valid(auth, settings):
    secret = (settings.data_dir / "token.secret").read_bytes()
    then = time.time() + 3600
    claims = {"aud": "call", "sub": "alice", "iat": then, "exp": then + 120, "apps": ["lcm-sd15-i2i"]}
    token = jwt.encode(claims, secret, "HS256")

    assert auth.caller(connection(query=f"fal_jwt_token={token}"), LCM_SD15_I2I).id == "alice"


def test_a_token_of_another_audience_is_refused(auth):
    token = auth.issue(Caller("alice", "alice"), 120, ["lcm-sd15-i2i"], audience="cdn")

    assert refusal(auth, connection(query=f"fal_jwt_token={token}")).status == 401


@pytest.mark.parametrize("algorithm", ["none", "HS512"])
def test_the_algorithm_is_ours_to_choose(auth, settings, algorithm):
    secret = (settings.data_dir / "token.secret").read_bytes() * 2
    claims = {"aud": "call", "sub": "alice", "exp": time.time() + 99, "apps": ["lcm-sd15-i2i"]}
    token = jwt.encode(claims, secret if algorithm != "none" else None, algorithm)

    assert refusal(auth, connection(query=f"fal_jwt_token={token}")).status == 401


@pytest.mark.parametrize("left", ["aud", "sub", "exp"])
def test_a_token_without_a_claim_that_bounds_it_is_refused(auth, settings, left):
    secret = (settings.data_dir / "token.secret").read_bytes()
    claims = {"aud": "call", "sub": "alice", "exp": time.time() + 99, "apps": ["lcm-sd15-i2i"]}
    del claims[left]
    token = jwt.encode(claims, secret, "HS256")

    assert refusal(auth, connection(query=f"fal_jwt_token={token}")).status == 401


def test_the_token_secret_is_its_owners_alone(auth, settings):
    assert stat.S_IMODE((settings.data_dir / "token.secret").stat().st_mode) == 0o600


# --- the origin guard


async def _hello(scope, receive, send):
    if scope["type"] == "websocket":
        await send({"type": "websocket.accept"})
        return
    await json_response({"hello": True})(scope, receive, send)


def guarded(tmp_path, **settings):
    chosen = Settings(data_dir=tmp_path, **settings)
    return OriginGuard(Cors(_hello), Auth(chosen), chosen, chosen.public_url)


@pytest.mark.anyio
@pytest.mark.parametrize(
    "host",
    [
        "localhost:8000",
        "127.0.0.1",
        "127.9.9.9:80",
        "[::1]:8000",
        "app.localhost",
        "fal.run",
        "queue.fal.run:8443",
        "110602490-lcm-sd15-i2i.gateway.alpha.fal.ai",
        "v3.fal.media",
    ],
)
async def test_without_keys_this_machines_and_fals_names_are_served(tmp_path, host):
    assert (await call(guarded(tmp_path), "POST", "/", host=host)).status == 200


@pytest.mark.anyio
@pytest.mark.parametrize(
    "host", ["box.lan", "192.168.1.5", "evil.test", "localhost.evil.test", "fal.run.evil.test", "notfal.run", "0.0.0.0"]
)
async def test_without_keys_other_names_are_403(tmp_path, host):
    answer = await call(guarded(tmp_path), "POST", "/", host=host)

    assert answer.status == 403
    assert "detail" in answer.json()


@pytest.mark.anyio
@pytest.mark.parametrize("host", ["", "a b", "x/../y", "localhost:port"])
async def test_a_malformed_host_is_400(tmp_path, host):
    assert (await call(guarded(tmp_path, keys=KEY), "POST", "/", headers={"host": host})).status == 400


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("origin", "status"),
    [
        (None, 200),
        ("http://localhost:3000", 200),
        ("http://127.0.0.1:5173", 200),
        ("http://[::1]:5173", 200),
        ("https://localhost:8000", 200),
        ("https://app.example", 200),
        ("https://evil.test", 403),
        ("http://localhost.evil.test", 403),
        ("http://app.example", 403),
        ("null", 403),
        ("", 403),
        ("chrome-extension://abcdef", 403),
        ("http://[", 403),
    ],
)
async def test_without_keys_only_pages_of_this_machine_or_allowed_ones_may_call(tmp_path, origin, status):
    app = guarded(tmp_path, allow_origin="https://app.example")

    assert (await call(app, "POST", "/", headers={"origin": origin})).status == status


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("public_url", "origin", "status"),
    [
        ("https://box.example/fourstep", "https://box.example", 200),
        ("https://Box.example:443/fourstep", "https://box.example", 200),
        ("https://box.example:8443/", "https://box.example:8443", 200),
        ("http://box.example", "http://box.example", 200),
        ("https://box.example/fourstep", "https://evil.test", 403),
        ("https://box.example/fourstep", "http://box.example", 403),
        ("https://box.example/fourstep", "https://box.example:8443", 403),
        ("https://box.example/fourstep", "https://box.example.evil.test", 403),
        ("https://box.example/fourstep", "https://box.example/fourstep", 403),
        ("", "https://box.example", 403),
    ],
)
async def test_without_keys_the_page_under_the_public_url_may_call(tmp_path, public_url, origin, status):
    app = guarded(tmp_path, public_url=public_url)

    assert (await call(app, "POST", "/", host="127.0.0.1:8000", headers={"origin": origin})).status == status


RUN = "/run/fal-ai/lcm-sd15-i2i?prompt=p"
JOB = "/queue/fal-ai/lcm-sd15-i2i/requests/1/status"
FIREFOX = "Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0"


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("method", "url", "site", "agent", "status"),
    [
        ("GET", RUN, "cross-site", FIREFOX, 403),
        ("GET", RUN, "same-site", FIREFOX, 403),
        ("GET", RUN, "Cross-Site", FIREFOX, 403),
        ("GET", RUN, "cross-site", "node", 403),
        ("HEAD", RUN, "cross-site", FIREFOX, 403),
        ("POST", RUN, "cross-site", FIREFOX, 403),
        ("GET", "/fal-ai/lcm-sd15-i2i?prompt=p", "cross-site", FIREFOX, 403),
        ("GET", f"/{RUN}/", "cross-site", FIREFOX, 403),
        ("GET", JOB, "cross-site", FIREFOX, 403),
        ("GET", "/api/fal/proxy", "cross-site", FIREFOX, 403),
        ("POST", "/cdn/files/upload", "cross-site", FIREFOX, 403),
        ("GET", RUN, None, FIREFOX, 403),
        ("GET", "/fal-ai/lcm-sd15-i2i?prompt=p", None, FIREFOX, 403),
        ("GET", RUN, "none", FIREFOX, 200),
        ("GET", RUN, "same-origin", FIREFOX, 200),
        ("GET", RUN, None, "node", 200),
        ("GET", RUN, None, "curl/8.14.1", 200),
        ("GET", RUN, None, None, 200),
        ("GET", JOB, None, FIREFOX, 200),
        ("POST", RUN, None, FIREFOX, 200),
        *(
            (method, path, "cross-site", FIREFOX, 200)
            for method in ("GET", "HEAD")
            for path in (
                "/",
                "/static/beach.jpg",
                "/health",
                "/ready",
                "/metrics",
                "/.well-known/jwks.json",
                "/rest/.well-known/jwks.json",
                "/api/openapi/queue/openapi.json",
                "/cdn/files/0123456789abcdef0123456789abcdef.jpg",
            )
        ),
    ],
)
async def test_without_keys_what_pages_elsewhere_load_is_refused(tmp_path, method, url, site, agent, status):  # noqa: PLR0917
    headers = {"sec-fetch-site": site, "user-agent": agent}
    given = {name: value for name, value in headers.items() if value is not None}

    assert (await call(guarded(tmp_path), method, url, headers=given)).status == status


@pytest.mark.anyio
async def test_on_fals_own_host_a_page_elsewhere_can_load_files_but_no_run(tmp_path):
    headers = {"sec-fetch-site": "cross-site"}
    name = "/files/0123456789abcdef0123456789abcdef.jpg"

    assert (await call(guarded(tmp_path), "GET", name, host="v3.fal.media", headers=headers)).status == 200
    assert (await call(guarded(tmp_path), "GET", "/fal-ai/x?a=b", host="fal.run", headers=headers)).status == 403


@pytest.mark.anyio
async def test_with_keys_pages_elsewhere_may_load_what_their_key_allows(tmp_path):
    headers = {"sec-fetch-site": "cross-site", "user-agent": FIREFOX}

    assert (await call(guarded(tmp_path, keys=KEY), "GET", RUN, headers=headers)).status == 200


@pytest.mark.anyio
@pytest.mark.parametrize(("origin", "status"), [("chrome-extension://abc", 200), ("moz-extension://abc", 403)])
async def test_a_pattern_of_origins_is_allowed(tmp_path, origin, status):
    app = guarded(tmp_path, allow_origin="chrome-extension://*")

    assert (await call(app, "POST", "/", headers={"origin": origin})).status == status


def test_an_allowed_origin_that_is_none_is_said(tmp_path):
    with pytest.raises(SettingsError, match=r"allow-origin: 'app\.example' is no web origin"):
        guarded(tmp_path, allow_origin="https://ok.example,app.example")


@pytest.mark.anyio
async def test_without_keys_a_foreign_page_can_not_open_a_socket(tmp_path):
    with pytest.raises(Refused) as refused:
        async with connect(guarded(tmp_path), "/", headers={"origin": "https://evil.test"}):
            pass

    assert refused.value.answer.status == 403


@pytest.mark.anyio
async def test_without_keys_a_foreign_page_gets_no_preflight(tmp_path):
    headers = {"origin": "https://evil.test", "access-control-request-method": "POST"}

    answer = await call(guarded(tmp_path), "OPTIONS", "/", headers=headers)

    assert answer.status == 403
    assert "access-control-allow-origin" not in answer.headers


@pytest.mark.anyio
async def test_anonymous_callers_may_come_from_other_machines_but_not_from_foreign_pages(tmp_path):
    app = guarded(tmp_path, allow_anonymous=True)

    plain = await call(app, "POST", "/", host="box.lan")
    page = await call(app, "POST", "/", host="box.lan", headers={"origin": "https://evil.test"})
    own = await call(app, "POST", "/", host="box.lan", headers={"origin": "http://box.lan"})

    assert (plain.status, page.status, own.status) == (200, 403, 200)


@pytest.mark.anyio
async def test_behind_a_key_file_that_can_not_be_read_the_doors_still_answer(tmp_path):
    app = guarded(tmp_path)
    (tmp_path / "keys.json").write_text("junk")

    answer = await call(app, "POST", "/", host="box.lan")

    assert answer.status == 200  # a server with keys: a caller is asked for one further in


@pytest.mark.anyio
async def test_with_keys_any_host_and_origin_may_call(tmp_path):
    app = guarded(tmp_path, keys=KEY)

    answer = await call(app, "POST", "/", host="box.lan", headers={"origin": "https://app.test"})

    assert answer.status == 200


# --- cors


@pytest.mark.anyio
async def test_a_preflight_allows_what_fals_clients_send():
    asked = "authorization,content-type,x-fal-queue-priority,x-fal-store-io"
    headers = {
        "origin": "https://app.test",
        "access-control-request-method": "PUT",
        "access-control-request-headers": asked,
    }

    answer = await call(Cors(_hello), "OPTIONS", "/anything", headers=headers)

    assert (answer.status, answer.body) == (204, b"")
    assert answer.headers["access-control-allow-origin"] == "https://app.test"
    assert {"GET", "POST", "PUT"} <= set(answer.headers["access-control-allow-methods"].split(", "))
    assert answer.headers["access-control-allow-headers"] == asked


@pytest.mark.anyio
async def test_a_preflight_for_a_method_that_no_route_has_is_answered_with_those_that_there_are():
    headers = {"origin": "https://app.test", "access-control-request-method": "PATCH"}

    answer = await call(Cors(_hello), "OPTIONS", "/anything", headers=headers)

    assert answer.status == 204
    assert "PATCH" not in answer.headers["access-control-allow-methods"]


@pytest.mark.anyio
async def test_a_page_may_read_the_headers_that_fals_clients_read():
    answer = await call(Cors(_hello), "POST", "/", headers={"origin": "https://app.test"})

    exposed = answer.headers["access-control-expose-headers"].split(", ")
    assert {"x-fal-request-id", "x-fal-request-timeout-type"} <= set(exposed)
    assert answer.headers["access-control-allow-origin"] == "https://app.test"
    assert answer.headers["vary"] == "Origin"


@pytest.mark.anyio
async def test_without_an_origin_nothing_is_added():
    answer = await call(Cors(_hello), "POST", "/")

    assert not [name for name in answer.headers if name.startswith("access-control")]
