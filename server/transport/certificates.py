"""X.509 certificates of the local CA and the server: keys and names in, certificates out, no files.

Critical name constraints (RFC 5280, 4.2.1.10) keep the CA to fal's domains, localhost and what the operator adds:
whoever steals its key can't impersonate any other site. Python 3.13 (`VERIFY_X509_STRICT`), Node and Chromium accept
the certificates; BoringSSL (Bun) those without an IP address.
"""

import datetime
import ipaddress
import re

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from server.settings import SettingsError

# Ten years: a new CA must be installed by hand on each machine that trusts it. No browser limits a root.
_CA_LIFE = datetime.timedelta(days=3650)
# Apple refuses server certificates of more than 825 days, public CAs stop at 398.
_SERVER_LIFE = datetime.timedelta(days=397)
_RENEW_BEFORE = datetime.timedelta(days=60)
# A client whose clock is a little slow accepts a certificate made this minute.
_CLOCK_SKEW = datetime.timedelta(days=1)

_LOOPBACK_NETWORKS = (ipaddress.IPv4Network("127.0.0.0/8"), ipaddress.IPv6Network("::1/128"))
_DNS_NAME = re.compile(r"(\*\.)?([a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?\.)*[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?", re.ASCII)


def utc_now() -> datetime.datetime:
    """Return the time in UTC as certificates hold it: in whole seconds."""
    return datetime.datetime.now(datetime.UTC).replace(microsecond=0)


def subject_names(names: list[str]) -> x509.SubjectAlternativeName:
    """Return the DNS names and IP addresses that a server answers to. Raises `SettingsError` for what is neither."""
    return x509.SubjectAlternativeName(list(dict.fromkeys(map(_general_name, names))))


def dns_names(names: x509.SubjectAlternativeName) -> x509.SubjectAlternativeName:
    """Return the DNS names alone, without the IP addresses."""
    return x509.SubjectAlternativeName([name for name in names if isinstance(name, x509.DNSName)])


def constraints(names: list[str]) -> x509.NameConstraints:
    """Return what a CA may sign for: loopback, each address, each domain and all below it.

    Raises `SettingsError` for a name that is neither a DNS name nor an IP address.
    """
    loopback = [x509.IPAddress(network) for network in _LOOPBACK_NETWORKS]
    return x509.NameConstraints(list(dict.fromkeys([*map(_subtree, names), *loopback])), None)


def sign_ca(
    key: ec.EllipticCurvePrivateKey, permitted: x509.NameConstraints, now: datetime.datetime
) -> x509.Certificate:
    """Return a self-signed root certificate, which signs server certificates for names within `permitted`."""
    name = _name("fourstep local CA")
    # Name constraints bind names, not purposes: the extended key usage keeps the CA from signing code or mail.
    return (
        _builder(name, name, key.public_key(), now, _CA_LIFE)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(signs_certificates=True), critical=True)
        .add_extension(permitted, critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(_authority(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )


def sign_server(
    key: ec.EllipticCurvePrivateKey,
    names: x509.SubjectAlternativeName,
    ca: x509.Certificate,
    ca_key: ec.EllipticCurvePrivateKey,
    now: datetime.datetime,
) -> x509.Certificate:
    """Return a server's certificate. That `names` lie within the CA's constraints is checked by clients, not here."""
    return (
        _builder(_name("fourstep server"), ca.subject, key.public_key(), now, _SERVER_LIFE)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(signs_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(names, critical=False)
        .add_extension(_authority(ca_key.public_key()), critical=False)
        .sign(ca_key, hashes.SHA256())
    )


def still_good(
    certificate: x509.Certificate,
    key: ec.EllipticCurvePrivateKey,
    names: x509.NameConstraints | x509.SubjectAlternativeName,
    now: datetime.datetime,
) -> bool:
    """Return whether the certificate is for this key and these names, and does not expire soon."""
    if certificate.public_key() != key.public_key() or certificate.not_valid_after_utc - now < _RENEW_BEFORE:
        return False
    try:
        return certificate.extensions.get_extension_for_oid(names.oid).value == names
    except x509.ExtensionNotFound:
        return False


def is_signed_by(certificate: x509.Certificate, ca: x509.Certificate) -> bool:
    """Return whether `ca` is the issuer, by name and signature."""
    try:
        certificate.verify_directly_issued_by(ca)
    except (ValueError, TypeError, InvalidSignature):  # another name, another kind of key, another key
        return False
    return True


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    public_key: ec.EllipticCurvePublicKey,
    now: datetime.datetime,
    life: datetime.timedelta,
) -> x509.CertificateBuilder:
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


def _general_name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        if not _DNS_NAME.fullmatch(name):
            raise SettingsError(f"tls-names: {name!r} is neither a DNS name nor an IP address") from None
        return x509.DNSName(name)


def _subtree(name: str) -> x509.GeneralName:
    general = _general_name(name)
    if isinstance(general, x509.IPAddress):
        return x509.IPAddress(ipaddress.ip_network(name))
    return x509.DNSName(name.removeprefix("*."))
