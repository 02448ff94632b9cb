"""The Hugging Face hub and its cache: the only door to huggingface_hub, and the only part of an engine that can fetch.

`cached` looks on disk and nowhere else. `Remote` asks the hub, and is made only where fetching was asked for (`pull`,
or `--model auto` beside an accelerator). Files go into the hub's own cache, in its documented layout, so that other
programs share them:

    models--owner--name/blobs/<sha256, or git's sha1 for small files>
    models--owner--name/snapshots/<commit>/<name> → ../../blobs/…
    models--owner--name/refs/main               the commit; written when all that was asked for is there

The transfer is ours because huggingface_hub (2.x) starts an interrupted file again from nothing. Everything is verified
against the hub's checksums. Telemetry is off; the hub sees a user agent and, if the user has logged in, the token.
"""

import hashlib
import os
import re
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, constants, hf_hub_url
from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, HTTPError, RepositoryNotFoundError
from huggingface_hub.utils import WeakFileLock, build_hf_headers, get_session, hf_raise_for_status

from pipelines.errors import CheckpointError, NotOnDiskError, UnreachableError
from pipelines.hub.source import Folder
from pipelines.log_lines import adopt

constants.HF_HUB_DISABLE_TELEMETRY = True
adopt("huggingface_hub")

OnBytes = Callable[[int], None]

_REVISION = "main"
_CHUNK = 1 << 20  # bytes hashed at a time
PAUSES = (0.0, 1.0, 2.0, 4.0, 8.0)  # seconds before each new try; one that brings new bytes starts the count again
_TIMEOUT = 20.0  # seconds without a byte


def cached(repo: str, *, hint: str) -> Folder:
    """The snapshot of `repo` on this machine's disk. Raises `NotOnDiskError` with `hint` if there is none."""
    storage = _storage(repo)
    ref = storage / "refs" / _REVISION
    root = storage / "snapshots" / (ref.read_text(encoding="utf-8").strip() if ref.is_file() else "-")
    if not root.is_dir():
        raise NotOnDiskError(f"The weights of {repo} are not on this machine.", hint)
    return Folder(root, label=repo, hint=hint)


def cache_folder() -> Path:
    """Where the hub's files lie (HF_HUB_CACHE, HF_HOME)."""
    return Path(constants.HF_HUB_CACHE)


class Remote:
    """A repository on the hub at its newest commit: what it holds, and the means to fetch it."""

    hint = "Use a complete repository in diffusers layout."

    def __init__(self, repo: str) -> None:
        """Ask the hub. Raises `UnreachableError`; `CheckpointError` if there is no such repository for this user."""
        self.label = repo
        info = _ask(repo)
        self._commit = _hex(info.sha)
        self._digests = {file.rfilename: _hex(file.lfs.sha256 if file.lfs else file.blob_id) for file in info.siblings}
        self.sizes: Mapping[str, int] = {file.rfilename: file.size for file in info.siblings}
        self._storage: Path = _storage(repo)

    def path(self, name: str) -> Path:
        """The file's place in the cache; it is fetched first if need be."""
        if not self._pointer(name).exists():
            self.fetch(name, lambda _: None)
        return self._pointer(name)

    def held(self, name: str) -> int:
        """Bytes of the file that are here: all (verified), those of an interrupted transfer, or none."""
        blob = self._blob(name)
        if _is_sound(blob, self.sizes[name], self._digests[name]):
            return self.sizes[name]
        return min(max(0, _size(_partial(blob))), self.sizes[name])

    def fetch(self, name: str, on_bytes: OnBytes, pauses: Sequence[float] = PAUSES) -> None:
        """Bring the file here, going on where an earlier try stopped; `on_bytes` gets the size of each piece.

        `pauses`: seconds before each try that brings nothing new; the last one is followed by giving up.

        Raises `UnreachableError` when the hub stays away, `CheckpointError` when what comes is damaged or does not fit.
        """
        blob, pointer = self._blob(name), self._pointer(name)
        blob.parent.mkdir(parents=True, exist_ok=True)
        lock = cache_folder() / ".locks" / self._storage.name / f"{blob.name}.lock"
        lock.parent.mkdir(parents=True, exist_ok=True)
        with WeakFileLock(lock):
            if not _is_sound(blob, self.sizes[name], self._digests[name]):
                self._transfer(name, _partial(blob), on_bytes, pauses)
                self._verify(name, _partial(blob))
                _partial(blob).replace(blob)
            _link(blob, pointer)

    def publish(self) -> None:
        """Make this commit the one that `cached` finds. To be called when everything that is needed is here."""
        ref = self._storage / "refs" / _REVISION
        ref.parent.mkdir(parents=True, exist_ok=True)
        draft = ref.with_name(f".{ref.name}.{os.getpid()}")
        draft.write_text(self._commit, encoding="utf-8")
        draft.replace(ref)

    def _blob(self, name: str) -> Path:
        return self._storage / "blobs" / self._digests[name]

    def _pointer(self, name: str) -> Path:
        return self._storage / "snapshots" / self._commit / name

    def _transfer(self, name: str, partial: Path, on_bytes: OnBytes, pauses: Sequence[float]) -> None:
        """Append to `partial` until it has the file's size."""
        tries, most = 0, _size(partial)
        while _size(partial) < self.sizes[name]:
            time.sleep(pauses[tries])
            fault: Exception | None = None
            try:
                self._append(name, partial, on_bytes)
            except HfHubHTTPError as error:
                if error.response.status_code < 500 and error.response.status_code != 429:
                    raise _refusal(self.label, error) from error
                fault = error
            except HTTPError as error:
                fault = error
            if _size(partial) > most:
                tries, most = 0, _size(partial)
                continue
            tries += 1
            if tries == len(pauses):
                raise _unreachable(fault) from fault

    def _append(self, name: str, partial: Path, on_bytes: OnBytes) -> None:
        held = max(0, _size(partial))
        # identity: a compressed answer could not be continued
        headers = {**build_hf_headers(), "Accept-Encoding": "identity", "Range": f"bytes={held}-"}
        url = hf_hub_url(self.label, name, revision=self._commit)
        with get_session().stream("GET", url, headers=headers, timeout=_TIMEOUT) as response:
            hf_raise_for_status(response)
            if response.status_code != 206 and held:
                on_bytes(-held)
            with partial.open("ab" if response.status_code == 206 else "wb") as file:
                for chunk in response.iter_bytes():  # as they come: a chunk half full would be lost with the line
                    file.write(chunk)
                    on_bytes(len(chunk))

    def _verify(self, name: str, path: Path) -> None:
        if not _is_sound(path, self.sizes[name], self._digests[name]):
            path.unlink()
            raise CheckpointError(
                f"{name} of {self.label} came damaged: its checksum is not the hub's.",
                "Pull again; if it happens again, something between here and the hub alters files.",
            )


def _storage(repo: str) -> Path:
    return cache_folder() / f"models--{repo.replace('/', '--')}"


def _hex(digest: object) -> str:
    """A digest as the hub gives it. It becomes a file's name, so nothing else will do."""
    if not re.fullmatch(r"[0-9a-f]{40}|[0-9a-f]{64}", str(digest)):
        raise CheckpointError(f"{constants.ENDPOINT} gives no checksums.", "Unset HF_ENDPOINT, or use a real mirror.")
    return str(digest)


def _partial(blob: Path) -> Path:
    return blob.with_name(f"{blob.name}.incomplete")


def _size(path: Path) -> int:
    """Bytes in the file; −1 if there is none."""
    return path.stat().st_size if path.exists() else -1


def _is_sound(path: Path, size: int, digest: str) -> bool:
    """Whether the file is there with this size and digest: sha256, or git's sha1 of a blob (40 digits)."""
    if not path.is_file() or path.stat().st_size != size:
        return False
    hasher = hashlib.sha256()
    if len(digest) == 40:
        hasher = hashlib.sha1(f"blob {size}\0".encode(), usedforsecurity=False)
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            hasher.update(chunk)
    return hasher.hexdigest() == digest


def _link(blob: Path, pointer: Path) -> None:
    """Put `blob` in its place in the snapshot, where symlinks are impossible by moving it there."""
    pointer.parent.mkdir(parents=True, exist_ok=True)
    draft = pointer.with_name(f".{pointer.name}.{os.getpid()}")
    try:
        draft.symlink_to(os.path.relpath(blob, pointer.parent))
    except OSError:
        shutil.move(blob, draft)
    draft.replace(pointer)


def _ask(repo: str) -> Any:
    if constants.is_offline_mode():
        raise UnreachableError(
            f"HF_HUB_OFFLINE is set, so {repo} can't be fetched.", "Unset it, or copy the hub's cache from elsewhere."
        )
    try:
        return HfApi().model_info(repo, revision=_REVISION, files_metadata=True, timeout=_TIMEOUT)
    except HfHubHTTPError as error:
        if error.response.status_code >= 500:
            raise _unreachable(error) from error
        raise _refusal(repo, error) from error
    except HTTPError as error:
        raise _unreachable(error) from error


def _refusal(repo: str, error: HfHubHTTPError) -> CheckpointError:
    if isinstance(error, GatedRepoError):
        return CheckpointError(
            f"{repo} is gated.", f"Accept its terms at {constants.ENDPOINT}/{repo}, then log in: `hf auth login`."
        )
    if isinstance(error, RepositoryNotFoundError):
        return CheckpointError(
            f"There is no public repository {repo} on {constants.ENDPOINT}.",
            "Check the spelling; for a private one log in: `hf auth login`.",
        )
    return CheckpointError(f"The hub refused {repo}: HTTP {error.response.status_code}.", "Try again later.")


def _unreachable(error: Exception | None) -> UnreachableError:
    """Without an error: it answers, and says less than the whole."""
    why = "its answers end early" if error is None else type(error).__name__
    return UnreachableError(
        f"The hub at {constants.ENDPOINT} can't be reached ({why}).",
        "Check the network and the proxy settings and start again: what has come is kept.",
    )
