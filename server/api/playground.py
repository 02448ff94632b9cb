"""Playground: a web page to try the endpoint in a browser; it shows which model answers.

    GET /                      the page
    GET /static/{name:path}    its files, and the example picture

The page needs no build step and no other host. Its content policy forbids inline scripts and styles, but for the import
map, whose hash the policy has. starlette's `StaticFiles` would be more code: its answers lack these headers, it refuses
ranges in plain text, and it has no function's name for the metrics' `route` label.
"""

import base64
import hashlib
import re
from importlib import resources
from pathlib import Path

from starlette.requests import Request
from starlette.responses import FileResponse, Response
from starlette.routing import BaseRoute, Route

from server.fal.errors import PlainError
from server.web.responses import forget_range

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


async def static(request: Request) -> Response:
    """Answer with one of the page's files."""
    return _file(request, request.path_params["name"])


def _file(request: Request, name: str) -> Response:
    path = _FILES.get(name)
    if path is None:
        raise PlainError(404, "There is no such file")
    forget_range(request)
    return FileResponse(path, headers=_HEADERS, media_type=_TYPES[path.suffix])


ROUTES: list[BaseRoute] = [
    Route("/", playground, methods=["GET"]),
    Route("/static/{name:path}", static, methods=["GET"]),
]
