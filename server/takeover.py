"""Taking fal's host names over: which names, the hosts-file lines, and how each kind of client is told to trust the CA.

The backup domains (`falrun.com`) are among the names on purpose: `fal_client` turns to them when `fal.run` does not
answer, and would then send its user's pictures out of the house.
"""

import ipaddress
from pathlib import Path

# What the 2023 clients put in front of the gateway's name. A hosts file knows no wildcard.
_GATEWAY = "gateway.alpha.fal.ai"
_GATEWAY_APPS = ("110602490-lcm-sd15-i2i",)

# Every host that some fal client speaks to (the gateway's wildcard aside).
API_NAMES = (
    "fal.run",
    "queue.fal.run",
    "ws.fal.run",
    "rest.fal.ai",
    "rest.alpha.fal.ai",
    "v3.fal.media",
    "v3b.fal.media",
    "fal.media",
    "falrun.com",
    "queue.falrun.com",
)
# The model pages and their OpenAPI documents: taken over only when asked, for people want to read fal's site.
SITE_NAME = "fal.ai"

CERTIFICATE_NAMES = (*API_NAMES, f"*.{_GATEWAY}", SITE_NAME)
# The domains that the CA may sign for; each stands for itself and everything below it.
DOMAINS = ("fal.run", "fal.ai", "fal.media", "falrun.com")

HOSTS_FILE_NAMES = (*API_NAMES, *(f"{app}.{_GATEWAY}" for app in _GATEWAY_APPS))


def hosts_lines(address: str = "127.0.0.1", *, with_site: bool = False) -> str:
    """Lines for a hosts file that send fal's names to `address`. Raises `ValueError` for anything but an IP address."""
    target = ipaddress.ip_address(address)
    names = (*HOSTS_FILE_NAMES, SITE_NAME) if with_site else HOSTS_FILE_NAMES
    width = len(str(target))
    return "".join(f"{target!s:{width}} {name}\n" for name in names)


def trust_instructions(ca: Path, bundle: Path) -> str:
    """How to make each system and runtime trust the local CA, with lines to paste."""
    return f"""\
The CA can sign for fal's names, localhost and what --tls-names added, and for nothing else (critical name constraints).

Python (SSL_CERT_FILE replaces the trust store, so it gets the bundle: the CA and the public roots)
  export SSL_CERT_FILE={bundle}
Node
  export NODE_EXTRA_CA_CERTS={ca}
curl
  curl --cacert {ca} https://localhost:8443/health

Debian, Ubuntu
  sudo cp {ca} /usr/local/share/ca-certificates/fourstep.crt && sudo update-ca-certificates
Fedora, RHEL, Arch
  sudo trust anchor {ca}
macOS (Safari, Chrome)
  sudo security add-trusted-cert -d -r trustRoot -k /Library/Keychains/System.keychain {ca}
Windows (Edge, Chrome), as administrator
  certutil -addstore -f Root {ca}
Chrome, Chromium on Linux (certutil is in libnss3-tools)
  mkdir -p ~/.pki/nssdb && certutil -d sql:$HOME/.pki/nssdb -A -t C,, -n fourstep -i {ca}
Firefox
  Settings, Privacy & Security, View Certificates, Authorities, Import: {ca}
"""
