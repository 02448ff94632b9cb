"""The catalogue of fal's platform API, with the apps that are served here: each as fal lists its own, at price 0."""

from collections.abc import Collection
from typing import Any

from server.fal import openapi
from server.fal.endpoints import ENDPOINTS, Endpoint, resolve
from server.fal.errors import PlainError
from server.fal.hosts import External

OPENAPI = "openapi-3.0"  # the value of `expand` that adds each model's document

_STATUS = "active"
# The month in which fal published the endpoint, as a time.
_PUBLISHED = "2023-11-01T00:00:00Z"


def find(ids: Collection[str], words: str = "", category: str = "", status: str = "") -> list[Endpoint]:
    """Return the apps with one of these ids, all these words, this category and status; what is empty matches all."""
    named = ENDPOINTS if not ids else [app for app in ENDPOINTS if any(_names(each, app) for each in ids)]
    return [app for app in named if _has(app, words) and category in {"", app.category} and status in {"", _STATUS}]


def models(apps: Collection[Endpoint], where: External, *, documents: bool) -> dict[str, Any]:
    """Return the answer with these apps, with links for this client; `documents`: with the OpenAPI document of each."""
    return _page("models", [_model(app, where, documents=documents) for app in apps])


def prices(apps: Collection[Endpoint]) -> dict[str, Any]:
    """Return the answer with these apps' prices."""
    free = {"unit_price": 0.0, "unit": "image", "currency": "USD"}
    return _page("prices", [{"endpoint_id": app.id, **free} for app in apps])


def _page(name: str, entries: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the one page: there are no more apps than the smallest page has room for."""
    return {name: entries, "next_cursor": None, "has_more": False}


def _names(written: str, app: Endpoint) -> bool:
    try:
        target = resolve(written)
    except PlainError:  # fal has many apps; this server has few
        return False
    return target.app == app and not target.path


def _has(app: Endpoint, words: str) -> bool:
    text = f"{app.id} {app.name} {app.category} {app.about}".lower()
    return all(word in text for word in words.lower().split())


def _model(app: Endpoint, where: External, *, documents: bool) -> dict[str, Any]:
    model: dict[str, Any] = {
        "endpoint_id": app.id,
        "metadata": {
            "display_name": app.name,
            "category": app.category,
            "description": app.about,
            "status": _STATUS,
            "tags": [],
            "updated_at": _PUBLISHED,
            "is_favorited": False,
            "thumbnail_url": f"{where.origin}/static/beach.jpg",
            "model_url": f"{where.base('run')}/{app.id}",
            "date": _PUBLISHED,
            "highlighted": False,
            "pinned": False,
        },
    }
    if documents:
        model["openapi"] = openapi.document(app, where.base("queue"), where.origin)
    return model
