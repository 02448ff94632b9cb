"""Authentication by API keys, and by the short-lived tokens that browsers get in their place.

    Authorization: Key id:secret       every call
    Authorization: Bearer <token>      a token of ours; fal's own login tokens are refused with 401
    ?fal_jwt_token=<token>             realtime sockets, streams, status streams
    ?fal_key_id=…&fal_key_secret=…     realtime sockets of 2023 apps

A token (JWT, HS256, one audience) is bound to apps and to the key that asked for it: it dies with that key. Within its
life it opens any number of sockets, since clients keep one and come back with it; its end closes no socket. One made
before the machine's clock was set back stays valid: only its end counts. Without any key the server is open: every
caller is "anonymous", whatever credentials come (fal's Python client insists on sending some), and the origin guard in
`server.web` lets only this machine call.
"""

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, TypeAlias

import jwt
from jwt.types import Options
from starlette.requests import HTTPConnection

from server.access.api_keys import Allowance, Key, KeyRing, allowance
from server.data_dir import read_secret
from server.fal.endpoints import Endpoint
from server.fal.errors import PlainError
from server.settings import AccessSettings

Audience: TypeAlias = Literal["call", "cdn"]

# In the state of a scope, which copies of the scope share.
_KNOWN = "fourstep.known"
_ALGORITHM = "HS256"
_CHECKS: Options = {"require": ["aud", "sub", "exp"], "verify_iat": False, "verify_exp": False}
_BAD_FORMAT = "Invalid Key Authorization header format. Expected '<key_id>:<key_secret>'."
_UNKNOWN_KEY = "No user found for Key ID and Secret"
_BAD_TOKEN = "Invalid or expired token"  # noqa: S105 — a message


@dataclasses.dataclass(frozen=True, slots=True)
class Caller:
    """The caller for whom a call is counted, and the limits that apply. `id` is the key's."""

    id: str
    name: str
    allowance: Allowance = dataclasses.field(default=Allowance(), compare=False)


ANONYMOUS = Caller("anonymous", "anonymous")


class Auth:
    """Checks credentials and issues tokens. Its secret lies in the data directory, so tokens outlive a restart.

    `clock`: Unix time in seconds, by which tokens end.
    """

    def __init__(self, settings: AccessSettings, clock: Callable[[], float] = time.time) -> None:
        self._now = clock
        self._settings = settings
        self._keys = KeyRing(settings)
        self._secret = read_secret(settings.data_dir / "token.secret")

    @property
    def open(self) -> bool:
        """Whether calls need no credentials: no key was ever set. Never raises: middleware asks."""
        return not self._keys.configured

    def caller(self, connection: HTTPConnection, app: Endpoint | None = None) -> Caller:
        """Return who makes this call. Tokens count only where an `app` is given, and must be for it.

        Raises `PlainError` 401 for missing and wrong credentials, 403 for a token of other apps.
        """
        if self.open:
            return ANONYMOUS
        if authorization := connection.headers.get("authorization"):
            scheme, _, credential = authorization.partition(" ")
            if scheme.lower() == "key":
                return self._by_key(credential.strip())
            if scheme.lower() == "bearer" and app:
                return self._by_token(credential.strip(), app)
            raise PlainError(401, "Unsupported Authorization scheme. Use 'Key <key_id>:<key_secret>'.")
        query = connection.query_params
        if app and (token := query.get("fal_jwt_token")):
            return self._by_token(token, app)
        if app and "fal_key_id" in query:
            return self._by_key(f"{query['fal_key_id']}:{query.get('fal_key_secret', '')}")
        what = f'application "{app.id}"' if app else "this resource"
        raise PlainError(401, f"Cannot access {what}. Authentication is required.")

    def issue(self, caller: Caller, seconds: int, apps: Sequence[str] = (), audience: Audience = "call") -> str:
        """Return a token with which its bearer may call `apps` in the name of `caller`."""
        now = int(self._now())
        claims = {"aud": audience, "sub": caller.id, "iat": now, "exp": now + seconds, "apps": list(apps)}
        return jwt.encode(claims, self._secret, _ALGORITHM)

    def verify(self, token: str, audience: Audience) -> tuple[Caller, tuple[str, ...]]:
        """Return the caller in whose name a token was issued, and its apps. Raises `PlainError` 401."""
        try:
            claims = jwt.decode(token, self._secret, [_ALGORITHM], audience=audience, options=_CHECKS)
        except jwt.InvalidTokenError:
            raise PlainError(401, _BAD_TOKEN) from None
        if claims["exp"] <= self._now():
            raise PlainError(401, _BAD_TOKEN)
        apps = tuple(claims.get("apps", ()))
        if self.open:
            return ANONYMOUS, apps
        key = self._keys.find(claims["sub"])
        if key is None:
            raise PlainError(401, _BAD_TOKEN)
        return self._caller(key), apps

    def limited(self) -> list[str]:
        """Return the ids of the keys that have limits of their own."""
        return self._keys.limited()

    def named(self, key_id: str) -> Caller:
        """Return the caller of a key id noted earlier. Where the key is gone, limits are those of any key."""
        if self.open:
            return ANONYMOUS
        return self._caller(self._keys.find(key_id) or Key(key_id, name="", digest="", created=""))

    def _by_key(self, credential: str) -> Caller:
        if ":" not in credential:
            raise PlainError(401, _BAD_FORMAT)
        key = self._keys.match(credential)
        if key is None:
            raise PlainError(401, _UNKNOWN_KEY)
        return self._caller(key)

    def _caller(self, key: Key) -> Caller:
        return Caller(key.id, key.name, allowance(self._settings, key))

    def _by_token(self, token: str, app: Endpoint) -> Caller:
        caller, apps = self.verify(token, "call")
        if not any(_covers(allowed, app) for allowed in apps):
            raise PlainError(403, f'This token does not allow application "{app.id}"')
        return caller


def _covers(allowed: str, app: Endpoint) -> bool:
    """Return whether `allowed` names the app: by alias, as every client asks, or as owner/alias with any sub path."""
    first, _, rest = allowed.strip("/").partition("/")
    if not rest:
        return first == app.alias or first in {f"{owner}-{app.alias}" for owner in app.owners}
    return first in app.owners and rest.partition("/")[0] == app.alias


def note_known(connection: HTTPConnection) -> None:
    """Note that this connection's caller has shown a key, a token or an upload's ticket."""
    connection.scope.setdefault("state", {})[_KNOWN] = True


def has_shown_key(scope: Mapping[str, Any]) -> bool:
    """Return whether the caller of this request is known, as `note_known` says."""
    return _KNOWN in scope["state"]


def has_keys(settings: AccessSettings) -> bool:
    """Return whether any key was ever set, so that the server may be opened to other machines."""
    return KeyRing(settings).configured
