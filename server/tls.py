"""The local certificate authority and the server's certificate, under `<data-dir>/tls/`.

    ca.pem       the CA's certificate: what people trust            ca-key.pem   its key, 0600
    cert.pem     the server's certificate                           key.pem      its key, 0600
    bundle.pem   ca.pem and the public roots, for programs whose trust store is replaced (SSL_CERT_FILE)

Keys are made once and stay; a certificate is derived from its key, so any file but a key may be lost, cut short or out
of date and `ensure` makes it again. Critical name constraints (RFC 5280, 4.2.1.10) keep the CA to fal's domains,
localhost and what the operator adds: whoever steals its key can't impersonate a bank. The profile passes Python 3.13's
`VERIFY_X509_STRICT`, Node, and Chromium.
"""

import asyncio
import contextlib
import datetime
import fcntl
import ipaddress
import logging
import os
import re
import ssl
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import certifi
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from server.settings import Settings, SettingsError
from server.takeover import CERTIFICATE_NAMES, DOMAINS

_log = logging.getLogger(__name__)

# Ten years: every renewal of the CA means a walk to each machine that trusts it. No browser limits a root.
_CA_LIFE = datetime.timedelta(days=3650)
# Apple refuses server certificates of more than 825 days, public CAs stop at 398.
_CERT_LIFE = datetime.timedelta(days=397)
# Renewed this long before the end; a server looks once a day.
_RENEW_BEFORE = datetime.timedelta(days=60)
_DAY_S = 24 * 60 * 60
# A client whose clock is a little slow accepts a certificate made this minute.
_CLOCK_SKEW = datetime.timedelta(days=1)

# `queue.localhost`: Python clients before 0.11 put `queue.` in front of FAL_RUN_HOST, and can't be told otherwise.
_LOOPBACK_NAMES = ("localhost", "queue.localhost", "127.0.0.1", "::1")
_LOOPBACK_NETWORKS = (ipaddress.IPv4Network("127.0.0.0/8"), ipaddress.IPv6Network("::1/128"))
_DNS_NAME = re.compile(r"(\*\.)?([a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?\.)*[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?", re.ASCII)


@dataclass(frozen=True)
class TlsFiles:
    """Where the pieces lie. They exist once `ensure` has returned."""

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
        """The server's certificate."""
        return self.directory / "cert.pem"

    @property
    def key(self) -> Path:
        """The server's private key."""
        return self.directory / "key.pem"

    @property
    def bundle(self) -> Path:
        """The CA and the public roots."""
        return self.directory / "bundle.pem"


def ensure(settings: Settings) -> TlsFiles:
    """Make whatever of the files is missing, damaged, near its end or for other names; return where they lie.

    Safe beside other processes that do the same. Raises `SettingsError` for a name in `tls_names` that is none, and for
    a key that can't be read.
    """
    extra = tuple(part.strip().lower() for part in settings.tls_names.split(",") if part.strip())
    permitted = [_constraint(name) for name in (*DOMAINS, "localhost", *extra)]
    permitted += [x509.IPAddress(network) for network in _LOOPBACK_NETWORKS]
    names = [_general_name(name) for name in (*_LOOPBACK_NAMES, *CERTIFICATE_NAMES, *extra)]

    files = TlsFiles(settings.tls_dir)
    files.directory.mkdir(parents=True, exist_ok=True)
    with _locked(files.directory):
        ca_key = _key(files.ca_key)
        ca = _certificate(files.ca)
        if ca is None or not _fits(ca, ca_key, x509.NameConstraints(_unique(permitted), None)):
            if ca is not None:
                _log.warning("the local CA has been made again: machines that trust %s must be told anew", files.ca)
            ca = _sign_ca(ca_key, _unique(permitted))
            _write(files.ca, _pem(ca))
        key = _key(files.key)
        cert = _certificate(files.cert)
        subject_names = x509.SubjectAlternativeName(_unique(names))
        if cert is None or not _fits(cert, key, subject_names) or not _signed_by(cert, ca):
            _write(files.cert, _pem(_sign_cert(key, subject_names, ca, ca_key)))
        bundle = _pem(ca) + Path(certifi.where()).read_bytes()
        if not files.bundle.is_file() or files.bundle.read_bytes() != bundle:
            _write(files.bundle, bundle)
    return files


def server_context(files: TlsFiles) -> ssl.SSLContext:
    """A server's TLS context. Loading the chain into it again takes effect for new connections."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    load_chain(context, files)
    return context


def load_chain(context: ssl.SSLContext, files: TlsFiles) -> None:
    """Let `context` present the certificate that lies on disk now."""
    context.load_cert_chain(files.cert, files.key)


async def keep_fresh(context: ssl.SSLContext, settings: Settings) -> None:
    """Renew a running server's certificate when its time comes. Never returns."""
    while True:
        await asyncio.sleep(_DAY_S)
        load_chain(context, await asyncio.to_thread(ensure, settings))


# --- certificates -------------------------------------------------------------------------------------------------


def _sign_ca(key: ec.EllipticCurvePrivateKey, permitted: list[x509.GeneralName]) -> x509.Certificate:
    name = _name("fourstep local CA")
    # Name constraints bind names, not purposes: the extended key usage keeps the CA from signing code or mail.
    return (
        _builder(name, name, key.public_key(), _CA_LIFE)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(signs_certificates=True), critical=True)
        .add_extension(x509.NameConstraints(permitted, None), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(_authority(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )


def _sign_cert(
    key: ec.EllipticCurvePrivateKey,
    names: x509.SubjectAlternativeName,
    ca: x509.Certificate,
    ca_key: ec.EllipticCurvePrivateKey,
) -> x509.Certificate:
    return (
        _builder(_name("fourstep server"), ca.subject, key.public_key(), _CERT_LIFE)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(signs_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(names, critical=False)
        .add_extension(_authority(ca_key.public_key()), critical=False)
        .sign(ca_key, hashes.SHA256())
    )


def _builder(
    subject: x509.Name, issuer: x509.Name, public_key: ec.EllipticCurvePublicKey, life: datetime.timedelta
) -> x509.CertificateBuilder:
    now = _now()
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _CLOCK_SKEW)
        .not_valid_after(now - _CLOCK_SKEW + life)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)
    )


def _authority(public_key: ec.EllipticCurvePublicKey) -> x509.AuthorityKeyIdentifier:
    return x509.AuthorityKeyIdentifier.from_issuer_public_key(public_key)


def _key_usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _name(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def _fits(
    certificate: x509.Certificate,
    key: ec.EllipticCurvePrivateKey,
    names: x509.NameConstraints | x509.SubjectAlternativeName,
) -> bool:
    """Whether the certificate is for this key and these names and will last."""
    if certificate.public_key() != key.public_key() or certificate.not_valid_after_utc - _now() < _RENEW_BEFORE:
        return False
    try:
        return certificate.extensions.get_extension_for_oid(names.oid).value == names
    except x509.ExtensionNotFound:
        return False


def _signed_by(certificate: x509.Certificate, ca: x509.Certificate) -> bool:
    try:
        certificate.verify_directly_issued_by(ca)
    except (ValueError, TypeError, x509.InvalidVersion) as error:
        _log.info("the server's certificate is not of this CA: %s", error)
        return False
    return True


# --- names --------------------------------------------------------------------------------------------------------


def _general_name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        if not _DNS_NAME.fullmatch(name):
            raise SettingsError(f"tls-names: {name!r} is neither a DNS name nor an IP address") from None
        return x509.DNSName(name)


def _constraint(name: str) -> x509.GeneralName:
    """The subtree that allows `name`: one address, or the domain and all below it."""
    general = _general_name(name)
    if isinstance(general, x509.IPAddress):
        return x509.IPAddress(ipaddress.ip_network(name))
    return x509.DNSName(name.removeprefix("*."))


def _unique(names: list[x509.GeneralName]) -> list[x509.GeneralName]:
    return list(dict.fromkeys(names))


# --- files --------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _locked(directory: Path) -> Iterator[None]:
    with (directory / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _key(path: Path) -> ec.EllipticCurvePrivateKey:
    """The key that lies there, else a new one (P-256: what every TLS client takes)."""
    if not path.exists():
        key = ec.generate_private_key(ec.SECP256R1())
        pkcs8 = serialization.PrivateFormat.PKCS8
        _write(path, key.private_bytes(serialization.Encoding.PEM, pkcs8, serialization.NoEncryption()), mode=0o600)
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


def _write(path: Path, data: bytes, mode: int = 0o644) -> None:
    """Replace the file as a whole: a reader, or a machine that loses power, has the old one or the new one."""
    part = path.with_name(path.name + ".part")
    part.unlink(missing_ok=True)
    with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)


def _now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC).replace(microsecond=0)
