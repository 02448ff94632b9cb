"""The playground: one page that tries the endpoint from a browser, and shows which model answers.

    GET /                 the page
    GET /static/{name}    its files, and the example picture

No build step and nothing inline, so that the policy below can forbid everything else. starlette's `StaticFiles`
would be more code: its answers lack these headers, it refuses ranges in plain text, and it has no function's name for
the metrics' `route` label.
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
    """The page."""
    return _file(request, "index.html")


async def static(request: Request) -> Response:
    """One of its files."""
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
