"""Playground: a web page to try the endpoint in a browser; it shows which model answers.

    GET /                 the page
    GET /static/{name}    its files, and the example picture

The page needs no build step. It has no inline scripts or styles, so that its content policy can forbid them.
starlette's `StaticFiles` would be more code: its answers lack these headers, it refuses ranges in plain text, and it
has no function's name for the metrics' `route` label.
"""

from importlib import resources
from pathlib import Path

from starlette.requests import Request
from starlette.responses import FileResponse, Response
from starlette.routing import BaseRoute, Route

from server.fal.errors import PlainError
from server.web.responses import forget_range

_FOLDER = Path(str(resources.files("server"))) / "static"
_TYPES = {
    "index.html": "text/html; charset=utf-8",
    "playground.css": "text/css; charset=utf-8",
    "playground.js": "text/javascript; charset=utf-8",
    "beach.jpg": "image/jpeg",
}
_HEADERS = {
    "Content-Security-Policy": "default-src 'self'; img-src 'self' data: blob:; frame-ancestors 'none'",
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
    if name not in _TYPES:
        raise PlainError(404, "There is no such file")
    forget_range(request)
    return FileResponse(_FOLDER / name, headers=_HEADERS, media_type=_TYPES[name])


ROUTES: list[BaseRoute] = [
    Route("/", playground, methods=["GET"]),
    Route("/static/{name}", static, methods=["GET"]),
]
