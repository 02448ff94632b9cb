"""The OpenAPI document of all that this server answers: run, stream, queue, uploads, tokens, health.

The schemas and the queue's calls are those of fal's document of the endpoint (`server.fal.openapi`). OpenAPI knows no
websockets: the realtime path has `x-websocket`. `x-error-types` has fal's words for errors, each with its status, and
`x-local-ca` the certificate that clients of the https server have to trust. The schema of an event stream is that of
one event; what its `data` holds as JSON has `x-contentSchema`, as OpenAPI 3.0 does not know `contentSchema`.
"""

import functools
from collections.abc import Sequence
from typing import Any

from server.fal import openapi
from server.fal.endpoints import MAX_BUFFERING, Endpoint
from server.fal.errors import REQUEST_ERRORS
from server.fal.headers import MIN_START_TIMEOUT_S

_ERRORS = {
    "400": "What was asked for can't be done, or not in this state.",
    "401": "No API key, or a wrong one.",
    "403": "The key, or the web page that asks, has no right to this.",
    "404": "There is no such path, app, request or file.",
    "413": "The body is larger than this server takes.",
    "422": "A field is wrong: `detail` lists each fault with `loc`, `msg` and `type`.",
    "429": "Too much at once; `Retry-After` says when to try again.",
    "4XX": "Any other fault of the caller's.",
    "5XX": "A fault of the server's: not ready, too slow, or broken.",
}


def document(app: Endpoint, servers: Sequence[str], local_ca: dict[str, Any] | None) -> dict[str, Any]:
    """Return the document. `servers`: base URLs, without slash, under which this server is reached; the first is here.

    `local_ca`: the value of `x-local-ca`; None on a server without TLS.
    """
    return {
        "openapi": "3.0.4",
        "info": {"title": f"{app.name} on your own machine", "version": "1.0.0", "description": app.about},
        "servers": [{"url": url} for url in servers],
        "security": [{"apiKeyAuth": []}],
        "components": {
            "securitySchemes": {
                "apiKeyAuth": {
                    "type": "apiKey",
                    "in": "header",
                    "name": "Authorization",
                    "description": "`Key id:secret`. A server without keys takes any, and none.",
                }
            },
            "schemas": _schemas(),
        },
        "paths": {**_answered_at_once(app), **_queue(app), **_UPLOADS, **_OTHERS},
        "x-error-types": REQUEST_ERRORS,
        **({"x-local-ca": local_ca} if local_ca else {}),
    }


@functools.cache
def _schemas() -> dict[str, Any]:
    """Return fal's schemas, in words that OpenAPI 3.0 knows, and ours."""
    given = openapi.schemas()[openapi.INPUT]
    properties = {name: _field(field) for name, field in given["properties"].items()}
    return {**openapi.schemas(), **_SCHEMAS, openapi.INPUT: {**given, "properties": properties}}


def _field(field: dict[str, Any]) -> dict[str, Any]:
    """Return a field without what fal's document, as pydantic, says in its own words: `examples`, `ge`, `le`."""
    names = {"ge": "minimum", "le": "maximum"}
    said = {names.get(name, name): value for name, value in field.items() if name != "examples"}
    return {**said, "example": field["examples"][0]} if "examples" in field else said


def _answered_at_once(app: Endpoint) -> dict[str, Any]:
    path, given, made = f"/run/{app.id}", _ref(openapi.INPUT), _ref(openapi.OUTPUT)
    return {
        path: {"post": _call("Run", "Make pictures, and wait for them", made, body=given, parameters=_CALL_HEADERS)},
        f"{path}/stream": {
            "post": _call(
                "Run",
                "The same, with a preview after each step",
                _events(_ref("Preview")),
                body=given,
                kind=_EVENTS,
                parameters=_CALL_HEADERS,
                said="Server-sent events: each `data` is one JSON object; the last is the output, without `progress`.",
            )
        },
        f"{path}/realtime": {
            "summary": "A websocket for pictures that change all the time",
            "parameters": _REALTIME_PARAMETERS,
            "x-websocket": {
                "send": given,
                "receive": made,
                "description": "Frames are JSON as text, or msgpack as bytes; the answer is as the input was. A refused"
                " input is answered with a text of `type` `x-fal-error`, and the socket stays open. It closes with 1000"
                " when idle.",
            },
        },
    }


def _queue(app: Endpoint) -> dict[str, Any]:
    """Return the queue's calls, as fal's document has them, and the stream of statuses."""
    fals = openapi.document(app, "", "")["paths"]
    submit, job = f"/{app.id}", f"/{app.id}/requests/{{request_id}}"

    def as_fals(path: str, summary: str, *parameters: dict[str, Any]) -> dict[str, Any]:
        [(method, call)] = fals[path].items()
        answers = {**_failures(), **call["responses"]}
        given = [_LOGS if each["name"] == "logs" else each for each in call["parameters"]]
        changes = {"parameters": [*given, *parameters], "responses": answers}
        return {method: {"tags": ["Queue"], "summary": summary, **call, **changes}}

    status = as_fals(f"{job}/status", "How a job is")
    stream = _call(
        "Queue",
        "The same as events, until the job has ended",
        _events(_ref("QueueStatus")),
        kind=_EVENTS,
        parameters=status["get"]["parameters"],
        said="Server-sent events: each `data` is one status.",
    )
    return {
        f"/queue{submit}": as_fals(submit, "Put a job into the queue", _WEBHOOK, *_CALL_HEADERS, *_QUEUE_HEADERS),
        f"/queue{job}/status": status,
        f"/queue{job}/status/stream": {"get": stream},
        f"/queue{job}": as_fals(job, "What a job has made"),
        f"/queue{job}/cancel": as_fals(f"{job}/cancel", "Cancel a job"),
    }


def _ref(name: str) -> dict[str, str]:
    return {"$ref": f"#/components/schemas/{name}"}


def _events(data: dict[str, Any]) -> dict[str, Any]:
    """Return the schema of one event of a stream."""
    return _object(("data",), data={**_TEXT, "x-contentSchema": data})


def _failures() -> dict[str, Any]:
    return {status: _answer(said, _ref("Error")) for status, said in _ERRORS.items()}


def _answer(said: str, schema: dict[str, Any], kind: str = "application/json") -> dict[str, Any]:
    return {"description": said, "content": {kind: {"schema": schema}}}


def _call(
    tag: str,
    summary: str,
    made: dict[str, Any],
    *,
    body: dict[str, Any] | None = None,
    kind: str = "application/json",
    parameters: Sequence[dict[str, Any]] = (),
    said: str = "The answer.",
) -> dict[str, Any]:
    call: dict[str, Any] = {"tags": [tag], "summary": summary, "parameters": list(parameters)}
    if body is not None:
        where = "application/octet-stream" if body == _BINARY else "application/json"
        call["requestBody"] = {"required": True, "content": {where: {"schema": body}}}
    return {**call, "responses": {"200": _answer(said, made, kind), **_failures()}}


def _parameter(place: str, name: str, said: str, *, required: bool = False, **schema: Any) -> dict[str, Any]:
    return {"name": name, "in": place, "required": required, "description": said, "schema": schema}


def _object(required: Sequence[str] = (), **properties: dict[str, Any]) -> dict[str, Any]:
    return {"type": "object", "properties": properties, **({"required": list(required)} if required else {})}


_BINARY = {"type": "string", "format": "binary"}
_TEXT = {"type": "string"}
_EVENTS = "text/event-stream"

_SCHEMAS: dict[str, Any] = {
    "Preview": {
        "allOf": [
            _ref(openapi.OUTPUT),
            _object(progress=_object(("step", "steps"), step={"type": "integer"}, steps={"type": "integer"})),
        ]
    },
    "Upload": _object(
        content_type={**_TEXT, "nullable": True, "maxLength": 1000, "default": "", "example": "image/jpeg"},
        file_name={**_TEXT, "nullable": True, "maxLength": 10_000, "default": ""},
    ),
    "UploadUrls": _object(
        ("upload_url", "file_url"),
        upload_url={**_TEXT, "description": "Where to PUT the bytes."},
        file_url={**_TEXT, "description": "Where the file will be: an `image_url` for an input."},
    ),
    "TokenRequest": _object(
        ("allowed_apps",),
        allowed_apps={"type": "array", "items": _TEXT, "minItems": 1, "maxItems": 100, "example": ["lcm-sd15-i2i"]},
        token_expiration={"type": "integer", "minimum": 1, "default": 120, "description": "Seconds."},
    ),
    "Health": _object(
        ("state", "detail", "engines", "queue"),
        state={**_TEXT, "enum": ["STARTING", "READY", "BUSY", "UNLOADED", "SETUP_FAILED", "DEFUNCT"]},
        detail={**_TEXT, "description": "What is being loaded, or what to do."},
        notice=_TEXT,
        engines={"type": "array", "items": {"type": "object"}, "description": "One for each device."},
        queue=_object(("waiting", "running"), waiting={"type": "integer"}, running={"type": "integer"}),
    ),
}

_WEBHOOK = _parameter("query", "fal_webhook", "Where the result is sent to, signed.", type="string", format="uri")
_REALTIME_PARAMETERS = [
    _parameter(
        "query",
        "max_buffering",
        "How many inputs may wait; beyond it the oldest is dropped.",
        type="integer",
        minimum=1,
        maximum=MAX_BUFFERING,
    ),
    _parameter("query", "fal_jwt_token", "A token of `/rest/tokens`, where there are keys.", type="string"),
]
_CALL_HEADERS = [
    _parameter(
        "header",
        "X-Fal-Request-Timeout",
        "Seconds within which the work must begin.",
        type="number",
        minimum=MIN_START_TIMEOUT_S,
        exclusiveMinimum=True,  # as OpenAPI 3.0 has it
    )
]
# No enums: another value is as none, not refused.
_QUEUE_HEADERS = [
    _parameter("header", "X-Fal-Queue-Priority", "`low`: after all others.", type="string"),
    _parameter("header", "X-Fal-Store-IO", "`0`: nothing is kept after delivery.", type="string"),
    _parameter("header", "X-Fal-No-Retry", "`1`: try it once only.", type="string"),
]
_LOGS = _parameter("query", "logs", "`1` or `true`: with what the job has logged.", type="string")
_NAME = _parameter("path", "name", "The file's name.", required=True, type="string")

_UPLOADS: dict[str, Any] = {
    "/rest/storage/upload/initiate": {
        "post": _call("Uploads", "Ask where to upload a picture", _ref("UploadUrls"), body=_ref("Upload"))
    },
    "/cdn/upload/{name}": {
        "put": {
            **_call(
                "Uploads",
                "Upload it, to `upload_url`",
                {"type": "object"},
                body=_BINARY,
                parameters=[_NAME, _parameter("query", "ticket", "Of `upload_url`.", required=True, type="string")],
            ),
            "security": [],
        }
    },
    "/cdn/files/{name}": {
        "get": {
            **_call("Uploads", "A stored file", _BINARY, kind="*/*", parameters=[_NAME], said="The file."),
            "security": [],
        }
    },
}

_OTHERS: dict[str, Any] = {
    "/rest/tokens": {
        "post": _call("Tokens", "A token for a browser, that ends by itself", _TEXT, body=_ref("TokenRequest"))
    },
    "/health": {
        "get": {
            "tags": ["Health"],
            "summary": "How the server is",
            "security": [],
            "responses": {"200": _answer("In every state.", _ref("Health"))},
        }
    },
    "/ready": {
        "get": {
            "tags": ["Health"],
            "summary": "Whether it takes requests",
            "security": [],
            "responses": {"200": _answer("It does.", _ref("Health")), "503": _answer("It does not.", _ref("Health"))},
        }
    },
}
