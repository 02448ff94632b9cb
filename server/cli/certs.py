"""`fourstep certs` and `fourstep hosts`: what a client machine needs to reach this server under fal's names."""

from server.cli.output import in_data_dir, show
from server.settings import Settings, SettingsError
from server.transport import takeover, tls


def certs(settings: Settings, *, pem: bool = False) -> int:
    """Make the local CA and certificates, and say how clients trust them. `pem`: in HAProxy's form too."""
    with in_data_dir(settings, made=True):
        files = tls.ensure(settings)
        if pem:
            tls.write_pems(files)
    certificates = f"Certificates: {files.cert}, {files.dns_cert} (without addresses, for clients on BoringSSL)"
    ca = f"CA: {files.ca}\nSHA-256: {tls.fingerprint(files.ca)}"
    if pem:
        certificates += f"\n{_for_haproxy(files)}"
    show(f"{ca}\n{certificates}\n\n{takeover.trust_instructions(files.ca, files.bundle)}")
    return 0


def _for_haproxy(files: tls.TlsFiles) -> str:
    names, until = files.haproxy / "names.pem", f"{tls.expiry(files.cert):%Y-%m-%d}"
    return (
        f"For HAProxy: {names}, certificate and key; beside it addresses.pem, for clients which know an address only.\n"
        f"Copy the folder to the balancer. Both are good until {until}; from sixty days before, this command makes new"
        " ones: copy them again, and reload HAProxy"
    )


def hosts(settings: Settings, address: str, *, with_site: bool) -> int:
    """Print the hosts-file lines that send fal's host names to a server."""
    try:
        show(takeover.hosts_lines(address, with_site=with_site))
    except ValueError as error:
        raise SettingsError(f"--address: {error}") from error
    return 0
