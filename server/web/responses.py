"""Answers as JSON, errors among them: the one place where a `FalError` becomes a response."""

from collections.abc import Callable, Mapping
from typing import Any

import msgspec
from starlette.exceptions import HTTPException
from starlette.requests import HTTPConnection, Request
from starlette.responses import Response
from starlette.websockets import WebSocket

from server.fal.errors import FalError, PlainError, RequestError

_ENCODE = msgspec.json.Encoder().encode


def json_response(content: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """`content` as `application/json`. JavaScript clients take anything else for a string."""
    return Response(_ENCODE(content), status, headers, "application/json")


def error_response(error: FalError) -> Response:
    """The answer that `error` is."""
    return json_response(error.body, error.status, error.headers)


def forget_range(request: Request) -> None:
    """Have the whole file answered: starlette refuses a range that it does not like in plain text."""
    request.scope["headers"] = [(name, value) for name, value in request.scope["headers"] if name != b"range"]


async def on_fal_error(connection: HTTPConnection, error: FalError) -> Response | None:
    """Answer with the error that a route has raised; a websocket's handshake is refused with it."""
    response = error_response(error)
    if isinstance(connection, WebSocket):
        await connection.send_denial_response(response)
        return None
    return response


async def on_http_error(connection: HTTPConnection, error: HTTPException) -> Response | None:
    """Answer in fal's shape what the framework finds wrong: no such path, wrong method."""
    detail = f"Path {connection.scope['path']} not found" if error.status_code == 404 else str(error.detail)
    return await on_fal_error(connection, PlainError(error.status_code, detail, error.headers))


async def on_crash(_: Request, __: Exception) -> Response:
    """Answer a fault of ours. The traceback goes to the log, nothing of it to the caller."""
    return error_response(RequestError("internal_error", "Internal server error"))


# For the app: `FastAPI(exception_handlers=EXCEPTION_HANDLERS)`.
EXCEPTION_HANDLERS: dict[int | type[Exception], Callable[[Any, Any], Any]] = {
    FalError: on_fal_error,
    HTTPException: on_http_error,
    Exception: on_crash,
}
