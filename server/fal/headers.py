"""fal's platform headers on requests ("Platform Headers", "Submit a request").

A malformed value is an error where ignoring it would do something else than was asked. Unknown priorities are ignored,
as fal documents.
"""

import math
from collections.abc import Mapping

from pipelines.messages import Priority
from server.fal.errors import RequestError
from server.fal.lifecycle import parse

# Below this fal ignores or refuses a start timeout; the clients refuse anything up to 1.
MIN_START_TIMEOUT_S = 0.1
# A request that waits longer than this is not waiting for an answer any more: a week.
_MAX_START_TIMEOUT_S = 7 * 24 * 3600.0

_YES = {"1", "true", "yes"}


def start_timeout(headers: Mapping[str, str]) -> float | None:
    """Return the seconds within which processing must begin. The newer name wins. Raises `RequestError` 400."""
    name = "x-fal-request-start-timeout"
    written = headers.get(name)
    if written is None:
        name = "x-fal-request-timeout"
        written = headers.get(name)
    if written is None:
        return None
    try:
        seconds = float(written)
    except ValueError:
        seconds = math.nan
    if not seconds > MIN_START_TIMEOUT_S:
        raise RequestError("bad_request", f"{name} must be a number of seconds above {MIN_START_TIMEOUT_S}")
    return min(seconds, _MAX_START_TIMEOUT_S)


def lifecycle(headers: Mapping[str, str]) -> str | None:
    """Return the checked lifecycle header for the files that this request makes. Raises `RequestError` 400."""
    written = headers.get("x-fal-object-lifecycle-preference")
    parse(written)
    return written


def priority(headers: Mapping[str, str]) -> Priority:
    """Return the queue's priority, which can only be lowered."""
    low = headers.get("x-fal-queue-priority", "").strip().lower() == "low"
    return Priority.LOW if low else Priority.NORMAL


def no_retry(headers: Mapping[str, str]) -> bool:
    """Return whether the queue must try this request once only."""
    return headers.get("x-fal-no-retry", "").strip().lower() in _YES


def store_io(headers: Mapping[str, str]) -> bool:
    """Return whether input and output may be kept after delivery."""
    return headers.get("x-fal-store-io", "").strip() != "0"
