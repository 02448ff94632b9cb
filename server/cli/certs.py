"""`fourstep certs` and `fourstep hosts`: what a client machine needs to reach this server under fal's names."""

from server.cli.output import in_data_dir, show
from server.settings import Settings, SettingsError
from server.transport import takeover, tls


def certs(settings: Settings) -> int:
    """Make the local CA and certificates, and say how clients trust them."""
    with in_data_dir(settings, made=True):
        files = tls.ensure(settings)
    certificates = f"Certificates: {files.cert}, {files.dns_cert} (without addresses, for clients on BoringSSL)"
    ca = f"CA: {files.ca}\nSHA-256: {tls.fingerprint(files.ca)}"
    show(f"{ca}\n{certificates}\n\n{takeover.trust_instructions(files.ca, files.bundle)}")
    return 0


def hosts(settings: Settings, address: str, *, with_site: bool) -> int:
    """Print the hosts-file lines that send fal's host names to a server."""
    try:
        show(takeover.hosts_lines(address, with_site=with_site))
    except ValueError as error:
        raise SettingsError(f"--address: {error}") from error
    return 0
