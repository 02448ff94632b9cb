"""A real server behind a proxy and a private CA, and one whose name server is silent."""

import asyncio
import json
import urllib.error

import pytest

from server.settings import Settings
from server.transport import tls
from tests.chaos.harness import Victim, call
from tests.outbound.test_fetch import Site, page
from tests.support.connect_proxy import ConnectProxy
from tests.support.server_process import APP, CALL, post, serving

pytestmark = pytest.mark.anyio

HOST = "pictures.corp.invalid"  # a name that resolves nowhere (RFC 6761)
PICTURE = b"\xff\xd8\xff a picture"


@pytest.fixture
def files(tmp_path):
    return tls.ensure(Settings(data_dir=tmp_path / "ca", tls_names=HOST))


@pytest.mark.parametrize("trusting", [True, False])
async def test_a_host_of_a_private_ca_behind_a_proxy_is_reached_where_ssl_cert_file_trusts_it(files, trusting):
    env = {"SSL_CERT_FILE": str(files.ca)} if trusting else {}
    async with Site(tls.server_context(files)) as site, ConnectProxy({HOST: site.port}) as proxy:
        site.pages["/p.jpg"] = page(PICTURE)
        flags = ("--model", "instant", "--outbound-proxy", f"http://user:geheim@127.0.0.1:{proxy.port}")
        with serving(*flags, env=env) as server:
            try:
                answer = await asyncio.to_thread(post, server, f"/run/{APP}", image_url=f"https://{HOST}/p.jpg")
            except urllib.error.HTTPError as error:
                answer = {"status": error.code, "said": error.read().decode()}
            log = (server.data_dir / "log").read_text()

    assert proxy.targets == [f"{HOST}:443"]
    assert "geheim" not in log + json.dumps(answer)
    if trusting:
        assert answer["images"]
    else:
        assert answer["status"] == 422
        assert "its certificate is not trusted" in answer["said"]


def test_look_ups_that_never_end_do_not_keep_the_server_from_stopping(tmp_path):
    flags = ("--model", "instant", "--drain-timeout", "1", "--fetch-connect-timeout", "0.1")
    with Victim(tmp_path, *flags, silent_names=600.0) as server:
        server.wait_ready()
        status, answer = call(server.port, "POST", f"/run/{APP}", CALL | {"image_url": "http://a.never.test/"})
        stopped_s = server.stop()

    assert (status, answer["detail"][0]["type"]) == (422, "file_download_error")
    assert stopped_s < 20
