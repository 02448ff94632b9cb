"""Short-lived tokens for browsers, in fal's two forms.

    POST /rest/tokens            {"allowed_apps": ["lcm-sd15-i2i"], "token_expiration": 120}    →  "eyJ…"
    POST /rest/tokens/realtime   {"allowed_apps": ["fal-ai/…/realtime"], "duration": 120}       →  {"token": "eyJ…"}

The first must be a bare JSON string: the JavaScript clients put whatever else they get into the socket's URL. Every
client asks for the alias alone. Back ends written after fal's newer documentation ask for the full path, and some
write `app` for a single one.
"""

from typing import Annotated

from pydantic import BaseModel, Field
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from server.context import context
from server.fal.errors import invalid
from server.fal.schemas import Integer
from server.web.request import find_caller, given, read_json, validated
from server.web.responses import json_response

# What fal's clients ask for; they ask for a new token before it expires.
DEFAULT_SECONDS = 120

_MAX_BODY_BYTES = 64 * 1024

App = Annotated[str, Field(max_length=200)]


class TokenRequest(BaseModel):
    """Body of a request for a token: the apps, and the seconds until it expires."""

    allowed_apps: list[App] = Field(default=[], max_length=100)
    app: App = ""
    token_expiration: Integer = Field(DEFAULT_SECONDS, ge=1)
    duration: Integer | None = Field(None, ge=1)


async def token(request: Request) -> Response:
    """Answer with a token as a bare JSON string."""
    return json_response(await _issue(request))


async def realtime_token(request: Request) -> Response:
    """Answer with a token in an object."""
    return json_response({"token": await _issue(request)})


async def _issue(request: Request) -> str:
    ctx = context(request)
    caller = find_caller(request)
    wanted = validated(TokenRequest, given(await read_json(request, caller, _MAX_BODY_BYTES)))
    apps = wanted.allowed_apps or ([wanted.app] if wanted.app else [])
    if not apps:
        raise invalid("allowed_apps", "missing", "Field required")
    seconds = min(wanted.duration or wanted.token_expiration, ctx.settings.max_token_seconds)
    return ctx.auth.issue(caller, seconds, apps)


ROUTES: list[BaseRoute] = [
    Route("/rest/tokens", token, methods=["POST"]),
    Route("/rest/tokens/realtime", realtime_token, methods=["POST"]),
]
