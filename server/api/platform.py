"""fal's platform API, as far as it concerns the app that is served here. On `api.fal.ai` its paths begin at /v1.

    GET    /api/v1/models                                   the catalogue: `endpoint_id`, `q`, `category`, `status`,
                                                            `limit`, `cursor`, `expand`
    GET    /api/v1/models/pricing                           its price, 0: `endpoint_id`, `limit`, `cursor`
    DELETE /api/v1/models/requests/{request_id}/payloads    input, output, log and output files of a job are deleted
    any    /api/v1, /api/v1/…                               404: there is nothing else
    GET    /models/{app}/llms.txt                           how to call the app, for agents

The catalogue and that text are public, as at fal. Deleting needs the key of the job's owner; any other gets 404.
"""

import logging

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from server.context import context
from server.fal import catalogue, llms_txt
from server.fal.endpoints import Endpoint
from server.fal.errors import FalError, InvalidInput, PlainError, error_item
from server.fal.hosts import external
from server.storage.files import Files
from server.web.request import find_caller, find_endpoint
from server.web.responses import json_response

LOG = logging.getLogger(__name__)

_METHODS = ["GET", "POST", "PUT", "DELETE", "PATCH"]


class _Image(msgspec.Struct):
    url: str


class _Output(msgspec.Struct):
    """The part of a result that links to files; an error has none."""

    images: list[_Image] = []


async def models(request: Request) -> Response:
    """Answer with the apps that match the query; a page beyond the first is empty."""
    _check_limit(request)
    words, category, status = (request.query_params.get(name, "") for name in ("q", "category", "status"))
    found = _first_page(request, catalogue.find(_list(request, "endpoint_id"), words, category, status))
    documents = catalogue.OPENAPI in _list(request, "expand")
    return json_response(catalogue.models(found, external(request.scope), documents=documents))


async def pricing(request: Request) -> Response:
    """Answer with the prices of the apps that the query names."""
    _check_limit(request)
    return json_response(catalogue.prices(_first_page(request, catalogue.find(_list(request, "endpoint_id")))))


def _list(request: Request, name: str) -> list[str]:
    """Return the values of a parameter that may be repeated, and may have several after commas."""
    values = ",".join(request.query_params.getlist(name)).split(",")
    return [value.strip() for value in values if value.strip()]


def _check_limit(request: Request) -> None:
    written = request.query_params.get("limit") or "1"
    if not (written.isascii() and written.isdigit() and written.strip("0")):
        message = "Input should be a whole number from 1 on"
        raise InvalidInput([error_item(("query", "limit"), "greater_than_equal", message, {"ge": 1})])


def _first_page(request: Request, found: list[Endpoint]) -> list[Endpoint]:
    """Return these apps, or none for a request with a cursor: the first page has them all."""
    return [] if request.query_params.get("cursor") else found


async def delete_payloads(request: Request) -> Response:
    """Delete what is stored of a job, and answer with the links that led to its files. A second time there are none.

    A file that can't be deleted has the reason as its `exception`, and goes when it expires.
    """
    ctx, caller = context(request), find_caller(request)
    snapshot = await ctx.queue.get(request.path_params["request_id"], certain=True)
    if snapshot is None or snapshot.owner != caller.id:
        raise PlainError(404, "Request not found")
    if not snapshot.completed:
        raise PlainError(409, "Request is still in progress: cancel it, or wait for its end")
    kept = await ctx.queue.result(snapshot.id)
    output = msgspec.json.decode(kept.body, type=_Output) if kept else _Output()
    links = [image.url for image in output.images if not image.url.startswith("data:")]
    # First: only the output says which files are the job's.
    results = [{"link": link, "exception": await _delete_file(ctx.files, link)} for link in links]
    await ctx.queue.delete(snapshot.id)
    return json_response({"cdn_delete_results": results})


async def _delete_file(files: Files, link: str) -> str | None:
    """Delete the file behind a link; return why that failed, None if it did not."""
    try:
        await files.delete(link)
    except OSError as error:
        reason = error.strerror or type(error).__name__  # never the path: it has the file's name
        LOG.warning("an output file could not be deleted, and stays until it expires: %s", reason)
        return reason
    except FalError as error:  # the store is away
        return str(error)
    return None


async def nothing_else(_: Request) -> Response:
    """Answer 404 to the rest of the platform API."""
    raise PlainError(404, "This server has the catalogue of its own app only: GET /v1/models, GET /v1/models/pricing")


async def for_agents(request: Request) -> Response:
    """Answer with the text from which agents learn to call the app."""
    target = find_endpoint(request, {""})
    return Response(llms_txt.text(target.app, external(request.scope)), media_type="text/plain; charset=utf-8")


ROUTES: list[BaseRoute] = [
    Route("/api/v1/models", models, methods=["GET"]),
    Route("/api/v1/models/pricing", pricing, methods=["GET"]),
    Route("/api/v1/models/requests/{request_id}/payloads", delete_payloads, methods=["DELETE"]),
    Route("/api/v1", nothing_else, methods=_METHODS),
    Route("/api/v1/{rest:path}", nothing_else, methods=_METHODS),
    Route("/models/{app:path}/llms.txt", for_agents, methods=["GET"]),
]
