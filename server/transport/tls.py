"""The local certificate authority and the server's certificates, under `<data-dir>/tls/`.

    ca.pem         the CA's certificate: what clients trust           ca-key.pem   its key, 0600
    cert.pem       the server's certificate, for all its names and addresses
    cert-dns.pem   the same for its DNS names alone                   key.pem      the key of both, 0600
    bundle.pem     ca.pem and the public roots, for programs whose trust store is replaced (SSL_CERT_FILE)
    haproxy/       on request, for deploy/haproxy.cfg: each certificate with its key in one file, and the list of them

A client that asks for a DNS name (SNI) is shown `cert-dns.pem`. BoringSSL (Bun, Electron, Dart) knows no constraints on
IP addresses, and so refuses every certificate that has an address and is signed by a CA with such constraints.

Keys are made once and kept. A certificate is derived from its key, so `ensure` makes any other file again when it is
missing, damaged or out of date.
"""

import asyncio
import datetime
import functools
import ipaddress
import logging
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import certifi
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from server.data_dir import locked, write_whole
from server.memory import end_if_exhausted
from server.settings import ListenSettings, SettingsError
from server.transport import certificates
from server.transport.takeover import CERTIFICATE_NAMES, DOMAINS

_log = logging.getLogger(__name__)

# Seconds between two checks whether the certificate of a running server expires soon.
_DAY_S = 24 * 60 * 60

# `queue.localhost`: Python clients before 0.11 put `queue.` in front of FAL_RUN_HOST, and can't be told otherwise.
_LOOPBACK_NAMES = ("localhost", "queue.localhost", "127.0.0.1", "::1")


@dataclass(frozen=True)
class TlsFiles:
    """Paths of the keys and certificates. They exist once `ensure` has returned."""

    directory: Path

    @property
    def ca(self) -> Path:
        """The CA's certificate."""
        return self.directory / "ca.pem"

    @property
    def ca_key(self) -> Path:
        """The CA's private key."""
        return self.directory / "ca-key.pem"

    @property
    def cert(self) -> Path:
        """The server's certificate for all its names and addresses."""
        return self.directory / "cert.pem"

    @property
    def dns_cert(self) -> Path:
        """The server's certificate for its DNS names alone."""
        return self.directory / "cert-dns.pem"

    @property
    def key(self) -> Path:
        """The server's private key, of both certificates."""
        return self.directory / "key.pem"

    @property
    def bundle(self) -> Path:
        """The CA and the public roots."""
        return self.directory / "bundle.pem"

    @property
    def haproxy(self) -> Path:
        """The folder that a balancer gets a copy of, once `write_pems` has returned."""
        return self.directory / "haproxy"


def ensure(settings: ListenSettings, clock: Callable[[], datetime.datetime] = certificates.utc_now) -> TlsFiles:
    """Make every file which is missing, damaged, about to expire or for other names; return the paths of all.

    Several processes may do so at once. Raises `SettingsError` for a malformed name in `tls_names`, and for a key which
    can't be read.
    """
    extra = _extra_names(settings)
    permitted = certificates.constraints([*DOMAINS, "localhost", *extra])
    names = certificates.subject_names([*_LOOPBACK_NAMES, *CERTIFICATE_NAMES, *extra])
    now = clock()

    files = TlsFiles(settings.tls_dir)
    files.directory.mkdir(parents=True, exist_ok=True)
    with locked(files.directory / ".lock"):
        ca_key = _key(files.ca_key)
        ca = _certificate(files.ca)
        if ca is None or not certificates.still_good(ca, ca_key, permitted, now):
            if ca is not None:
                _log.warning(
                    "the local CA has been made again: every machine that trusts %s must import it again", files.ca
                )
            ca = certificates.sign_ca(ca_key, permitted, now)
            _publish(files.ca, _pem(ca))
        key = _key(files.key)
        for path, its_names in ((files.cert, names), (files.dns_cert, certificates.dns_names(names))):
            cert = _certificate(path)
            good = cert is not None and certificates.still_good(cert, key, its_names, now)
            if cert is None or not good or not certificates.is_signed_by(cert, ca):
                _publish(path, _pem(certificates.sign_server(key, its_names, ca, ca_key, now)))
        bundle = _pem(ca) + Path(certifi.where()).read_bytes()
        if not files.bundle.is_file() or files.bundle.read_bytes() != bundle:
            _publish(files.bundle, bundle)
    return files


def write_pems(files: TlsFiles) -> None:
    """Write each certificate with its key into one file, as HAProxy reads them, and the list that says who gets which.

    The first of the list goes to clients that name no host, by address; the filter keeps names from it, which `_choose`
    keeps from it too.
    """
    files.haproxy.mkdir(exist_ok=True)
    key = files.key.read_bytes()
    for name, cert in (("addresses.pem", files.cert), ("names.pem", files.dns_cert)):
        write_whole(files.haproxy / name, cert.read_bytes() + key)
    write_whole(files.haproxy / "crt-list", b"addresses.pem no-name.invalid\nnames.pem\n")


def own_names(settings: ListenSettings) -> list[str]:
    """Return the names and addresses in the server's certificate that are no names of fal's."""
    return [*_LOOPBACK_NAMES, *_extra_names(settings)]


def fingerprint(ca: Path) -> str:
    """Return the SHA-256 of a certificate as browsers and systems show it: `AB:CD:…`."""
    return x509.load_pem_x509_certificate(ca.read_bytes()).fingerprint(hashes.SHA256()).hex(":").upper()


def expiry(cert: Path) -> datetime.datetime:
    """Return when a certificate expires, in UTC."""
    return x509.load_pem_x509_certificate(cert.read_bytes()).not_valid_after_utc


def _extra_names(settings: ListenSettings) -> list[str]:
    return [part.strip().lower() for part in settings.tls_names.split(",") if part.strip()]


def server_context(files: TlsFiles) -> ssl.SSLContext:
    """Return the TLS context of a server. `load_chains` into it again takes effect for new connections."""
    context = _context()
    load_chains(context, files)
    return context


def load_chains(context: ssl.SSLContext, files: TlsFiles) -> None:
    """Let `context` present the certificates which are on disk now."""
    named = _context()
    named.load_cert_chain(files.dns_cert, files.key)
    context.load_cert_chain(files.cert, files.key)
    context.sni_callback = functools.partial(_choose, named)


def _context() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    # TLS 1.3 sends tickets behind the handshake, while the client sends its request: Python's clients that read in a
    # thread of their own (websockets' `sync`, and so fal's SDK) let both into OpenSSL at once and lose the connection,
    # one in a thousand. A resumed handshake would save one signature, 0.1 ms.
    context.num_tickets = 0
    return context


def _choose(named: ssl.SSLContext, connection: ssl.SSLObject, name: str | None, _: ssl.SSLContext) -> None:
    """Let a handshake that asks for a DNS name go on in the context `named`."""
    if name is None:
        return
    try:
        ipaddress.ip_address(name)  # against RFC 6066, but some clients send it
    except ValueError:
        connection.context = named


async def keep_fresh(context: ssl.SSLContext, settings: ListenSettings, every_s: float = _DAY_S) -> None:
    """Renew a running server's certificates in time: check every `every_s` seconds. Never returns.

    A failure is logged and tried again at the next check; a certificate is renewed sixty days before it expires.
    """
    while True:
        await asyncio.sleep(every_s)
        try:
            load_chains(context, await asyncio.to_thread(ensure, settings))
        except Exception as error:  # noqa: BLE001 — a task which ends here would end unnoticed
            end_if_exhausted(error)
            _log.exception("the certificates could not be renewed; the next try is in %.0f s", every_s)


# --- files --------------------------------------------------------------------------------------------------------


def _key(path: Path) -> ec.EllipticCurvePrivateKey:
    """Return the key at `path`; make one if there is none (P-256, which every TLS client supports)."""
    if not path.exists():
        key = ec.generate_private_key(ec.SECP256R1())
        pkcs8 = serialization.PrivateFormat.PKCS8
        write_whole(path, key.private_bytes(serialization.Encoding.PEM, pkcs8, serialization.NoEncryption()))
        return key
    try:
        loaded = serialization.load_pem_private_key(path.read_bytes(), password=None)
    except (ValueError, TypeError) as error:
        raise SettingsError(f"{path} holds no private key; remove it and a new one is made") from error
    if not isinstance(loaded, ec.EllipticCurvePrivateKey):
        raise SettingsError(f"{path} holds no elliptic-curve key; remove it and a new one is made")
    return loaded


def _certificate(path: Path) -> x509.Certificate | None:
    try:
        return x509.load_pem_x509_certificate(path.read_bytes())
    except FileNotFoundError:
        return None
    except ValueError:
        _log.warning("%s holds no certificate and is made again", path)
        return None


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


def _publish(path: Path, pem: bytes) -> None:
    """Write a certificate: readable by all users, so that a copy which keeps the mode is readable too."""
    write_whole(path, pem, mode=0o644)
