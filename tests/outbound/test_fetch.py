"""Outbound requests: public addresses are reached, internal ones are not.

No packet leaves loopback here: names are resolved by a table, and whatever address is dialled, the connection goes to
one of two servers of the test's own, the "outside" or the guarded "inside".
"""

import asyncio
import contextlib
import functools
import socket
import ssl
import threading

import pytest

from server.fal.errors import RequestError
from server.outbound.addresses import parse_networks
from server.outbound.fetch import SAMPLES, Fetch, FetchError
from server.outbound.guarded_http import Egress, dial
from server.settings import Settings, SettingsError
from server.transport import tls
from tests.support import forbidden_urls
from tests.support.connect_proxy import ConnectProxy

pytestmark = pytest.mark.anyio

OUTSIDE = "93.184.216.34"
LIMIT = 1_000_000
NO_TRUST = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # loading the real roots takes a while


class Site:
    """A loopback HTTP server that answers each request by what `pages` says of its path, and keeps the requests."""

    def __init__(self, context=None):
        self._context = context
        self._serving = set()
        self.requests = []
        self.names = []
        self.pages = {}
        self.port = 0

    async def __aenter__(self):
        if self._context:
            self._context.sni_callback = lambda _, name, __: self.names.append(name)
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0, ssl=self._context)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_):
        self._server.close()
        for task in self._serving:
            task.cancel()
        await asyncio.gather(*self._serving, return_exceptions=True)

    async def _serve(self, reader, writer):
        self._serving.add(asyncio.current_task())
        try:
            await self._answer(reader, writer)
        finally:
            writer.transport.abort()

    async def _answer(self, reader, writer):
        with contextlib.suppress(ConnectionError, ssl.SSLError, asyncio.IncompleteReadError):
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            line, *fields = head.strip().split("\r\n")
            headers = {name.lower(): value for name, value in (field.split(": ", 1) for field in fields)}
            body = await reader.readexactly(int(headers.get("content-length", 0)))
            self.requests.append((line, headers, body))
            answer = self.pages.get(line.split()[1], b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\ninside")
            if callable(answer):
                await answer(writer)
            else:
                writer.write(answer)
                await writer.drain()
                writer.close()
                await writer.wait_closed()


class Net:
    """Names, and where connections really go: `OUTSIDE` is the outside, every other address the inside."""

    def __init__(self, outside, inside):
        self.outside = outside
        self.inside = inside
        self.names = {"example.com": [OUTSIDE], "other.example": [OUTSIDE]}
        self.lookups = []
        self.abandoned = 0
        self.dialled = []

    def resolve(self, host, port):
        """What the table says; anything else is this machine, as in a resolver that means ill."""
        self.lookups.append(host)
        answers = self.names.get(host, ["127.0.0.1"])
        return answers.pop(0) if answers and isinstance(answers[0], list) else answers

    @contextlib.contextmanager
    def silent_resolver(self):
        """Within the block, a look-up of a name that ends in `never.example` blocks; yield what lets it end."""
        end, resolve = threading.Event(), self.resolve

        def silent(host, port):
            if not host.endswith("never.example"):
                return resolve(host, port)
            self.lookups.append(host)
            end.wait(60)
            raise socket.gaierror(socket.EAI_AGAIN, "no answer")

        self.resolve = silent
        try:
            yield end
        finally:
            end.set()
            self.resolve = resolve

    async def dial(self, address, port, timeout):  # noqa: ASYNC109 — httpcore's
        self.dialled.append((address, port))
        site = self.outside if address == OUTSIDE else self.inside
        return await dial("127.0.0.1", site.port, timeout)

    def fetch(self, *, guard=True, context=NO_TRUST, **settings):
        """`Fetch` in front of this network; `guard=False` allows every address."""
        allowed = parse_networks("0.0.0.0/0, ::/0")

        def make_egress(networks, **options):
            networks = networks if guard else allowed
            return Egress(networks, dialer=self.dial, context=context, **options)

        def count():
            self.abandoned += 1

        chosen = Settings(**settings)
        return Fetch(chosen, key_share=0.5, resolver=self.resolve, abandoned=count, egress=make_egress)


@pytest.fixture
async def net():
    """Two servers, outside and inside, and the names between."""
    async with Site() as outside, Site() as inside:
        yield Net(outside, inside)


def page(body=b"", status="200 OK", **headers):
    """An HTTP answer."""
    fields = {"Content-Length": len(body), **{name.replace("_", "-"): value for name, value in headers.items()}}
    lines = "".join(f"{name}: {value}\r\n" for name, value in fields.items() if value is not None)
    return f"HTTP/1.1 {status}\r\n{lines}\r\n".encode("utf-8", "replace") + body


def redirect(location, status="302 Found"):
    return page(status=status, Location=location)


async def refused(fetch, url, limit=LIMIT):
    """The error that fetching this URL ends in."""
    with pytest.raises(FetchError) as caught:
        await fetch.get(url, limit)
    return caught.value


# --- what leads inside -------------------------------------------------------------------------------------------

HOSTILE_URLS = [
    *(f"http://{f'[{address}]' if ':' in address else address}/" for address in forbidden_urls.ADDRESSES),
    *forbidden_urls.URLS,
    *forbidden_urls.DISGUISED,
]


@pytest.mark.parametrize("url", HOSTILE_URLS)
async def test_a_hostile_url_makes_no_connection(net, url):
    error = await refused(net.fetch(), url)

    assert (net.dialled, net.inside.requests) == ([], [])
    assert error.kind == "file_download_error"


@pytest.mark.parametrize("address", forbidden_urls.ADDRESSES)
async def test_a_name_that_leads_inside_makes_no_connection(net, address):
    net.names["hostile.example"] = [address]

    await refused(net.fetch(), "http://hostile.example/")

    assert (net.dialled, net.inside.requests) == ([], [])


@pytest.mark.parametrize("address", forbidden_urls.ADDRESSES)
async def test_without_the_guard_the_same_name_reaches_the_inside(net, address):
    net.names["hostile.example"] = [address]

    body = await net.fetch(guard=False).get("http://hostile.example/", LIMIT)

    assert (body, len(net.inside.requests)) == (b"inside", 1)


@pytest.mark.parametrize("answers", [[OUTSIDE, "127.0.0.1"], ["10.0.0.1", OUTSIDE], [OUTSIDE, "::ffff:127.0.0.1"]])
async def test_one_address_inside_among_public_ones_is_enough_to_refuse(net, answers):
    net.names["mixed.example"] = answers

    await refused(net.fetch(), "http://mixed.example/")

    assert net.dialled == []


@pytest.mark.parametrize("answers", [[], ["nonsense"], ["127.0.0.1.example.com"]])
async def test_a_name_without_an_address_is_refused(net, answers):
    net.names["empty.example"] = answers

    await refused(net.fetch(), "http://empty.example/")

    assert net.dialled == []


@pytest.mark.parametrize("url", [*HOSTILE_URLS[::4], "http://hostile.example/"])
async def test_a_redirect_inside_is_not_followed(net, url):
    net.outside.pages["/start"] = redirect(url)

    with contextlib.suppress(FetchError):  # some lead nowhere but back outside
        await net.fetch().get("http://example.com/start", LIMIT)

    assert (net.inside.requests, {address for address, _ in net.dialled}) == ([], {OUTSIDE})


async def test_a_second_answer_of_the_name_server_does_not_count(net):
    net.names["rebinding.example"] = [[OUTSIDE], ["127.0.0.1"]]
    net.outside.pages["/"] = page(b"outside")

    body = await net.fetch().get("http://rebinding.example/", LIMIT)

    assert (body, net.lookups) == (b"outside", ["rebinding.example"])


async def test_a_redirect_to_the_same_name_is_looked_up_and_checked_again(net):
    net.names["rebinding.example"] = [[OUTSIDE], ["127.0.0.1"]]
    net.outside.pages["/"] = redirect("http://rebinding.example/again")

    await refused(net.fetch(), "http://rebinding.example/")

    assert (len(net.lookups), net.inside.requests) == (2, [])


@pytest.mark.parametrize("url", ["http://hostile.example/", "http://[::1]/", "https://169.254.169.254/", "http://a@b/"])
async def test_a_webhook_inside_makes_no_connection(net, url):
    with pytest.raises(FetchError):
        await net.fetch().post(url, b"{}", {}, 5)

    assert (net.dialled, net.inside.requests) == ([], [])


async def test_proxies_in_the_environment_are_not_used(net, monkeypatch):
    for name in ("HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{net.inside.port}")
    net.outside.pages["/"] = page(b"outside")

    body = await net.fetch().get("http://example.com/", LIMIT)

    assert (body, net.inside.requests) == (b"outside", [])


async def test_the_operators_network_may_be_reached(net):
    net.names["camera.lan"] = ["192.168.1.20"]

    body = await net.fetch(allow_net="192.168.1.0/24").get("http://camera.lan:8080/now.jpg", LIMIT)

    assert (body, net.dialled) == (b"inside", [("192.168.1.20", 8080)])


@pytest.mark.parametrize("name", ["localhost", "app.localhost"])
async def test_of_localhosts_addresses_the_allowed_one_is_reached(name, net):
    net.names[name] = ["::1", "127.0.0.1"]

    await net.fetch(allow_net="127.0.0.0/8").get(f"http://{name}:3000/now.jpg", LIMIT)

    assert net.dialled == [("127.0.0.1", 3000)]


async def test_any_other_name_must_have_allowed_addresses_only(net):
    net.names["box.lan"] = ["::1", "127.0.0.1"]

    with pytest.raises(FetchError, match="not on the public internet"):
        await net.fetch(allow_net="127.0.0.0/8").get("http://box.lan:3000/now.jpg", LIMIT)


async def test_the_error_says_nothing_of_the_inside(net):
    error = await refused(net.fetch(), "http://hostile.example/")

    assert "127.0.0.1" not in error.message


# --- what goes through -------------------------------------------------------------------------------------------


async def test_a_request_says_whom_it_means_and_takes_no_encodings(net):
    net.outside.pages["/a%20b?x=1"] = page(b"picture")

    body = await net.fetch().get("http://example.com:8080/a b?x=1#top", LIMIT)

    ((line, headers, _),) = net.outside.requests
    assert (body, line, headers["host"]) == (b"picture", "GET /a%20b?x=1 HTTP/1.1", "example.com:8080")
    assert (headers["accept-encoding"], "cookie" in headers, "authorization" in headers) == ("identity", False, False)


async def test_the_next_address_is_dialled_when_the_first_does_not_answer(net):
    net.names["example.com"] = ["1.1.1.1", OUTSIDE]
    net.inside.port = 1  # where nothing listens
    net.outside.pages["/"] = page(b"picture")

    body = await net.fetch().get("http://example.com/", LIMIT)

    assert (body, net.dialled) == (b"picture", [("1.1.1.1", 80), (OUTSIDE, 80)])


@pytest.mark.parametrize("status", ["301 Moved", "302 Found", "303 See Other", "307 Temporary", "308 Permanent"])
async def test_redirects_are_followed(net, status):
    net.outside.pages |= {"/a": redirect("b", status), "/b": page(b"picture")}

    assert await net.fetch().get("http://example.com/a", LIMIT) == b"picture"


@pytest.mark.parametrize(("hops", "reached"), [(4, True), (5, False)])
async def test_four_redirects_are_followed_and_no_fifth(net, hops, reached):
    net.outside.pages |= {f"/{hop}": redirect(f"/{hop + 1}") for hop in range(hops)}
    net.outside.pages[f"/{hops}"] = page(b"picture")
    fetch = net.fetch()

    if reached:
        assert await fetch.get("http://example.com/0", LIMIT) == b"picture"
    else:
        assert "redirected" in (await refused(fetch, "http://example.com/0")).message


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        (page(status="404 Not Found"), "file_download_error"),
        (page(status="500 Oops"), "file_download_error"),
        (page(status="204 No Content"), "file_download_error"),
        (page(status="302 Found"), "file_download_error"),
        (page(status="304 Not Modified"), "file_download_error"),
        (page(b"\x1f\x8b", Content_Encoding="gzip"), "file_download_error"),
        (page(b"abc", Content_Length=10), "file_download_error"),
        (page(b"", Content_Length=LIMIT + 1), "file_too_large"),
        (page(bytes(LIMIT + 1)), "file_too_large"),
        (
            page(b"%x\r\n" % (LIMIT + 1) + bytes(LIMIT + 1), Content_Length=None, Transfer_Encoding="chunked"),
            "file_too_large",
        ),
        (b"SSH-2.0-OpenSSH_9.9\r\n", "file_download_error"),
        (b"HTTP/1.1 200 OK\r\nX: " + b"x" * 200_000, "file_download_error"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab", "file_download_error"),
        (b"", "file_download_error"),
    ],
    ids=str,
)
async def test_what_is_no_picture_within_limits_is_an_error(net, answer, kind):
    net.outside.pages["/"] = answer

    error = await refused(net.fetch(), "http://example.com/")

    assert error.kind == kind


async def test_a_file_of_exactly_the_limit_is_taken(net):
    net.outside.pages["/"] = page(bytes(LIMIT))

    assert len(await net.fetch().get("http://example.com/", LIMIT)) == LIMIT


async def test_a_server_that_drips_is_given_up(net):
    async def drip(writer):
        writer.write(page(b"", Content_Length=1000))
        while not writer.is_closing():
            writer.write(b".")
            await writer.drain()
            await asyncio.sleep(0.01)

    net.outside.pages["/"] = drip

    error = await refused(net.fetch(fetch_timeout=0.2), "http://example.com/")

    assert "too long" in error.message


async def test_a_name_server_that_hangs_is_given_up(net):
    with net.silent_resolver():
        error = await refused(net.fetch(fetch_connect_timeout=0.05), "http://never.example/")

    assert "too long" in error.message


async def test_no_server_there_is_an_error(net):
    net.outside.port = 1

    assert "can't be reached" in (await refused(net.fetch(), "http://example.com/")).message


# --- how many at once --------------------------------------------------------------------------------------------


async def test_one_keys_fetches_leave_room_for_anothers(net):
    net.outside.pages["/"] = page(b"picture")
    fetch = net.fetch(max_fetches=2, fetch_timeout=5.0)
    fetch._slots._patience_s = 0.05

    async with fetch._slots.one("alice"):
        with pytest.raises(RequestError) as refused:
            await fetch.get("http://example.com/", LIMIT, tenant="alice")
        others = await fetch.get("http://example.com/", LIMIT, tenant="bob")
    again = await fetch.get("http://example.com/", LIMIT, tenant="alice")

    assert (refused.value.status, others, again) == (429, b"picture", b"picture")


async def test_without_keys_all_fetches_are_one_callers(net):
    net.outside.pages["/"] = page(b"picture")
    fetch = net.fetch(max_fetches=2)

    async with fetch._slots.one("anonymous"):
        assert await fetch.get("http://example.com/", LIMIT) == b"picture"


async def test_waiting_for_ones_turn_is_no_part_of_a_fetchs_time():
    fetch = Fetch(Settings(max_fetches=1, fetch_timeout=0.05), key_share=0.5)
    fetch._slots._patience_s = 60.0

    async def follow(*_):
        return b"picture"

    fetch._follow = follow
    async with fetch._slots.one("alice"):
        waiting = asyncio.create_task(fetch.get("http://example.com/", LIMIT, tenant="bob"))
        await asyncio.sleep(0.2)

    assert await waiting == b"picture"


# --- names that never resolve --------------------------------------------------------------------------------------


async def test_names_that_never_resolve_take_their_own_keys_places_until_the_look_ups_end(net):
    net.outside.pages["/"] = page(b"picture")
    with net.silent_resolver() as end:
        fetch = net.fetch(max_fetches=4, fetch_connect_timeout=1.0, fetch_timeout=3.0)
        for number in range(2):
            with pytest.raises(FetchError, match="too long"):
                await fetch.get(f"http://{number}.never.example/", LIMIT, tenant="mallory")
        with pytest.raises(RequestError) as refused:
            await fetch.get("http://example.com/", LIMIT, tenant="mallory")
        others = [await fetch.get("http://example.com/", LIMIT, tenant="alice") for _ in range(8)]
        end.set()
        again = await fetch.get("http://example.com/", LIMIT, tenant="mallory")

    assert refused.value.status == 429
    assert others == [b"picture"] * 8
    assert (again, net.abandoned) == (b"picture", 2)


async def test_webhooks_to_names_that_never_resolve_hold_up_no_other_keys(net):
    net.outside.pages["/"] = page(b"thanks")
    with net.silent_resolver():
        fetch = net.fetch(fetch_connect_timeout=0.05)
        posts = [fetch.post(f"http://{n}.never.example/", b"{}", {}, 5, tenant="mallory") for n in range(64)]
        failures = await asyncio.gather(*posts, return_exceptions=True)
        status = await fetch.post("http://example.com/", b"{}", {}, 5, tenant="alice")

    assert {type(failure) for failure in failures} == {FetchError}
    assert status == 200


@pytest.mark.parametrize(("code", "passing"), [(socket.EAI_NONAME, False), (socket.EAI_AGAIN, True)])
async def test_a_name_that_has_no_address_is_told_from_a_name_server_that_failed(net, code, passing):
    def without(host, port):
        raise socket.gaierror(code, "no address")

    net.resolve = without

    error = await refused(net.fetch(), "http://example.com/")

    assert "its host name can't be resolved" in error.message
    assert error.passing == passing


# --- through a proxy -------------------------------------------------------------------------------------------------


@pytest.fixture
async def proxied(net):
    """A network whose outside is reached through a proxy, by its name alone: here it does not resolve."""
    async with ConnectProxy({"example.com": net.outside.port, "other.example": net.outside.port}) as proxy:
        net.proxy = proxy
        net.names = {"example.com": [], "other.example": [], "public.example": [OUTSIDE]}
        net.inside.port = proxy.port  # what is dialled on loopback is the proxy
        yield net


def through(net, **options):
    return net.fetch(outbound_proxy=f"http://user:p%40ss@127.0.0.1:{net.proxy.port}", **options)


async def test_a_picture_is_fetched_through_the_proxy_by_its_name(proxied):
    proxied.outside.pages |= {"/a": redirect("http://other.example/b"), "/b": page(b"picture")}

    body = await through(proxied).get("http://example.com/a", LIMIT)

    assert (body, proxied.proxy.targets) == (b"picture", ["example.com:80", "other.example:80"])
    assert "Proxy-Authorization: Basic dXNlcjpwQHNz" in proxied.proxy.heads[0]  # user:p@ss
    assert "proxy-authorization" not in proxied.outside.requests[0][1]


async def test_a_webhook_is_sent_through_the_proxy(proxied):
    assert await through(proxied).post("http://example.com/hook", b"{}", {}, 5) == 200

    assert proxied.proxy.targets == ["example.com:80"]


@pytest.mark.parametrize(
    "url", ["http://192.168.1.5/", "http://[::1]/", "http://169.254.169.254/", "http://inside.example/"]
)
async def test_what_is_known_to_lie_inside_is_refused_before_the_proxy(proxied, url):
    proxied.names["inside.example"] = ["10.0.0.7"]

    error = await refused(through(proxied), url)

    assert "not on the public internet" in error.message
    assert proxied.proxy.heads == []


async def test_a_redirect_to_the_inside_is_refused_behind_the_proxy_too(proxied):
    proxied.outside.pages["/"] = redirect("http://10.0.0.7/")

    assert "not on the public internet" in (await refused(through(proxied), "http://example.com/")).message


async def test_what_the_operator_allows_inside_is_reached_without_the_proxy(proxied):
    async with Site() as camera:
        camera.pages["/"] = page(b"camera")
        proxied.inside.port = camera.port

        body = await through(proxied, allow_net="10.0.0.7").get("http://10.0.0.7/", LIMIT)

    assert (body, proxied.proxy.heads) == (b"camera", [])


@pytest.mark.parametrize(
    ("answer", "reason"),
    [("403 Forbidden", "the operator's proxy refuses it"), ("502 Bad Gateway", "its server can't be reached")],
)
async def test_what_the_proxy_says_of_the_target_is_told(proxied, answer, reason):
    proxied.proxy.refuse = answer

    assert (await refused(through(proxied), "http://example.com/")).message.endswith(reason)


@pytest.mark.parametrize("answer", ["407 Proxy Authentication Required", "429 Slow Down", "down"])
async def test_a_proxy_that_can_not_be_used_is_no_fault_of_the_caller(proxied, answer, caplog):
    proxied.proxy.refuse = answer
    if answer == "down":
        proxied.inside.port = 1

    with pytest.raises(RequestError) as error:
        await through(proxied).get("http://example.com/", LIMIT)

    assert error.value.status == 429
    assert "the outbound proxy can't be used" in caplog.text
    assert "p@ss" not in caplog.text + str(error.value.body)


@pytest.mark.parametrize("host", ["unknown.example", f"{'long' * 20}.example"])
async def test_a_proxy_without_an_address_is_no_fault_of_the_caller(proxied, host, caplog):
    proxied.names["unknown.example"] = []
    resolve = proxied.resolve
    # As the system's resolver does, which encodes the name: `UnicodeError` for a part of more than 63 letters.
    proxied.resolve = lambda host, port: host.encode("idna") and resolve(host, port)

    with pytest.raises(RequestError) as error:
        await proxied.fetch(outbound_proxy=f"http://{host}:3128").get("http://example.com/", LIMIT)

    assert error.value.status == 429
    assert "the outbound proxy can't be used" in caplog.text


async def test_a_target_that_does_not_answer_the_proxy_is_the_callers_fault(proxied, caplog):
    proxied.proxy.refuse = None

    error = await refused(through(proxied, fetch_connect_timeout=2.0), "http://example.com/")

    assert error.message.endswith("its server took too long")
    assert caplog.records == []
    async with asyncio.timeout(10):
        await proxied.proxy.hung_up.wait()


@pytest.mark.parametrize(
    "url", ["proxy:3128", "https://proxy:3128", "http://", "http://proxy/path", "http://a:geheim@:1"]
)
def test_a_proxy_that_is_none_is_said_without_its_password(url):
    with pytest.raises(SettingsError, match="outbound-proxy: a proxy looks like http://host:port") as error:
        Fetch(Settings(outbound_proxy=url), key_share=0.5)

    assert "geheim" not in str(error.value)


# --- webhooks ----------------------------------------------------------------------------------------------------


async def test_a_webhook_is_posted_as_it_is(net):
    net.outside.pages["/hook?id=7"] = page(b"thanks", status="202 Accepted")

    status = await net.fetch().post("http://example.com/hook?id=7", b'{"a": 1}', {"X-Fal-Webhook-Request-Id": "7"}, 5)

    ((line, headers, body),) = net.outside.requests
    assert (status, line, body) == (202, "POST /hook?id=7 HTTP/1.1", b'{"a": 1}')
    assert (headers["x-fal-webhook-request-id"], headers["content-length"]) == ("7", "8")


async def test_a_webhook_that_is_redirected_is_not_followed(net):
    net.outside.pages["/hook"] = redirect("http://other.example/")

    status = await net.fetch().post("http://example.com/hook", b"{}", {}, 5)

    assert (status, len(net.outside.requests)) == (302, 1)


async def test_a_webhook_that_hangs_is_given_up(net):
    async def hang(_):
        await asyncio.Event().wait()

    net.outside.pages["/hook"] = hang

    with pytest.raises(FetchError, match="too long"):
        await net.fetch().post("http://example.com/hook", b"{}", {}, 0.1)


# --- TLS ---------------------------------------------------------------------------------------------------------


@pytest.fixture
async def secure(tmp_path):
    """An https server outside, with a certificate for fal.run, and a client that trusts who signed it."""
    files = tls.ensure(Settings(data_dir=tmp_path))
    async with Site(tls.server_context(files)) as outside, Site() as inside:
        network = Net(outside, inside)
        network.names["fal.run"] = [OUTSIDE]
        network.fetch = functools.partial(network.fetch, context=ssl.create_default_context(cafile=files.ca))
        yield network


async def test_the_certificate_is_asked_for_and_checked_by_name(secure):
    secure.outside.pages["/"] = page(b"picture")

    body = await secure.fetch().get("https://fal.run/", LIMIT)

    assert (body, secure.outside.names, secure.dialled) == (b"picture", ["fal.run"], [(OUTSIDE, 443)])


async def test_a_certificate_for_another_name_is_refused(secure):
    error = await refused(secure.fetch(), "https://example.com/")

    assert (secure.outside.requests, error.kind) == ([], "file_download_error")


# --- the operator's table ----------------------------------------------------------------------------------------


async def test_urls_of_the_operators_table_are_answered_from_disk(net, tmp_path):
    (tmp_path / "a.png").write_bytes(b"a")
    (tmp_path / "b=b.png").write_bytes(b"b")
    table = f"https://example.com/?x=1,2={tmp_path}/a.png, https://b.example/={tmp_path}/a.png"

    body = await net.fetch(url_files=table).get("https://example.com/?x=1,2", LIMIT)

    assert (body, net.lookups) == (b"a", [])


async def test_a_file_of_the_table_that_has_gone_is_an_error(net, tmp_path):
    (tmp_path / "a.png").write_bytes(b"a")
    fetch = net.fetch(url_files=f"https://example.com/={tmp_path}/a.png")
    (tmp_path / "a.png").unlink()

    error = await refused(fetch, "https://example.com/")

    assert error.kind == "file_download_error"


@pytest.mark.parametrize("table", ["https://example.com/", "https://example.com/=/no/such/file", "=x"])
def test_a_table_that_names_no_file_is_refused(table):
    with pytest.raises(SettingsError):
        Fetch(Settings(url_files=table), key_share=0.5)


def test_a_network_that_is_none_is_refused():
    with pytest.raises(SettingsError):
        Fetch(Settings(allow_net="home"), key_share=0.5)


@pytest.mark.parametrize("offered", [True, False])
async def test_the_sample_picture_is_ours_only_where_it_is_offered(net, offered):
    (url,) = SAMPLES
    fetch = net.fetch()

    async def samples():
        return offered

    fetch._samples = samples

    with contextlib.nullcontext() if offered else pytest.raises(FetchError):
        assert (await fetch.get(url, LIMIT)).startswith(b"\xff\xd8\xff")
