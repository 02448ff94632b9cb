"""fal's object lifecycle: how long a file lives and who may read it, as the caller asks in a header. Pure.

    {"expiration_duration_seconds": 3600,
     "initial_acl": {"default": "allow" | "forbid" | "hide", "rules": [{"user": key id, "decision": …}]}}

It comes as JSON in `X-Fal-Object-Lifecycle` (uploads) or `X-Fal-Object-Lifecycle-Preference` (the files that a request
makes). `allow` is public; `forbid` is refused with 403; `hide` is answered as if there were no such file. The owner may
always read. Sources: fal's "File Access Controls", "Data Retention & Storage".
"""

from collections.abc import Mapping
from typing import Literal, TypeAlias

import msgspec

from server.fal.errors import RequestError

Decision: TypeAlias = Literal["allow", "forbid", "hide"]

# A header longer than this would not fit into an upload URL.
_MAX_HEADER_CHARS = 4096
# A century; more is a mistake.
_MAX_SECONDS = 100 * 365 * 86400


class Rule(msgspec.Struct, frozen=True):
    """What one user may do; `user` is a key's id."""

    user: str
    decision: Decision


class Acl(msgspec.Struct, frozen=True, omit_defaults=True):
    """Who may read a file."""

    default: Decision = "allow"
    rules: tuple[Rule, ...] = ()

    def decide(self, reader: str | None, owner: str) -> Decision:
        """Return what `reader` (None: an anonymous one) may see of a file of `owner`."""
        if reader is not None and reader == owner:
            return "allow"
        return next((rule.decision for rule in self.rules if rule.user == reader), self.default)


PUBLIC = Acl()


class Lifecycle(msgspec.Struct, frozen=True, omit_defaults=True):
    """`seconds`: how long the file lives, None for as long as the server keeps files."""

    seconds: int | None = None
    acl: Acl = PUBLIC


class _Wish(msgspec.Struct):
    """The header's JSON. Unknown fields are ignored, null is the default; 0 seconds means no end, as fal has it."""

    expiration_duration_seconds: int | float | None = None
    initial_acl: Acl | None = None


_DECODER = msgspec.json.Decoder(_Wish)
_HEADERS = ("x-fal-object-lifecycle", "x-fal-object-lifecycle-preference")


def parse(header: str | None) -> Lifecycle:
    """Return the lifecycle in a header. Raises `RequestError` 400: no private file may become public by mistake."""
    if not header:
        return Lifecycle()
    if len(header) > _MAX_HEADER_CHARS:
        raise RequestError("bad_request", f"The object lifecycle header is longer than {_MAX_HEADER_CHARS} characters")
    try:
        wish = _DECODER.decode(header)
    except ValueError as error:
        raise RequestError(
            "bad_request", "The object lifecycle header is not the JSON object that it should be"
        ) from error
    wanted = wish.expiration_duration_seconds
    if wanted is not None and not 0 <= wanted <= _MAX_SECONDS:
        raise RequestError("bad_request", f"expiration_duration_seconds must be in 0…{_MAX_SECONDS}")
    return Lifecycle(int(wanted) if wanted else None, wish.initial_acl or PUBLIC)


def upload_lifecycle(headers: Mapping[str, str]) -> Lifecycle:
    """Return the lifecycle that comes with an upload. Python sends both headers, with the same value."""
    return parse(next((headers[name] for name in _HEADERS if name in headers), None))
