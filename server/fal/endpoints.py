"""Resolves a path to an app and sub path, for every way in which fal's clients write the endpoint's id.

    fal-ai/lcm-sd15-i2i            the current id
    110602490/lcm-sd15-i2i         the old id as JavaScript writes it
    110602490-lcm-sd15-i2i         the old id as Python's run, submit and stream write it

What follows the id is the sub path: "" (run), "stream", "realtime", "ws" or a path of the client's own.
"""

import dataclasses
import functools
import re

from server.fal.errors import PlainError

# A legacy id: the account's number, a dash, the alias (the rule of fal's JavaScript client).
LEGACY_ID = re.compile(r"([0-9]+)-([a-zA-Z0-9-]+)")

# Where a realtime socket may be opened: current clients, those of 2023 and early 2024, and `ws_connect` of Python.
REALTIME_PATHS = frozenset({"realtime", "ws", ""})
# The most inputs that may wait on such a socket, as fal bounds `max_buffering`.
MAX_BUFFERING = 60


@dataclasses.dataclass(frozen=True, slots=True)
class Endpoint:
    """One app that is served. `owners`: the account names that it goes by. `name`, `about`: as users read them."""

    owner: str
    alias: str
    owners: frozenset[str]
    name: str
    category: str
    about: str

    @property
    def id(self) -> str:
        """The id in links and documents: owner/alias."""
        return f"{self.owner}/{self.alias}"


@dataclasses.dataclass(frozen=True, slots=True)
class Target:
    """A resolved path: the app, and the sub path behind its id (no slashes at its ends)."""

    app: Endpoint
    path: str


LCM_SD15_I2I = Endpoint(
    "fal-ai",
    "lcm-sd15-i2i",
    frozenset({"fal-ai", "110602490"}),
    name="Optimized Latent Consistency (SDv1.5)",
    category="image-to-image",
    about="A picture from a picture and a prompt, in four steps, by Stable Diffusion 1.5 and the LCM-LoRA.",
)
ENDPOINTS = (LCM_SD15_I2I,)
_BY_ID = {f"{owner}/{endpoint.alias}": endpoint for endpoint in ENDPOINTS for owner in endpoint.owners}


@functools.lru_cache(maxsize=256)
def resolve(path: str) -> Target:
    """Return the app and sub path that `path` (`owner/alias[/sub]` or `owner-alias[/sub]`) names.

    Raises `PlainError` 404 for an app that is not served here.
    """
    owner, _, rest = path.strip("/").partition("/")
    if legacy := LEGACY_ID.fullmatch(owner):
        owner, alias, sub = legacy[1], legacy[2], rest
    else:
        alias, _, sub = rest.partition("/")
    endpoint = _BY_ID.get(f"{owner}/{alias}")
    if endpoint is None:
        raise PlainError(404, f'Application "{alias or owner}" not found')
    return Target(endpoint, sub)


def no_such_path(target: Target) -> PlainError:
    """Return the 404 for a sub path that the app does not serve, in the words of fal's app server."""
    return PlainError(404, f"Path /{target.path} not found", {"X-Fal-Billable-Units": "0"})
