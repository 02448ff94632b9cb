"""The local CA: what clients accept of it, what they refuse, and how it lives on disk."""

import asyncio
import contextlib
import datetime
import ipaddress
import socket
import ssl
import stat

import certifi
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization

from server.settings import Settings, SettingsError
from server.transport import tls
from server.transport.takeover import CERTIFICATE_NAMES
from tests.support.certificates import answering, rogue_context

# Names of §2.7 of the protocol, and the ways to say this machine.
NAMES = ["localhost", "queue.localhost", "127.0.0.1", "::1", "110602490-lcm-sd15-i2i.gateway.alpha.fal.ai"]
NAMES += [name for name in CERTIFICATE_NAMES if "*" not in name]


@pytest.fixture
def settings(tmp_path):
    return Settings(data_dir=tmp_path)


@pytest.fixture
def files(settings):
    return tls.ensure(settings)


def client_context(files: tls.TlsFiles) -> ssl.SSLContext:
    """A client that trusts the CA alone and checks as strictly as Python 3.13 does by default."""
    context = ssl.create_default_context(cafile=files.ca)
    context.verify_flags |= ssl.VERIFY_X509_STRICT | ssl.VERIFY_X509_PARTIAL_CHAIN
    return context


def handshake(client: ssl.SSLContext, server: ssl.SSLContext, name: str) -> set[str]:
    """A TLS handshake in memory; the kinds of names of the certificate. Raises what the client raises."""
    certificate, _ = shake_hands(client, server, name)
    return {kind for kind, _ in certificate["subjectAltName"]}


def shake_hands(client: ssl.SSLContext, server: ssl.SSLContext, name: str) -> tuple[dict, int]:
    """The server's certificate, and how many bytes it has sent behind the handshake. Raises what the client raises.

    Python's clients ask for a name (SNI) unless it is an address.
    """
    to_client, to_server = ssl.MemoryBIO(), ssl.MemoryBIO()
    ours = client.wrap_bio(to_client, to_server, server_hostname=name)
    theirs = server.wrap_bio(to_server, to_client, server_side=True)
    for side in (ours, theirs, ours, theirs):
        try:
            side.do_handshake()
        except ssl.SSLWantReadError:
            continue
    return ours.getpeercert() or {}, to_client.pending


@pytest.mark.parametrize("name", ["fal.run", "127.0.0.1"])
def test_the_server_sends_nothing_behind_the_handshake_while_the_client_may_write(name, files):
    _, behind = shake_hands(client_context(files), tls.server_context(files), name)

    assert behind == 0


@pytest.mark.parametrize("name", NAMES)
def test_python_accepts_the_certificate_for(name, files):
    handshake(client_context(files), tls.server_context(files), name)


@pytest.mark.parametrize(
    ("name", "kinds"),
    [
        ("fal.run", {"DNS"}),
        ("localhost", {"DNS"}),
        ("127.0.0.1", {"DNS", "IP Address"}),
        ("::1", {"DNS", "IP Address"}),
    ],
)
def test_only_who_asks_for_no_dns_name_is_shown_addresses(name, kinds, files):
    assert handshake(client_context(files), tls.server_context(files), name) == kinds


def test_who_asks_for_an_address_by_sni_is_shown_addresses_too(files):
    context = tls.server_context(files)
    connection = context.wrap_bio(ssl.MemoryBIO(), ssl.MemoryBIO(), server_side=True)

    context.sni_callback(connection, "127.0.0.1", context)

    assert connection.context is context


def test_both_certificates_end_in_the_same_protocol(files):
    client = client_context(files)
    client.set_alpn_protocols(["h2", "http/1.1"])
    with (
        answering(tls.server_context(files)) as port,
        socket.create_connection(("127.0.0.1", port)) as connection,
        client.wrap_socket(connection, server_hostname="fal.run") as secure,
    ):
        assert secure.selected_alpn_protocol() == "http/1.1"


@pytest.mark.parametrize(
    "name", ["example.com", "google.com", "notfal.ai", "fal.run.example.com", "10.0.0.1", "8.8.8.8"]
)
def test_python_refuses_what_the_stolen_key_signs_outside_the_names(name, files):
    with pytest.raises(ssl.SSLCertVerificationError, match="permitted subtree violation"):
        handshake(client_context(files), rogue_context(files, name), name)


def test_the_rogue_certificate_of_these_tests_is_refused_for_its_name_alone(files):
    handshake(client_context(files), rogue_context(files, "other.fal.run"), "other.fal.run")


def test_name_constraints_are_critical(files):
    ca = x509.load_pem_x509_certificate(files.ca.read_bytes())

    assert ca.extensions.get_extension_for_class(x509.NameConstraints).critical


@pytest.mark.parametrize("name", ["box.lan", "192.168.7.9", "one.apps.lan"])
def test_names_that_the_operator_adds_are_accepted(name, tmp_path):
    files = tls.ensure(Settings(data_dir=tmp_path, tls_names="box.lan, 192.168.7.9, *.apps.lan"))

    handshake(client_context(files), tls.server_context(files), name)


def test_an_added_name_does_not_open_its_neighbours(tmp_path):
    files = tls.ensure(Settings(data_dir=tmp_path, tls_names="box.lan,192.168.7.9"))

    with pytest.raises(ssl.SSLCertVerificationError, match="permitted subtree violation"):
        handshake(client_context(files), rogue_context(files, "192.168.7.10"), "192.168.7.10")


@pytest.mark.parametrize("name", ["two words", "http://box", "-box", "box_1"])
def test_a_name_that_is_none_is_said(name, tmp_path):
    with pytest.raises(SettingsError, match="tls-names"):
        tls.ensure(Settings(data_dir=tmp_path, tls_names=name))


def test_the_certificate_is_short_lived_enough_for_browsers(files):
    cert = x509.load_pem_x509_certificate(files.cert.read_bytes())

    assert cert.not_valid_after_utc - cert.not_valid_before_utc <= datetime.timedelta(days=398)


def test_the_certificate_has_its_loopback_addresses_as_addresses(files):
    cert = x509.load_pem_x509_certificate(files.cert.read_bytes())
    names = cert.extensions.get_extension_for_class(x509.SubjectAlternativeName).value

    assert names.get_values_for_type(x509.IPAddress) == [ipaddress.ip_address("127.0.0.1"), ipaddress.ip_address("::1")]


@pytest.mark.parametrize("key", ["ca_key", "key"])
def test_keys_are_readable_by_their_owner_alone(key, files):
    assert stat.S_IMODE(getattr(files, key).stat().st_mode) == 0o600


def test_the_bundle_has_the_ca_and_the_public_roots(files):
    bundle = ssl.create_default_context(cafile=files.bundle)
    public = ssl.create_default_context(cafile=certifi.where())

    assert len(bundle.get_ca_certs()) == len(public.get_ca_certs()) + 1


def test_a_second_start_changes_nothing(settings, files):
    before = {path.name: path.read_bytes() for path in files.directory.iterdir()}

    tls.ensure(settings)

    assert {path.name: path.read_bytes() for path in files.directory.iterdir()} == before


@pytest.mark.parametrize("lost", ["ca", "ca_key", "cert", "dns_cert", "bundle", "key"])
def test_a_lost_file_is_made_again(lost, settings, files):
    getattr(files, lost).unlink()

    tls.ensure(settings)

    handshake(client_context(files), tls.server_context(files), "fal.run")


@pytest.mark.parametrize("cut", ["ca", "cert", "dns_cert", "bundle"])
def test_a_file_cut_short_is_made_again(cut, settings, files):
    path = getattr(files, cut)
    path.write_bytes(path.read_bytes()[:100])

    tls.ensure(settings)

    handshake(client_context(files), tls.server_context(files), "fal.run")
    assert len(path.read_bytes()) > 100


def test_a_lost_ca_certificate_comes_back_with_the_same_key(settings, files):
    old_trust = client_context(files)
    files.ca.unlink()

    tls.ensure(settings)

    handshake(old_trust, tls.server_context(files), "fal.run")


def test_a_damaged_key_is_said_and_not_overwritten(settings, files):
    files.ca_key.write_text("nonsense")

    with pytest.raises(SettingsError, match=r"ca-key\.pem"):
        tls.ensure(settings)

    assert files.ca_key.read_text() == "nonsense"


@pytest.mark.parametrize("which", ["cert", "dns_cert"])
@pytest.mark.parametrize("days", [397 - 50, 500])
def test_a_certificate_near_its_end_is_renewed(days, which, settings, files):
    path = getattr(files, which)
    old = path.read_bytes()
    later = datetime.datetime.now(datetime.UTC) + datetime.timedelta(days=days)

    tls.ensure(settings, clock=lambda: later)

    assert path.read_bytes() != old
    assert x509.load_pem_x509_certificate(path.read_bytes()).not_valid_after_utc > later + datetime.timedelta(300)


@pytest.mark.parametrize("name", ["box.lan", "192.168.7.9"])
def test_a_running_context_takes_the_renewed_certificates(name, settings, files):
    context = tls.server_context(files)
    other = tls.ensure(Settings(data_dir=settings.data_dir, tls_names="box.lan,192.168.7.9"))

    tls.load_chains(context, other)

    handshake(client_context(other), context, name)


@pytest.mark.anyio
async def test_a_running_server_renews_its_certificate(settings, files):
    context = tls.server_context(files)
    wanted = Settings(data_dir=settings.data_dir, tls_names="box.lan")

    async with asyncio.timeout(10), asyncio.TaskGroup() as tasks:
        renewing = tasks.create_task(tls.keep_fresh(context, wanted, every_s=0.01))
        while not accepts(files, context, "box.lan"):  # noqa: ASYNC110 — nobody tells when it is renewed
            await asyncio.sleep(0.01)
        renewing.cancel()


@pytest.mark.anyio
async def test_a_server_whose_disk_failed_renews_its_certificate_later(settings, files, caplog):
    context = tls.server_context(files)
    wanted = Settings(data_dir=settings.data_dir, tls_names="box.lan")
    key = files.ca_key.read_bytes()
    files.ca_key.write_text("nonsense")

    async with asyncio.timeout(10), asyncio.TaskGroup() as tasks:
        renewing = tasks.create_task(tls.keep_fresh(context, wanted, every_s=0.01))
        while "could not be renewed" not in caplog.text:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        files.ca_key.write_bytes(key)
        while not accepts(files, context, "box.lan"):  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        renewing.cancel()


def accepts(files: tls.TlsFiles, server: ssl.SSLContext, name: str) -> bool:
    """Whether a client takes what the server presents."""
    with contextlib.suppress(ssl.SSLCertVerificationError):
        handshake(client_context(files), server, name)
        return True
    return False


def test_private_keys_are_not_in_the_certificates(files):
    text = files.bundle.read_text() + files.ca.read_text() + files.cert.read_text()

    assert "PRIVATE KEY" not in text
    assert serialization.load_pem_private_key(files.key.read_bytes(), None)


# --- in a balancer's form


def test_a_pem_has_one_certificate_and_its_key_for_the_owner_alone(files):
    tls.write_pems(files)

    for name, cert in (("names.pem", files.dns_cert), ("addresses.pem", files.cert)):
        path = files.haproxy / name
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(path)
        assert path.read_bytes() == cert.read_bytes() + files.key.read_bytes()
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
