"""Playground: a web page to try the endpoint in a browser, the API as a page, and how to trust the local CA.

    GET /                      the page
    GET /docs                  the API, from `/openapi.json`
    GET /openapi.json          the OpenAPI document of all that this server answers
    GET /trust                 how phones and other machines trust the local CA
    GET /trust/ca.pem          its certificate; with TLS only
    GET /trust/bundle.pem      the same and the public roots, for programs whose trust store is replaced
    GET /static/{name:path}    the pages' files, and the example picture

They need no key, and exist on our own names only: under fal's names each is a 404, but for the example picture, which
fal's document of the endpoint links to. The pages need no build step and no other host. Their content policy forbids
inline scripts and styles, but for the import maps, whose hashes the policy has. starlette's `StaticFiles` would be more
code: its answers lack these headers, it refuses ranges in plain text, and it has no function's name for the metrics'
`route` label.
"""

import base64
import dataclasses
import functools
import gzip
import hashlib
import re
from importlib import resources
from pathlib import Path
from typing import Any

from starlette.requests import Request
from starlette.responses import FileResponse, RedirectResponse, Response
from starlette.routing import BaseRoute, Route

from server.context import context
from server.fal import api_document
from server.fal.endpoints import LCM_SD15_I2I
from server.fal.errors import PlainError
from server.fal.hosts import External, external
from server.settings import ListenSettings
from server.transport import tls
from server.web.responses import forget_range, json_response

_FOLDER = Path(str(resources.files("server"))) / "static"
_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".mjs": "text/javascript; charset=utf-8",
    ".jpg": "image/jpeg",
    ".svg": "image/svg+xml",
}
_INLINE_SCRIPT = re.compile(rb"<script type=\"importmap\">(.*?)</script>", re.DOTALL)


def _files() -> dict[str, Path]:
    """Return every file that may be asked for, by its name below `/static/`."""
    return {path.relative_to(_FOLDER).as_posix(): path for path in sorted(_FOLDER.rglob("*")) if path.suffix in _TYPES}


def _policy(files: dict[str, Path]) -> str:
    """Return the content policy of every page; it names the import maps of all of them."""
    maps = {found for path in files.values() if path.suffix == ".html" for found in _import_maps(path)}
    hashes = [f"'sha256-{base64.b64encode(hashlib.sha256(each).digest()).decode()}'" for each in sorted(maps)]
    return "; ".join(
        [
            "default-src 'none'",
            " ".join(["script-src 'self'", *hashes]),
            "style-src 'self'",
            "img-src 'self' data: blob:",
            "media-src 'self' blob:",
            "connect-src 'self'",
            "worker-src 'self'",
            "base-uri 'none'",
            "form-action 'none'",
            "frame-ancestors 'none'",
            "require-trusted-types-for 'script'",
        ]
    )


def _import_maps(page: Path) -> list[bytes]:
    return _INLINE_SCRIPT.findall(page.read_bytes())


_FILES = _files()
_EXAMPLE = "beach.jpg"
_HEADERS = {
    "Content-Security-Policy": _policy(_FILES),
    "Permissions-Policy": "camera=(self), display-capture=(self), microphone=(), geolocation=()",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}


async def playground(request: Request) -> Response:
    """Answer with the page."""
    return _file(request, "index.html")


async def docs(request: Request) -> Response:
    """Answer with the page that shows the API."""
    return _page(request, "docs")


async def trust(request: Request) -> Response:
    """Answer with the page on the local CA."""
    return _page(request, "trust")


async def static(request: Request) -> Response:
    """Answer with one of the pages' files."""
    return _file(request, request.path_params["name"])


def _page(request: Request, name: str) -> Response:
    """Answer with a page; with a slash behind its name, where its links would lead astray, lead to it without."""
    asked: str = request.scope["fourstep.asked_path"]
    slashes = len(asked) - len(asked.rstrip("/"))
    if not slashes:
        return _file(request, f"{name}.html")
    _own_name(request)
    # Relative: a proxy may have the server under a path of its own.
    return RedirectResponse("../" * slashes + name, headers=_HEADERS)


def _file(request: Request, name: str) -> Response:
    if name != _EXAMPLE:
        _own_name(request)
    path = _FILES.get(name)
    if path is None:
        raise PlainError(404, "There is no such file")
    forget_range(request)
    if path.suffix == ".jpg" or "gzip" not in request.headers.get("accept-encoding", ""):
        return FileResponse(path, headers=_HEADERS, media_type=_TYPES[path.suffix])
    headers = {**_HEADERS, "Content-Encoding": "gzip", "Vary": "Accept-Encoding"}
    return Response(_compressed(path, path.stat().st_mtime_ns), headers=headers, media_type=_TYPES[path.suffix])


@functools.cache
def _compressed(path: Path, _changed: int) -> bytes:
    """Return a file as gzip: a third of its size, for phones on a slow network."""
    return gzip.compress(path.read_bytes(), mtime=0)


async def api(request: Request) -> Response:
    """Answer with the OpenAPI document of this server."""
    where = _own_name(request)
    settings = context(request).listening
    return json_response(api_document.document(LCM_SD15_I2I, _servers(where, settings), _local_ca(where, settings)))


def _servers(where: External, settings: ListenSettings) -> list[str]:
    """Return the base URLs that lead here: the one that this client has used, https, and fal's after a takeover."""
    found = [where.origin]
    if settings.tls_port is not None and where.scheme == "http" and not where.public_url:
        secure = External("https", dataclasses.replace(where.host, port=f":{settings.tls_port}"))
        found.append(secure.origin.removesuffix(":443"))
    if settings.takeover:
        found.append("https://fal.run")
    return found


def _local_ca(where: External, settings: ListenSettings) -> dict[str, Any] | None:
    if not _has_tls(settings):
        return None
    return {
        "certificate": f"{where.origin}/trust/ca.pem",
        "sha256": tls.fingerprint(tls.TlsFiles(settings.tls_dir).ca),
        "names": tls.own_names(settings),
    }


def _has_tls(settings: ListenSettings) -> bool:
    return settings.tls_port is not None or settings.takeover


async def ca(request: Request) -> Response:
    """Answer with the certificate of the local CA; browsers offer to trust it."""
    return _certificate(request, "ca", "application/x-x509-ca-cert")


async def bundle(request: Request) -> Response:
    """Answer with the local CA and the public roots."""
    return _certificate(request, "bundle", "application/x-pem-file")


def _certificate(request: Request, name: str, kind: str) -> Response:
    _own_name(request)
    settings = context(request).listening
    if not _has_tls(settings):
        raise PlainError(404, "This server speaks no https, and has no CA. Hint: start it with --tls-port 8443")
    files = tls.TlsFiles(settings.tls_dir)
    forget_range(request)
    return FileResponse(files.ca if name == "ca" else files.bundle, headers=_HEADERS, media_type=kind)


def _own_name(request: Request) -> External:
    """Return how the client has reached us. Raises `PlainError` 404 if that is one of fal's names."""
    where = external(request.scope)
    if where.host.is_fal:
        raise PlainError(404, f"Path {request.url.path} not found")
    return where


ROUTES: list[BaseRoute] = [
    Route("/", playground, methods=["GET"]),
    Route("/docs", docs, methods=["GET"]),
    Route("/openapi.json", api, methods=["GET"]),
    Route("/trust", trust, methods=["GET"]),
    Route("/trust/ca.pem", ca, methods=["GET"]),
    Route("/trust/bundle.pem", bundle, methods=["GET"]),
    Route("/static/{name:path}", static, methods=["GET"]),
]
