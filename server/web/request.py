"""First steps of the API's handlers: find the endpoint, authorize the caller, read the JSON, make the `Call`."""

import asyncio
import ipaddress
from collections.abc import Callable, Collection
from typing import Any, TypeVar

import pydantic
from starlette.requests import HTTPConnection, Request

from pipelines.messages import Priority
from server.access.auth import Caller, note_known
from server.access.limits import Reservation
from server.context import context
from server.fal import endpoints, schemas
from server.fal.hosts import base_url
from server.generate import Call
from server.web.access_log import note_key, request_id
from server.web.connection import AT_ONCE_BYTES, read_body

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
    note_known(connection)
    note_key(connection.scope, caller.id)
    context(connection).limits.connection(connection, caller)
    return caller


def _check_path(target: endpoints.Target, paths: Collection[str] | None) -> None:
    if paths is not None and target.path not in paths:
        raise endpoints.no_such_path(target)


def client_network(connection: HTTPConnection) -> str:
    """Return for whom a caller without a key is counted: the IPv4 address, or the /64 network that one host may fill.

    Behind a trusted proxy it is the client's address as the proxy says it.
    """
    written = connection.client.host if connection.client else ""
    try:
        address = ipaddress.ip_address(written)
    except ValueError:  # a proxy's own word for it
        return written[:100]
    if isinstance(address, ipaddress.IPv6Address):
        return str(address.ipv4_mapped or ipaddress.ip_network((int(address), 64), strict=False))
    return str(address)


async def read_json(
    request: Request,
    caller: Caller,
    limit: int,
    decode: Callable[[bytes | bytearray], dict[str, Any]] = schemas.parse_json,
) -> dict[str, Any]:
    """Return the JSON object of a body of at most `limit` bytes, counted for the caller. Raises `FalError`."""
    turn = context(request).limits.large_body
    body = await read_body(request, limit, memory(request, caller), turn)
    if len(body) <= AT_ONCE_BYTES:
        return decode(body)
    async with turn:
        fields = decode(body)
        await asyncio.sleep(0)  # others come before the next large one
    return fields


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
