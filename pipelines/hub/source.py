"""A source of files by name: a folder on this machine, or a repository on the hub (`pipelines.hub.client`)."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

from pipelines.errors import CheckpointError


class FileSource(Protocol):
    """What a manifest is made from. `label` names it in messages; `hint` says what to do when something is missing."""

    @property
    def label(self) -> str: ...

    @property
    def hint(self) -> str: ...

    @property
    def sizes(self) -> Mapping[str, int]:
        """Bytes of every file, by its name relative to the source, with / as separator."""
        ...

    def path(self, name: str) -> Path:
        """The file itself, on this machine's disk."""
        ...


@dataclass(frozen=True)
class Folder:
    """A folder on disk, two levels deep, which is as deep as the diffusers layout goes."""

    root: Path
    label: str
    hint: str = "Give the whole folder, in diffusers layout."

    @cached_property
    def sizes(self) -> dict[str, int]:
        """Bytes of each file by its relative name. Dangling links, left by an interrupted download, do not count."""
        found = [path for pattern in ("*", "*/*") for path in self.root.glob(pattern)]
        return {path.relative_to(self.root).as_posix(): path.stat().st_size for path in found if path.is_file()}

    def path(self, name: str) -> Path:
        """Return where the file lies."""
        return self.root / name


def read_json(path: Path) -> dict[str, Any]:
    """Return the JSON object in `path`. Raises `CheckpointError` if there is none."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} can't be read: {error}.", "Fetch the checkpoint again, whole.") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} holds no JSON object.", "Fetch the checkpoint again, whole.")
    return content
