"""Opens the object store that `--files` names, and says at the start what is wrong with it.

A bucket's endpoint, region and credentials come from the variables of S3's own tools (`AWS_ACCESS_KEY_ID`, …). What is
wrong for good is refused; a store that can't be reached may be back in a moment, and the server starts without it.
"""

import functools
import os
import re
import secrets
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import obstore
from obstore.exceptions import BaseError, PermissionDeniedError, UnauthenticatedError
from obstore.store import LocalStore, ObjectStore, S3Store

from server.fal.errors import RequestError
from server.settings import SettingsError, StorageSettings
from server.storage.bucket.bucket import Bucket
from server.storage.bucket.expiry import Lock, unshared
from server.storage.bucket.objects import OS_ERROR, PATIENCE_S, Objects
from server.storage.disk import DiskStore
from server.storage.ledger import Quota, Size
from server.storage.location import Location
from server.storage.names import Names
from server.storage.usage import MakeUsage, in_memory

if TYPE_CHECKING:  # at run time it has none of them
    from obstore.store import ClientConfig, S3Config

_LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})
_KEYS = "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
# What the client says when no variable holds credentials, and the machine has no role.
_NO_KEYS = ("Missing AccessKeyId", "Missing SecretAccessKey", "/latest/api/token", "/latest/meta-data")
_DENIED = re.compile(r"status code: 40[13]")


def opened(where: Location, *, endpoint: str = "", patience_s: float = PATIENCE_S) -> Objects:
    """Return the objects at a location; `endpoint`: of another S3 than Amazon's. Raises `SettingsError`."""
    if where.folder:
        return Objects(_folder(where.folder), folder=where.folder, patience_s=patience_s)
    return Objects(_bucket(where, endpoint, patience_s), patience_s=patience_s)


def _folder(folder: Path) -> ObjectStore:
    if not folder.is_dir():
        hint = "Hint: mount it, or make the folder: it is never made here, since a mount may just be missing"
        raise SettingsError(f"files: there is no folder {folder}. {hint}")
    return LocalStore(folder, automatic_cleanup=True)


def _bucket(where: Location, endpoint: str, patience_s: float) -> ObjectStore:
    if urlsplit(endpoint).scheme not in {"", "http", "https"}:
        raise SettingsError(f"files: the endpoint {endpoint} is no URL. Hint: AWS_ENDPOINT_URL=https://host:port")
    client: ClientConfig = {"connect_timeout": timedelta(seconds=patience_s / 4), "timeout": timedelta(minutes=1)}
    if urlsplit(endpoint).hostname in _LOOPBACK:
        client["allow_http"] = True
    config: S3Config = {"endpoint": endpoint} if endpoint else {}
    try:
        return S3Store(
            where.bucket,
            prefix=where.prefix or None,
            config=config,
            client_options=client,
            retry_config={"max_retries": 2, "retry_timeout": timedelta(seconds=patience_s)},
        )
    except BaseError as error:
        refused = f"files: {str(error).partition(chr(10))[0]}. Hint: look at the variables AWS_…"
        raise _refusal(error, where, "store") or SettingsError(refused) from error


async def check(objects: Objects, where: Location) -> None:
    """Store, read, list and delete an object. Raises `SettingsError` for what this server may not do there.

    A store that does not answer is no error: it is said to be away.
    """
    store, path = objects.store, f"probe/{secrets.token_hex(8)}"
    steps: dict[str, Callable[[], Any]] = {
        "store": lambda: obstore.put_async(store, path, b"fourstep"),
        "read": lambda: obstore.get_async(store, path),
        "list": lambda: obstore.list(store, path).collect_async(),
        "delete": lambda: obstore.delete_async(store, path),
    }
    for what, step in steps.items():
        try:
            async with objects.within():
                try:
                    await step()
                except (BaseError, OSError) as error:
                    if refusal := _refusal(error, where, what):
                        raise refusal from error
                    raise
        except RequestError:  # away, which is logged
            return


def _refusal(error: Exception, where: Location, what: str) -> SettingsError | None:
    """Return the message for a fault that only the operator can remove; None for another."""
    text = str(error)
    if any(sign in text for sign in _NO_KEYS):
        return SettingsError(f"files: no credentials for {where.text}. Hint: set {_KEYS}")
    if where.folder and (number := OS_ERROR.search(text)):
        hint = "Hint: let this user write there, or mount it again"
        return SettingsError(f"files: {where.folder} can't be used ({os.strerror(int(number[1]))}). {hint}")
    if isinstance(error, FileNotFoundError):
        hint = "Hint: make it, or correct --files, AWS_ENDPOINT_URL or AWS_REGION"
        return SettingsError(f"files: there is no bucket {where.bucket}. {hint}")
    if isinstance(error, (PermissionDeniedError, UnauthenticatedError)) or _DENIED.search(text):
        hint = f"Hint: let whoever has {_KEYS} store, read, list and delete there"
        return SettingsError(f"files: no right to {what} in {where.text}. {hint}")
    if "scheme is not allowed" in text or "builder error" in text:
        hint = "Hint: https://, or AWS_ALLOW_HTTP=true in a network that no stranger listens to"
        return SettingsError(f"files: the endpoint of {where.text} is http, which shows everything. {hint}")
    return None


def bucket(
    where: Location,
    settings: StorageSettings,
    *,
    key_share: float,
    endpoint: str = "",
    lock: Lock = unshared,
    usage: MakeUsage = in_memory,
    clock: Callable[[], float] = time.time,
) -> Callable[[DiskStore, Names], Bucket]:
    """Return what makes the store at a location. `lock`, `usage`, `clock`: those that servers share, if any.

    Raises `SettingsError`.
    """
    objects = opened(where, endpoint=endpoint)

    def make(spool: DiskStore, names: Names) -> Bucket:
        quota = Size(settings.files_quota_bytes, settings.max_stored_files)
        return Bucket(
            objects,
            spool,
            usage(Quota(quota, key_share), names.account),
            ttl_s=settings.file_ttl,
            check=functools.partial(check, objects, where),
            lock=lock,
            clock=clock,
        )

    return make
