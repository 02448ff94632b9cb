"""Fetches what a configuration needs and the disk lacks: says how much, shows how far it is, verifies all of it."""

import shutil
import sys
import time
from collections.abc import Callable, Sequence
from typing import Protocol

from tqdm import tqdm
from typing_extensions import override

from pipelines.errors import CheckpointError
from pipelines.hub import client, manifest
from pipelines.messages import EngineConfig

_RESERVE = 256 * 1024**2  # bytes of disk to leave free


class Report(Protocol):
    """Who is told how a transfer goes."""

    def begin(self, total: int, held: int, files: int) -> None:
        """It takes `total` bytes in `files` files, `held` of the bytes are here already."""

    def advance(self, count: int) -> None:
        """`count` more bytes are here (fewer, if negative: a file had to start again)."""

    def end(self) -> None:
        """Everything is here and verified."""


def fetch(
    config: EngineConfig,
    *,
    half: bool,
    report: Report,
    reserve: int = _RESERVE,
    pauses: Sequence[float] = client.PAUSES,
) -> None:
    """Bring everything that `config` needs into the hub's cache; what is there is verified and kept.

    `half`: 16-bit files where there are any. Raises `UnreachableError` or `CheckpointError`; what has come stays.
    `reserve`: bytes of disk to leave free. `pauses`: seconds before each new try of a file.
    """
    remotes: dict[str, client.Remote] = {}

    def open_repo(repo: str) -> client.Remote:
        if repo not in remotes:
            remotes[repo] = client.Remote(repo)
        return remotes[repo]

    plan = manifest.compose(config, half=half, open_repo=open_repo)
    wanted = [
        (files.source, name)
        for files in plan.files()
        if isinstance(files.source, client.Remote)
        for name in files.names
    ]
    wanted = list(dict.fromkeys(wanted))
    total = sum(remote.sizes[name] for remote, name in wanted)
    held = sum(remote.held(name) for remote, name in wanted)
    _check_disk(total - held, reserve)
    report.begin(total, held, len(wanted))
    for remote, name in wanted:
        remote.fetch(name, report.advance, pauses)
    for remote in remotes.values():
        remote.publish()
    report.end()


def _check_disk(needed: int, reserve: int) -> None:
    folder = client.cache_folder()
    folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder).free
    if needed and free < needed + reserve:
        raise CheckpointError(
            f"{gigabytes(needed)} are to be fetched, and {folder} has only {gigabytes(free)} free.",
            "Make room, or point HF_HOME at a larger disk.",
        )


def gigabytes(count: float) -> str:
    """Return `count` bytes in human-readable form."""
    return f"{count / 1e9:.2f} GB" if count >= 1e8 else f"{count / 1e6:.1f} MB"


class BarReport(Report):
    """Progress bar for a terminal (or reading a log: then a line every ten seconds)."""

    @override
    def begin(self, total: int, held: int, files: int) -> None:
        if held == total:
            say = f"All {files} files ({gigabytes(total)}) are here and sound."
        else:
            say = f"{gigabytes(total - held)} to fetch into {client.cache_folder()}"
            say += f" ({gigabytes(held)} of {gigabytes(total)} are here already)." if held else f", {files} files."
        tqdm.write(say, file=sys.stderr)
        self._bar = tqdm(
            total=total,
            initial=held,
            unit="B",
            unit_scale=True,
            disable=held == total,
            mininterval=0.2 if sys.stderr.isatty() else 10.0,
        )

    @override
    def advance(self, count: int) -> None:
        self._bar.update(count)

    @override
    def end(self) -> None:
        self._bar.close()


class ProgressReport(Report):
    """For an engine that fetches while it starts: fractions up to a tenth, because loading comes after."""

    def __init__(self, progress: Callable[[float, str], None]) -> None:
        self._progress = progress

    @override
    def begin(self, total: int, held: int, files: int) -> None:
        self._total, self._done, self._new = total, held, 0
        self._begun = self._told = time.monotonic()
        self._progress(0.0, f"fetching {gigabytes(total - held)} in {files} files")

    @override
    def advance(self, count: int) -> None:
        self._done += count
        self._new += count
        now = time.monotonic()
        if now - self._told < 1.0:
            return
        self._told = now
        rate = max(self._new / (now - self._begun), 1.0)
        left = (self._total - self._done) / rate
        self._progress(
            0.1 * self._done / self._total,
            f"fetched {gigabytes(self._done)} of {gigabytes(self._total)}, {gigabytes(rate)}/s, {left:.0f} s left",
        )

    @override
    def end(self) -> None:
        self._progress(0.1, "fetched")
