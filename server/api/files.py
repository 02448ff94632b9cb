"""Download of stored files: uploads and results.

    GET /cdn/files/{name}    the file

A browser shows only pictures whose bytes match their type. Everything else is a download, whatever its type, and no
script in it can run.
"""

import re
from collections.abc import AsyncIterator
from email.utils import formatdate
from urllib.parse import quote

from starlette.requests import Request
from starlette.responses import FileResponse, Response, StreamingResponse
from starlette.routing import BaseRoute, Route

from server.access.auth import note_known
from server.context import context
from server.fal.errors import PlainError
from server.storage.files import Files
from server.storage.store import Stored
from server.web.request import client_network
from server.web.responses import forget_range

# Longer numbers are no offsets, and Python's `int` refuses those of more than 4300 digits.
_ONE_RANGE = re.compile(r"bytes=(?:(\d{1,18})-(\d{0,18})|-(\d{1,18}))", re.ASCII)
_A_YEAR_S = 365 * 86400
# Of a file in an object store, read at once: a round trip each, and the most memory that a slow reader holds.
_PIECE_BYTES = 1 << 19


async def file(request: Request) -> Response:
    """Answer with a stored file or a range of it. A file is public unless its owner has restricted it."""
    ctx = context(request)
    stored = await ctx.files.find(request.path_params["name"])
    if stored is None:
        raise _not_found()
    reader = _reader(request, stored)
    headers = _headers(stored, ctx.clock())
    if _unchanged(request.headers.get("if-none-match", ""), headers["ETag"]):
        return Response(status_code=304, headers=headers)
    found = _check_range(request, {headers["ETag"], headers["Last-Modified"]}, stored.size)
    try:
        status = stored.path.stat() if stored.path else None
        ctx.limits.download(request, f"address {client_network(request)}" if reader is None else reader)
        if stored.path:
            return FileResponse(stored.path, 200, headers, stored.meta.content_type, stat_result=status)
        return await _from_pieces(request, ctx.files, stored, headers, found)
    except FileNotFoundError:  # it has just had to go
        raise _not_found() from None


async def _from_pieces(
    request: Request, files: Files, stored: Stored, headers: dict[str, str], found: tuple[int, int] | None
) -> Response:
    """Return the answer with a file, or the range `found` of it, that is not on this machine's disk.

    The first piece is read before the answer begins: a file that has gone, or a store that is away, is still told.
    """
    first, end = found or (0, stored.size)
    headers = {**headers, "Accept-Ranges": "bytes", "Content-Length": str(end - first)}
    if found:
        headers["Content-Range"] = f"bytes {first}-{end - 1}/{stored.size}"
    status, kind = 206 if found else 200, stored.meta.content_type
    if request.method == "HEAD" or first == end:
        return Response(None, status, headers, kind)
    piece = await files.read(stored, first, min(_PIECE_BYTES, end - first))

    async def pieces() -> AsyncIterator[bytes]:
        yield piece
        for offset in range(first + len(piece), end, _PIECE_BYTES):
            yield await files.read(stored, offset, min(_PIECE_BYTES, end - offset))

    return StreamingResponse(pieces(), status, headers, kind)


def _reader(request: Request, stored: Stored) -> str | None:
    """Return whose key lets this file be read; None for a public file, which needs none.

    Raises `PlainError` 401 for a wrong key, 403 for a forbidden file, 404 for one that is hidden from this reader.
    """
    reader = None if _is_public(stored) else _key(request)
    match stored.meta.acl.decide(reader, stored.meta.owner):
        case "forbid":
            raise PlainError(403, "You may not read this file")
        case "hide":
            raise _not_found()
    return reader


def _is_public(stored: Stored) -> bool:
    return stored.meta.acl.default == "allow" and not stored.meta.acl.rules


def _not_found() -> PlainError:
    return PlainError(404, "File not found")


def _key(request: Request) -> str | None:
    """Return whose key came with this request. None on a server without keys, so that private files stay private."""
    auth = context(request).auth
    if auth.open or "authorization" not in request.headers:
        return None
    caller = auth.caller(request)
    note_known(request)
    return caller.id


def _headers(stored: Stored, now: float) -> dict[str, str]:
    public = _is_public(stored)
    left = max(0, min(int(stored.expires - now), _A_YEAR_S))
    headers = {
        "Cache-Control": f"public, max-age={left}, immutable" if public else "private, no-store",
        "Content-Security-Policy": "default-src 'none'; sandbox",
        "Cross-Origin-Resource-Policy": "cross-origin",
        "ETag": f'"{stored.name}"',
        "Last-Modified": formatdate(stored.created, usegmt=True),
        "X-Content-Type-Options": "nosniff",
    }
    if not stored.meta.inline:
        shown = quote(stored.meta.file_name or stored.name, safe="")
        headers["Content-Disposition"] = f"attachment; filename*=UTF-8''{shown}"
    return headers


def _unchanged(if_none_match: str, etag: str) -> bool:
    return any(part.strip().removeprefix("W/") in {etag, "*"} for part in if_none_match.split(",") if part.strip())


def _check_range(request: Request, validators: set[str], size: int) -> tuple[int, int] | None:
    """Return the range that is asked for, as offsets of its first byte and after its last; None for the whole file.

    A range that can't be answered is removed from the request. A malformed one, or several, may be ignored (RFC 9110,
    14.2): the answer is the whole file. Raises `PlainError` 416 for a range beyond the end of the file.
    """
    match = _ONE_RANGE.fullmatch(request.headers.get("range", ""))
    first, last, suffix = match.groups() if match else ("", "", "")
    backwards = bool(first and last) and int(last) < int(first)
    stale = "if-range" in request.headers and request.headers["if-range"] not in validators
    if not match or backwards or stale:
        forget_range(request)
        return None
    begin = int(first) if first else size - int(suffix)
    if begin >= size:
        raise PlainError(416, "The range lies beyond the end of the file", {"Content-Range": f"bytes */{size}"})
    return max(0, begin), min(int(last) + 1, size) if last else size


ROUTES: list[BaseRoute] = [Route("/cdn/files/{name}", file, methods=["GET"])]
