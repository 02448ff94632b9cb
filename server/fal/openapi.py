"""The per-endpoint OpenAPI document, as fal serves it for each model: the queue's four calls on one app.

Beyond fal's own it lists the answers that are no success, so that tools which generate requests from it know them.
"""

import functools
from typing import Any

from pydantic import BaseModel

from server.fal.endpoints import Endpoint
from server.fal.schemas import LcmInput, LcmOutput

_REF = "#/components/schemas/{model}"
INPUT, OUTPUT, _STATUS = "LcmSd15I2iInput", "LcmSd15I2iOutput", "QueueStatus"

_ERROR: dict[str, Any] = {
    "type": "object",
    "properties": {
        "detail": {"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "object"}}]},
        "message": {"type": "string"},
        "error_type": {"type": "string"},
    },
    "required": ["detail"],
}

_QUEUE_STATUS: dict[str, Any] = {
    "type": "object",
    "properties": {
        "status": {"type": "string", "enum": ["IN_QUEUE", "IN_PROGRESS", "COMPLETED"]},
        "request_id": {"type": "string", "description": "The request id."},
        "response_url": {"type": "string", "description": "Where the result is."},
        "status_url": {"type": "string", "description": "Where the status is."},
        "cancel_url": {"type": "string", "description": "Where to cancel the request."},
        "logs": {
            "type": "array",
            "items": {"type": "object"},
            "nullable": True,
            "description": "What the request has logged; null unless asked for.",
        },
        "metrics": {"type": "object", "additionalProperties": True, "description": "Times, in seconds."},
        "queue_position": {
            "type": "integer",
            "nullable": True,
            "description": "How many requests are ahead of it.",
        },
    },
    "required": ["status", "request_id"],
}

_CANCELLED: dict[str, Any] = {"type": "object", "properties": {"status": {"type": "string"}}, "required": ["status"]}

_REQUEST_ID: dict[str, Any] = {
    "name": "request_id",
    "in": "path",
    "required": True,
    "schema": {"type": "string", "description": "Request ID"},
}
_LOGS: dict[str, Any] = {
    "name": "logs",
    "in": "query",
    "required": False,
    "schema": {"type": "number", "description": "Whether to include logs (`1`) in the response or not (`0`)."},
}


def document(app: Endpoint, server_url: str, site_url: str) -> dict[str, Any]:
    """Return the document for `app`; `server_url`: the queue, `site_url`: the root, both without slash."""
    submit, request = f"/{app.id}", f"/{app.id}/requests/{{request_id}}"
    return {
        "openapi": "3.0.4",
        "info": {
            "title": f"Queue OpenAPI for {app.id}",
            "version": "1.0.0",
            "description": f"The OpenAPI schema for the {app.id} queue.",
            "x-fal-metadata": {
                "endpointId": app.id,
                "category": app.category,
                "thumbnailUrl": f"{site_url}/static/beach.jpg",
                "playgroundUrl": f"{site_url}/",
                "documentationUrl": f"{site_url}/",
            },
        },
        "components": {
            "securitySchemes": {
                "apiKeyAuth": {"type": "apiKey", "in": "header", "name": "Authorization", "description": "Fal Key"}
            },
            "schemas": schemas(),
        },
        "paths": {
            f"{request}/status": {"get": _operation([_REQUEST_ID, _LOGS], _STATUS, pending=True)},
            f"{request}/cancel": {"put": _cancel()},
            submit: {"post": {**_operation([], _STATUS), "requestBody": _body()}},
            request: {"get": _operation([_REQUEST_ID], OUTPUT)},
        },
        "servers": [{"url": server_url}],
        "security": [{"apiKeyAuth": []}],
    }


@functools.cache  # pydantic takes milliseconds, and whoever asks needs no key
def schemas() -> dict[str, Any]:
    """Return the document's schemas by name. Always the same object, which no caller changes."""
    named: dict[str, Any] = {_STATUS: _QUEUE_STATUS, "Error": _ERROR, "Cancelled": _CANCELLED}
    for name, model in ((INPUT, LcmInput), (OUTPUT, LcmOutput)):
        schema = _schema(model)
        named |= schema.pop("$defs", {})
        named[name] = {**schema, "x-fal-order-properties": list(schema["properties"])}
    return named


def _schema(model: type[BaseModel]) -> dict[str, Any]:
    """Return pydantic's schema in terms of OpenAPI 3.0, which knows `nullable` and no type "null"."""
    schema = model.model_json_schema(ref_template=_REF)
    schema["properties"] = {name: _nullable(field) for name, field in schema["properties"].items()}
    return schema


def _nullable(field: dict[str, Any]) -> dict[str, Any]:
    kinds = [kind for kind in field.get("anyOf", ()) if kind != {"type": "null"}]
    if len(kinds) != 1:
        return field
    return {**{key: value for key, value in field.items() if key != "anyOf"}, **kinds[0], "nullable": True}


def _content(name: str, what: str) -> dict[str, Any]:
    return {"description": what, "content": {"application/json": {"schema": {"$ref": _REF.format(model=name)}}}}


def _operation(parameters: list[dict[str, Any]], answer: str, *, pending: bool = False) -> dict[str, Any]:
    responses = {"200": _content(answer, "The request's status." if answer == _STATUS else "The result.")}
    if pending:
        responses["202"] = _content(answer, "The request is not completed yet.")
    responses["4XX"] = _content("Error", "The caller's fault, or the request's own error.")
    responses["5XX"] = _content("Error", "The server's fault.")
    return {"parameters": parameters, "responses": responses}


def _cancel() -> dict[str, Any]:
    responses = {code: _content("Cancelled", "What became of it.") for code in ("200", "202", "400", "404")}
    return {"parameters": [_REQUEST_ID], "responses": {**responses, "4XX": _content("Error", "The caller's fault.")}}


def _body() -> dict[str, Any]:
    return {"required": True, "content": {"application/json": {"schema": {"$ref": _REF.format(model=INPUT)}}}}
