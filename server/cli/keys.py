"""`fourstep keys` and `fourstep webhook-keys`: the keys that callers show, and those that sign webhooks."""

import datetime
import functools

from server.access import api_keys as key_file
from server.access.api_keys import Key
from server.cli.arguments import KEY_LIMITS
from server.cli.output import in_data_dir, show
from server.nodes import forms
from server.settings import Settings, SettingsError
from server.webhooks.signing_keys import SigningKey, SigningKeys

_ADDED = """\
This is shown once. Clients: export FAL_KEY=…, with the line above.
Every call needs a key from now on; a running server obeys at once."""


def api_keys(settings: Settings, action: str, name: str, **limits: int | None) -> int:
    """Add, list, limit and revoke API keys."""
    file = key_file.path(settings)
    changed = functools.partial(forms.edited, settings, file.name)
    with in_data_dir(settings, made=action == "add"):
        if action == "add":
            show(f"{changed(lambda: key_file.add(file, name))}\n\n{_ADDED}")
        elif action == "revoke":
            show(f"revoked {changed(lambda: key_file.revoke(file, name)).id}")
        elif action == "limit":
            given = {what: count for what, count in limits.items() if count is not None}
            show(_shown(changed(lambda: key_file.limit(file, name, **given))))
        else:
            for key in changed(lambda: key_file.read(file)):
                show(_shown(key))
    return 0


def _shown(key: Key) -> str:
    own = [f"{what} {count}" for what in KEY_LIMITS if (count := getattr(key, what))]
    state = "revoked" if key.revoked else "in use "
    return f"{key.id}  {key.created}  {state}  {key.name}" + (f"  ({', '.join(own)})" if own else "")


def webhook_keys(settings: Settings, action: str) -> int:
    """List and rotate the keys that sign webhooks."""
    file, rotates = settings.webhook_keys_path, action == "rotate"

    def act() -> list[SigningKey]:
        if not rotates and not file.exists():
            raise SettingsError(f"there is no {file} yet; the first `fourstep serve` with this --data-dir makes a key")
        keys = SigningKeys(file)
        return [keys.rotate()] if rotates else keys.published()

    with in_data_dir(settings, made=rotates):
        for key in forms.edited(settings, file.name, act):
            since = datetime.datetime.fromtimestamp(key.signs_from, datetime.UTC).isoformat(" ", "seconds")
            show(f"{key.jwk['x']}  signs from {since if key.signs_from else 'the beginning'}")
    return 0
