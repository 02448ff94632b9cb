"""Uploads, in the two protocols of fal's clients.

    POST /rest/storage/upload/initiate                      {"upload_url", "file_url"}; JavaScript, Python's fallback
    POST /rest/storage/upload/initiate-multipart            the same, for parts
    PUT  /cdn/upload/{name}?ticket=…                        the bytes; the URL grants the permission
    PUT  /cdn/upload/{name}/{number}?ticket=…               one part: {"partNumber", "etag"}, and an ETag header
    POST /cdn/upload/{name}/complete?ticket=…               {"parts": [{"partNumber", "etag"}]}, in any order

    POST /rest/storage/auth/token                           a token for the CDN; Python
    POST /cdn/files/upload                                  the bytes, with that token or a key: {"access_url"}
    POST /cdn/files/upload/multipart                        {"access_url", "uploadId"}
    PUT  {access_url}/multipart/{uploadId}/{number}         as above, with the token
    POST {access_url}/multipart/{uploadId}/complete         as above, with the token

The query parameter `storage_type` is ignored.
"""

import datetime
from collections.abc import AsyncIterator
from typing import Annotated

from pydantic import BaseModel, Field
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from server.access.auth import Caller
from server.context import context
from server.fal import lifecycle
from server.fal.errors import PlainError, RequestError
from server.fal.hosts import base_url
from server.fal.schemas import Integer
from server.storage.files import SPOOL_BYTES
from server.storage.multipart import MAX_PARTS
from server.storage.upload_tokens import Upload
from server.web.request import counted, find_caller, given, memory, read_json, validated
from server.web.responses import json_response

# fal's Python client asks again after this time, so a leaked token is soon useless; one upload may take as long.
CDN_TOKEN_SECONDS = 3600

_MAX_BODY_BYTES = 64 * 1024
_MAX_PARTS_BODY_BYTES = 2 * 1024 * 1024  # 10 000 parts with their etags
# Longer numbers are no part's, and Python's `int` refuses those of more than 4300 digits.
_MAX_NUMBER_CHARS = 18


class Wanted(BaseModel):
    """Body of a request to upload: the file's type and name."""

    content_type: Annotated[str, Field(max_length=1000)] = ""
    file_name: Annotated[str, Field(max_length=10_000)] = ""


class Part(BaseModel):
    """Number and etag of a part, as the server answered when it was uploaded."""

    partNumber: Integer = Field(ge=1, le=MAX_PARTS)  # noqa: N815 — fal's spelling
    etag: Annotated[str, Field(max_length=200)]


class Completion(BaseModel):
    """Body of a request to complete an upload: the parts of the file."""

    parts: list[Part] = Field(min_length=1, max_length=MAX_PARTS)


# --- permission to upload ----------------------------------------------------------------------------------------


async def initiate(request: Request) -> Response:
    """Answer with the URL for the upload, and the URL which the file will have."""
    ctx = context(request)
    caller = find_caller(request)
    wanted = validated(Wanted, given(await read_json(request, caller, _MAX_BODY_BYTES)))
    upload = ctx.files.permit(
        wanted.content_type, wanted.file_name, caller.id, lifecycle.upload_lifecycle(request.headers)
    )
    base = base_url(request.scope, "cdn")
    token = ctx.files.upload_tokens.issue(upload)
    urls = {"upload_url": f"{base}/upload/{upload.name}?ticket={token}", "file_url": f"{base}/files/{upload.name}"}
    return json_response(urls)


async def cdn_token(request: Request) -> Response:
    """Answer with a token for `/cdn/files/upload`. `expires_at` has an offset: Python can't compare it otherwise."""
    ctx, caller = context(request), find_caller(request)
    expires = datetime.datetime.fromtimestamp(int(ctx.clock()) + CDN_TOKEN_SECONDS, datetime.UTC)
    return json_response(
        {
            "token": ctx.auth.issue(caller, CDN_TOKEN_SECONDS, audience="cdn"),
            "token_type": "Bearer",
            "base_url": base_url(request.scope, "cdn"),
            "expires_at": expires.isoformat(),
        }
    )


def _uploader(request: Request) -> Caller:
    """Return who uploads straight to the CDN: with its token, or with a key as older Python clients do."""
    auth = context(request).auth
    scheme, _, credential = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer" and not auth.open:
        return auth.verify(credential.strip(), "cdn")[0]
    return auth.caller(request)


def _permitted(request: Request, token: str) -> Upload:
    upload = context(request).files.upload_tokens.redeem(token, request.path_params["name"])
    counted(request, _owner(request, upload))
    return upload


# --- bytes -------------------------------------------------------------------------------------------------------


async def put(request: Request) -> Response:
    """Store a whole file, under the URL from `initiate`."""
    upload = _permitted(request, request.query_params.get("ticket", ""))
    await context(request).files.receive(upload, _chunks(request, upload), _announced(request))
    return json_response({})


async def put_part(request: Request) -> Response:
    """Store one part, under the URL from `initiate`."""
    return await _put_part(request, _permitted(request, request.query_params.get("ticket", "")))


async def complete(request: Request) -> Response:
    """Complete an upload in parts, under the URL from `initiate`."""
    return await _complete(request, _permitted(request, request.query_params.get("ticket", "")))


async def cdn_upload(request: Request) -> Response:
    """Store a whole file, with a token."""
    upload = _new_upload(request)
    await context(request).files.receive(upload, _chunks(request, upload), _announced(request))
    return json_response({"access_url": _access_url(request, upload)})


async def cdn_begin(request: Request) -> Response:
    """Begin an upload in parts, with a token."""
    upload = _new_upload(request)
    token = context(request).files.upload_tokens.issue(upload)
    return json_response({"access_url": _access_url(request, upload), "uploadId": token})


async def cdn_part(request: Request) -> Response:
    """Store one part, with a token."""
    _uploader(request)
    return await _put_part(request, _permitted(request, request.path_params["ticket"]))


async def cdn_complete(request: Request) -> Response:
    """Complete an upload in parts, with a token."""
    _uploader(request)
    upload = _permitted(request, request.path_params["ticket"])
    return await _complete(request, upload)


def _new_upload(request: Request) -> Upload:
    caller = counted(request, _uploader(request))
    headers = request.headers
    content_type, file_name = headers.get("content-type", ""), headers.get("x-fal-file-name", "")
    files = context(request).files
    return files.permit(content_type, file_name, caller.id, lifecycle.upload_lifecycle(headers))


def _access_url(request: Request, upload: Upload) -> str:
    return f"{base_url(request.scope, 'cdn')}/files/{upload.name}"


async def _put_part(request: Request, upload: Upload) -> Response:
    """Store one part. JavaScript reads the etag from the body, Python from the header."""
    number = _number(request.path_params["number"])
    files = context(request).files
    etag = await files.receive_part(upload, number, _chunks(request, upload), _announced(request))
    return json_response({"partNumber": number, "etag": etag}, headers={"ETag": f'"{etag}"'})


def _number(written: str) -> int:
    """Return a part's number. Raises `PlainError` 404 for text which is none."""
    if not (written.isascii() and written.isdecimal() and len(written) <= _MAX_NUMBER_CHARS):
        raise PlainError(404, f"Part {written[:20]} not found")
    return int(written)


async def _complete(request: Request, upload: Upload) -> Response:
    body = await read_json(request, _owner(request, upload), _MAX_PARTS_BODY_BYTES)
    parts = validated(Completion, body).parts
    etags = {part.partNumber: part.etag.removeprefix("W/").strip('"') for part in parts}
    await context(request).files.complete(upload, etags)
    return json_response({"access_url": _access_url(request, upload)})


def _announced(request: Request) -> int | None:
    length = request.headers.get("content-length", "")
    return int(length[:20]) if length.isdecimal() else None


async def _chunks(request: Request, upload: Upload) -> AsyncIterator[bytes]:
    """Yield the body as it arrives. Raises `RequestError` when the client leaves too early or too many upload."""
    memory(request, _owner(request, upload)).take(SPOOL_BYTES)
    while True:
        message = await request.receive()
        if message["type"] == "http.disconnect":
            raise RequestError("client_disconnected", "The client left before its upload was complete")
        if chunk := message.get("body", b""):
            yield chunk
        if not message.get("more_body", False):
            return


def _owner(request: Request, upload: Upload) -> Caller:
    return context(request).auth.named(upload.owner)


ROUTES: list[BaseRoute] = [
    Route("/rest/storage/upload/initiate", initiate, methods=["POST"]),
    Route("/rest/storage/upload/initiate-multipart", initiate, methods=["POST"]),
    Route("/rest/storage/auth/token", cdn_token, methods=["POST"]),
    Route("/cdn/upload/{name}", put, methods=["PUT"]),
    Route("/cdn/upload/{name}/complete", complete, methods=["POST"]),
    Route("/cdn/upload/{name}/{number}", put_part, methods=["PUT"]),
    Route("/cdn/files/upload", cdn_upload, methods=["POST"]),
    Route("/cdn/files/upload/multipart", cdn_begin, methods=["POST"]),
    Route("/cdn/files/{name}/multipart/{ticket}/complete", cdn_complete, methods=["POST"]),
    Route("/cdn/files/{name}/multipart/{ticket}/{number}", cdn_part, methods=["PUT"]),
]
