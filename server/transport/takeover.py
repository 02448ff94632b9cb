"""fal's host names that the server takes over: the names, the lines of a hosts file, how clients trust the local CA.

The backup domains (`falrun.com`) are among the names on purpose: `fal_client` turns to them when `fal.run` does not
answer, and would then send its user's pictures to fal. So is `api.fal.ai`: tools send it the key, too.
"""

import ipaddress
from pathlib import Path

from server.fal.hosts import FAL_HOSTS, FAL_SITE, GATEWAY

# The names in the certificate; the clients of 2023 put an app's id in front of the gateway's. Their order is that of
# version 0.1, since a certificate with another is made again.
_API = "api.fal.ai"
CERTIFICATE_NAMES = (*(name for name in FAL_HOSTS if name != _API), f"*{GATEWAY}", _API, FAL_SITE)
# The domains that the CA may sign for; each stands for itself and all its subdomains.
DOMAINS = ("fal.run", "fal.ai", "fal.media", "falrun.com")
# A hosts file knows no wildcard. The site is left out unless asked for: people want to read it.
HOSTS_FILE_NAMES = (*FAL_HOSTS, f"110602490-lcm-sd15-i2i{GATEWAY}")


def hosts_lines(address: str = "127.0.0.1", *, with_site: bool = False) -> str:
    """Return the lines for a hosts file which send fal's names to `address`. Raises `ValueError` unless it is one."""
    target = ipaddress.ip_address(address)
    names = (*HOSTS_FILE_NAMES, FAL_SITE) if with_site else HOSTS_FILE_NAMES
    width = len(str(target))
    return "".join(f"{target!s:{width}} {name}\n" for name in names)


def trust_instructions(ca: Path, bundle: Path) -> str:
    """Return how to make each system and runtime trust the local CA, with lines to paste."""
    return f"""\
The CA can sign for fal's names, localhost and what --tls-names added, and for nothing else (critical name constraints).
The folder is closed to other users of this machine: give them copies of the files that the lines for them name.

Python, Ruby; Go and Rust on Linux (the variables replace the trust store: the bundle has the CA and the public roots)
  export SSL_CERT_FILE={bundle}
  export REQUESTS_CA_BUNDLE={bundle}  # Python's requests ignores SSL_CERT_FILE
PHP (its curl ignores SSL_CERT_FILE), before the script's name
  php -d curl.cainfo={bundle} -d openssl.cafile={bundle}
Node, Bun
  export NODE_EXTRA_CA_CERTS={ca}
Deno
  export DENO_CERT={ca}
Java, Kotlin
  keytool -importcert -cacerts -noprompt -storepass changeit -alias fourstep -file {ca}
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
