"""Maps host name and path to one canonical path, and back to links that the client can reach.

fal spreads its API over host names; here each of them is also a prefix that works on any host:

    /run     fal.run, falrun.com                      run, stream, realtime sockets
    /queue   queue.fal.run, queue.falrun.com          submit, status, result, cancel
    /rest    rest.fal.ai, rest.alpha.fal.ai           tokens, upload initiate, JWKS
    /cdn     v3.fal.media, v3b.fal.media, fal.media   uploads and files
    /ws      ws.fal.run                               HTTP over websocket
    /api     api.fal.ai                               the catalogue, deletion of payloads

`{id}.gateway.alpha.fal.ai`, the host of the 2023 clients, carries an app's id in its first label. Those clients' `host`
option, and the `queue.` that older Python clients put in front of their run host, make the same labels on other names,
so labels count on any name. On any other host a path without prefix is the queue's when it has `/requests/` in it, else
a run. Nothing is ever answered with a redirect (fal's asynchronous Python client takes one for an error): trailing
slashes are dropped.
"""

import dataclasses
import re

from starlette.types import Scope

from server.fal.endpoints import LEGACY_ID

SPACES = frozenset({"run", "queue", "rest", "cdn", "ws"})

# fal's host names, each with the space that it is. Includes Python's backup domains, so that a takeover leaks nothing.
FAL_HOSTS = {
    "fal.run": "run",
    "falrun.com": "run",
    "queue.fal.run": "queue",
    "queue.falrun.com": "queue",
    "ws.fal.run": "ws",
    "rest.fal.ai": "rest",
    "rest.alpha.fal.ai": "rest",
    "v3.fal.media": "cdn",
    "v3b.fal.media": "cdn",
    "fal.media": "cdn",
    "api.fal.ai": "api",
}
GATEWAY = ".gateway.alpha.fal.ai"
# The site, with the pages of models; served as any other host is.
FAL_SITE = "fal.ai"

# The names that links carry for clients that reached us under one of fal's.
_FAL_LINKS = {
    "run": "fal.run",
    "queue": "queue.fal.run",
    "rest": "rest.fal.ai",
    "cdn": "v3.fal.media",
    "ws": "ws.fal.run",
}

# First labels that mean a space on any name.
_LABELS = {"queue": "queue", "rest": "rest", "ws": "ws"}

# First path segments that are ours and no app's, on any host; and those of documents, which are read only.
_ROOT = frozenset({"health", "ready", "metrics", "static", "api", "models", ".well-known", "favicon.ico", "robots.txt"})
_DOCUMENTS = frozenset({"docs", "openapi.json", "trust"})
_READS = frozenset({"GET", "HEAD"})

_HOST = re.compile(r"(?P<name>[a-z0-9._-]+|\[[0-9a-f:.]+\])(?P<port>:[0-9]{1,5})?", re.IGNORECASE)


@dataclasses.dataclass(frozen=True, slots=True)
class Host:
    """A `Host` header taken apart: `name` in lower case, without brackets or a trailing dot; `port` "" or ":8443"."""

    name: str
    port: str = ""

    @property
    def is_fal(self) -> bool:
        """Whether it is one of fal's own names."""
        return self.name in FAL_HOSTS or self.name.endswith(GATEWAY) or self.name == FAL_SITE


def parse_host(header: str) -> Host | None:
    """Return the host that a `Host` header names; None for one that is malformed."""
    match = _HOST.fullmatch(header)
    if match is None:
        return None
    return Host(match["name"].lower().strip("[]").rstrip("."), match["port"] or "")


def canonical(host: str, method: str, path: str) -> str:
    """Return the path under `/run`, `/queue`, `/rest`, `/cdn`, `/ws` or one of ours that `path` on `host` means.

    `method` is upper-case; it tells a gateway run from the page at `/`.
    """
    path = "/" + path.strip("/")
    first, _, rest = path[1:].partition("/")
    if gateway_id := _gateway_id(host):
        return _on_gateway(gateway_id, method, first, path)
    space = FAL_HOSTS.get(host) or _LABELS.get(host.partition(".")[0] if "." in host else "")
    if space == "ws" and first == "run":  # the SDK puts `ws.` in front of a run host that has a path
        return f"/ws/{rest}"
    if _is_ours(method, first) or (first in SPACES and rest) or path == "/":
        return path
    if space is None:
        space = "queue" if "/requests/" in path else "run"
    return f"/{space}{path}"


def _gateway_id(host: str) -> str | None:
    label, _, parent = host.partition(".")
    return label if parent and LEGACY_ID.fullmatch(label) else None


def _on_gateway(app: str, method: str, first: str, path: str) -> str:
    """Return the canonical path of a request to the 2023 gateway, whose app is in the host name."""
    if path == "/fal/queue/submit" or path.startswith("/fal/queue/submit/"):
        return f"/queue/{app}{path.removeprefix('/fal/queue/submit')}"
    if path.startswith("/fal/queue/"):
        return f"/queue/{app}{path.removeprefix('/fal/queue')}"
    if _is_ours(method, first) or (first in SPACES and path != f"/{first}"):
        return path
    if path == "/":
        return "/" if method in _READS else f"/run/{app}"
    return f"/run/{app}{path}"


def _is_ours(method: str, first: str) -> bool:
    return first in _ROOT or (first in _DOCUMENTS and method in _READS)


@dataclasses.dataclass(frozen=True, slots=True)
class External:
    """How the client reached us, for links that it can follow."""

    scheme: str
    host: Host
    public_url: str = ""

    def base(self, space: str) -> str:
        """Return the URL, without trailing slash, under which the client finds `space` ("queue", "cdn", …)."""
        if self.host.is_fal:
            return f"{self.scheme}://{_FAL_LINKS[space]}{self.host.port}"
        return f"{self.origin}/{space}"

    @property
    def origin(self) -> str:
        """The URL of the server's root, without trailing slash."""
        if self.public_url:
            return self.public_url
        name = f"[{self.host.name}]" if ":" in self.host.name else self.host.name
        return f"{self.scheme}://{name}{self.host.port}"


def external(scope: Scope) -> External:
    """Return how the client of this request or websocket reached us, as `CanonicalPath` noted."""
    found: External = scope["fourstep.external"]
    return found


def base_url(scope: Scope, space: str) -> str:
    """Return the URL under which this client finds `space`: `base_url(scope, "cdn") + "/files/" + name`."""
    return external(scope).base(space)


def header(scope: Scope, name: bytes) -> str | None:
    """Return the first header called `name` (lower-case)."""
    headers: list[tuple[bytes, bytes]] = scope["headers"]
    return next((value.decode("latin-1") for key, value in headers if key == name), None)


def request_host(scope: Scope) -> Host | None:
    """Return the host that this request names; None when its header is missing or malformed."""
    found = header(scope, b"host")
    return parse_host(found) if found else None
