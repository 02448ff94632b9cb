"""Settings by name: the list of them, and their values from flags and `FOURSTEP_…` variables. And the version.

A `FOURSTEP_…` variable that names no setting is an error, so that a typing mistake can't pass for a setting.
"""

import dataclasses
import difflib
import functools
import os
import typing
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from server import memory
from server.settings import (
    AccessSettings,
    ClusterSettings,
    ConnectionSettings,
    DataSettings,
    FetchSettings,
    LimitSettings,
    ListenSettings,
    LogSettings,
    ModelSettings,
    QueueSettings,
    RequestSettings,
    Settings,
    SettingsError,
    StorageSettings,
)

PREFIX = "FOURSTEP_"
# Variables that no child process gets.
_KEPT = (PREFIX, "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")

# The sections in the order of `--help`, and their titles there.
SECTIONS: dict[type[Any], str] = {
    ListenSettings: "where it listens",
    ModelSettings: "the model",
    DataSettings: "where things lie",
    LogSettings: "what it logs",
    AccessSettings: "who may call",
    ConnectionSettings: "limits on connections",
    LimitSettings: "limits on calls",
    QueueSettings: "the queue",
    ClusterSettings: "several servers",
    StorageSettings: "stored files",
    FetchSettings: "what it fetches for callers",
    RequestSettings: "limits on one request, and its result",
}
FIELDS: dict[str, dataclasses.Field[Any]] = {
    field.name: field
    for section in SECTIONS
    for field in dataclasses.fields(section)
    if field.name in section.__annotations__
}

_TYPES = typing.get_type_hints(Settings)
_BOOLEANS = dict.fromkeys(("1", "true", "yes", "on"), True) | dict.fromkeys(("0", "false", "no", "off", ""), False)


def load(
    flags: Mapping[str, Any] | None = None,
    environ: Mapping[str, str] | None = None,
    limit_bytes: Callable[[], int | None] = memory.limit_bytes,
    defaults: Mapping[str, Any] | None = None,
) -> Settings:
    """Return settings from flags (those not None), else the environment, else `defaults`, else those of `Settings`.

    The default of `body_budget_bytes` is less where `limit_bytes()`, the memory of this process, is small.
    Raises `SettingsError` for a value that can't be, and for a `FOURSTEP_…` variable that names no setting.
    """
    source = os.environ if environ is None else environ
    values: dict[str, Any] = dict(defaults or {})
    for variable, text in source.items():
        if not variable.startswith(PREFIX):
            continue
        name = variable.removeprefix(PREFIX).lower()
        if name not in FIELDS:
            near = did_you_mean(variable, map(str.upper, FIELDS), PREFIX) or "."
            raise SettingsError(f"{variable} names no setting{near} `fourstep serve --help` lists them")
        values[name] = parse(name, text)
    values.update({name: value for name, value in (flags or {}).items() if value is not None})
    if (flags or {}).get("database") and urlsplit(values["database"]).password is not None:
        raise SettingsError(
            "database: every user of this machine can read a password in a flag."
            " Hint: write it into ~/.pgpass, or give the URL in FOURSTEP_DATABASE"
        )
    if "body_budget_bytes" not in values and (limit := limit_bytes()) is not None:
        values["body_budget_bytes"] = affordable_budget(limit, values.get("max_body_bytes", Settings.max_body_bytes))
    settings = Settings(**values)
    try:
        data_dir = settings.data_dir.expanduser().absolute()
    except RuntimeError as error:
        raise SettingsError(f"data-dir: {settings.data_dir} is in no user's home; give the whole path") from error
    return dataclasses.replace(settings, data_dir=data_dir)


def did_you_mean(word: str, known: Iterable[str], prefix: str = "") -> str:
    """Return a question for the end of a complaint of `word`: the known one that is nearest; "" if none is near.

    `prefix`: what all of them begin with, which makes none more alike.
    """
    near = difflib.get_close_matches(word.removeprefix(prefix), [each.removeprefix(prefix) for each in known], n=1)
    return f". Did you mean {prefix}{near[0]}?" if near else ""


def affordable_budget(limit: int, max_body_bytes: int) -> int:
    """Return the `body_budget_bytes` for a process with this much memory: at most the default, at least one body.

    An eighth: up to three times as much is in use for them, and the engines need the most, in a container out of the
    same limit.
    """
    return max(max_body_bytes, min(Settings.body_budget_bytes, limit // 8))


def parse(name: str, text: str) -> Any:
    """Return the value of the type of setting `name` that `text` means; its bounds are checked by `Settings`.

    Python reads the numbers, not msgspec, which refuses `.5` and `10_000`. Raises `SettingsError`.
    """
    kind, word = _TYPES[name], text.strip().lower()
    if type(None) in typing.get_args(kind):
        if word in {"", "none"}:
            return None
        kind = typing.get_args(kind)[0]
    flag = name.replace("_", "-")
    if kind is Path:
        return Path(text)
    if kind is bool:
        if word not in _BOOLEANS:
            raise SettingsError(f"{flag}: {text!r} is neither yes nor no")
        return _BOOLEANS[word]
    if kind not in {int, float}:
        return text
    try:
        return kind(text)
    except ValueError as error:
        raise SettingsError(f"{flag}: {text!r} is no {'whole ' if kind is int else ''}number") from error


@functools.cache
def version() -> str:
    """Return the version of fourstep that is installed."""
    import importlib.metadata  # noqa: PLC0415 (a tenth of what `--help` takes)

    return importlib.metadata.version("fourstep")


def s3_endpoint() -> str:
    """Return the URL of the S3 that is not Amazon's, as S3's own tools find it; "" if there is none."""
    return os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL", "")


def child_environment(**changes: str) -> dict[str, str]:
    """Return this process's environment for a child process, with `changes`; the child's settings come by flags.

    No child needs the credentials of the object store.
    """
    return {name: text for name, text in os.environ.items() if not name.startswith(_KEPT)} | changes
