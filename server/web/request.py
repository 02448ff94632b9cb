"""First steps of the API's handlers: find the endpoint, authorize the caller, read the JSON, make the `Call`."""

from collections.abc import Callable, Collection
from typing import Any, TypeVar

import pydantic
from starlette.requests import HTTPConnection, Request

from pipelines.messages import Priority
from server.access.auth import Caller
from server.access.limits import Reservation
from server.context import context
from server.fal import endpoints, schemas
from server.fal.hosts import base_url
from server.generate import Call
from server.web.access_log import request_id
from server.web.connection import read_body

Model = TypeVar("Model", bound=pydantic.BaseModel)


def find_endpoint(connection: HTTPConnection, paths: Collection[str] | None = None) -> endpoints.Target:
    """Return endpoint and sub path of the URL. Raises `PlainError` 404 for an unknown app or a path not in `paths`."""
    target = endpoints.resolve(connection.path_params["app"])
    _check_path(target, paths)
    return target


def authorize(connection: HTTPConnection, paths: Collection[str] | None = None) -> tuple[endpoints.Target, Caller]:
    """Return the endpoint and sub path in the URL, and the caller. Raises as `find_caller`, and `PlainError` 404.

    A missing permission is reported before a sub path which is not in `paths`.
    """
    target = find_endpoint(connection)
    caller = find_caller(connection, target.app)
    _check_path(target, paths)
    return target, caller


def find_caller(connection: HTTPConnection, app: endpoints.Endpoint | None = None) -> Caller:
    """Return the caller, of `app` if the URL has one; their connection counts from now on until it is free again.

    Raises `PlainError` 401 or 403, `RequestError` 429.
    """
    return counted(connection, context(connection).auth.caller(connection, app))


def counted(connection: HTTPConnection, caller: Caller) -> Caller:
    """Return the caller, for whom this connection is counted from now on. Raises `RequestError` 429."""
    context(connection).limits.connection(connection, caller)
    return caller


def _check_path(target: endpoints.Target, paths: Collection[str] | None) -> None:
    if paths is not None and target.path not in paths:
        raise endpoints.no_such_path(target)


async def read_json(
    request: Request,
    caller: Caller,
    limit: int,
    decode: Callable[[bytes | bytearray], dict[str, Any]] = schemas.parse_json,
) -> dict[str, Any]:
    """Return the JSON object of a body of at most `limit` bytes, counted for the caller. Raises `FalError`."""
    return decode(await read_body(request, limit, memory(request, caller)))


def memory(connection: HTTPConnection, caller: Caller) -> Reservation:
    """Return a reservation for the bytes kept for this caller; it ends with the request or websocket."""
    return context(connection).limits.memory(connection, caller)


def validated(model: type[Model], fields: dict[str, Any]) -> Model:
    """Return the fields as a `model`. Raises `InvalidInput`."""
    try:
        return model.model_validate(fields)
    except pydantic.ValidationError as error:
        raise schemas.invalid_input(error) from None


def given(fields: dict[str, Any]) -> dict[str, Any]:
    """Return the fields without those that are null: clients send null for what they omit."""
    return {name: value for name, value in fields.items() if value is not None}


def new_call(connection: HTTPConnection, caller: Caller, priority: Priority, **options: Any) -> Call:
    """Return the `Call` of this request or websocket; `options` are its other fields."""
    return Call(
        id=request_id(connection.scope),
        tenant=caller.id,
        allowance=caller.allowance,
        priority=priority,
        cdn=base_url(connection.scope, "cdn"),
        **options,
    )
