"""The text from which agents learn to call an app, as fal has one for each model: Markdown from the schema."""

import json
from typing import Any

from server.fal import openapi
from server.fal.endpoints import Endpoint
from server.fal.hosts import External


def text(app: Endpoint, where: External) -> str:
    """Return the text for `app`, with the URLs under which this client reaches it."""
    run, queue = f"{where.base('run')}/{app.id}", f"{where.base('queue')}/{app.id}"
    schemas = openapi.schemas()
    given, made = schemas[openapi.INPUT], schemas[openapi.OUTPUT]
    example = {name: given["properties"][name]["examples"][0] for name in given["required"]}
    return f"""\
# {app.name}

> {app.about}

- **Model id**: `{app.id}`
- **Category**: {app.category}
- **Endpoint**: `POST {run}` answers with the output
- **Queue**: `POST {queue}` answers with `status_url`, `response_url` and `cancel_url`
- **OpenAPI**: {where.origin}/api/openapi/queue/openapi.json?endpoint_id={app.id}

## Input

{_fields(given)}

## Output

{_fields(made)}

An image has {", ".join(f"`{name}`" for name in schemas["Image"]["properties"])}.

## Usage

```sh
curl {run} -H "Authorization: Key $FAL_KEY" -H "Content-Type: application/json" -d '{json.dumps(example)}'
```

Through the queue: `GET` the `status_url` until `status` is `COMPLETED`, then `GET` the `response_url`. Every call needs
the same `Authorization` header.

## Errors

Each has `detail`: one text, or a list of faults with `loc`, `msg` and `type` (422: the input is wrong). 429: try again.
"""


def _fields(schema: dict[str, Any]) -> str:
    return "\n".join(_field(name, field, name in schema["required"]) for name, field in schema["properties"].items())


def _field(name: str, field: dict[str, Any], required: bool) -> str:  # noqa: FBT001 - a fact, named at the call
    said = [f"- **`{name}`** (`{_kind(field)}`, {'required' if required else 'optional'}): {field['description']}"]
    if field.get("default") is not None:
        said.append(f"Default: `{json.dumps(field['default'])}`.")
    if "minimum" in field and "maximum" in field:
        said.append(f"From {field['minimum']} to {field['maximum']}.")
    return " ".join(said)


def _kind(field: dict[str, Any]) -> str:
    if "$ref" in field:
        return str(field["$ref"]).rpartition("/")[2]
    return f"list of {_kind(field['items'])}" if field["type"] == "array" else str(field["type"])
