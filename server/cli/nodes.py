"""`fourstep nodes`: the servers that share a database, and in what they differ. `fourstep migrate`: all that one server
has, to the database and files of several; or back."""

import asyncio
import dataclasses
import shutil
import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

import msgspec

from server.cli.output import in_data_dir, show, sole_server
from server.environment import s3_endpoint
from server.logs import WIPE
from server.nodes import forms
from server.settings import Settings, SettingsError

if TYPE_CHECKING:  # an extra
    from server.nodes.row import Node

_LINE_S = 10.0  # between two lines where no line can move
_WIDTH = 30
_COLUMNS = ("name", "address", "release", "model", "devices", "room", "busy", "sockets", "last heard of")


def nodes(settings: Settings, *, json: bool) -> int:
    """Show every server of the database."""
    if not settings.database:
        raise SettingsError("there is no database that servers share. Hint: set FOURSTEP_DATABASE, or --database")
    forms.check_extra()
    from server.nodes.cluster import found  # noqa: PLC0415 (an extra)

    there = asyncio.run(found(settings))
    if json:
        show(msgspec.json.format(msgspec.json.encode([dataclasses.asdict(node) for node in there]), indent=1).decode())
        return 0
    rows = [_COLUMNS, *map(_row, there)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        show("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    for line in differences(there):
        show(line)
    return 0


def differences(there: Sequence["Node"]) -> list[str]:
    """Return a line for each thing in which running servers differ and pictures may."""
    running = [node for node in there if not node.silent]
    lines = []
    for what in ("model", "release"):
        names: dict[str, list[str]] = {}
        for node in running:
            if value := getattr(node, what):
                names.setdefault(value, []).append(node.name)
        if len(names) > 1:
            said = "; ".join(f"{value} on {', '.join(who)}" for value, who in names.items())
            lines.append(f"They differ in {what}, so one seed may give two pictures: {said}")
    return lines


def _row(node: "Node") -> tuple[str, ...]:
    state = f"{node.silent_s:.0f} s ago" + (", silent" if node.silent else "")
    return (
        node.name,
        node.address,
        node.release,
        node.model or "-",
        ", ".join(node.devices) or "none",
        str(node.room),
        str(node.in_flight),
        str(node.sockets),
        "leaving" if node.draining else state,
    )


def migrate(settings: Settings, *, back: bool) -> int:
    """Move everything; 1 where afterwards not as much is there as there was."""
    if not settings.database:
        raise SettingsError("migrate: needs --database. Hint: set FOURSTEP_DATABASE, and FOURSTEP_FILES, as for serve")
    forms.check(settings)
    if not (back or settings.data_dir.is_dir()):
        raise SettingsError(f"data-dir: there is no {settings.data_dir}. Hint: name the server's --data-dir")
    from server.nodes.migration import move  # noqa: PLC0415 (an extra)

    bar = _Bar()
    try:
        with in_data_dir(settings, made=True), sole_server(settings):
            compared = asyncio.run(move(settings, s3_endpoint(), bar.tell, back=back))
    finally:
        bar.end()
    for what, source, moved in compared:
        show(f"{what:20} {source:>9} {'all there' if source == moved else f'{moved} there'}")
    if any(source != moved for _, source, moved in compared):
        sys.stderr.write(
            "fourstep: not all is there. Hint: run this again; counts differ, too, where servers have begun to work\n"
        )
        return 1
    return 0


class _Bar:
    """How far each step is, on stderr: at a terminal a line that moves, elsewhere a line now and then."""

    def __init__(self) -> None:
        self._moves = sys.stderr.isatty()
        self._said_at = 0.0
        self._what = ""

    def tell(self, what: str, done: int, total: int) -> None:
        """Say that so much of this step is done."""
        now = time.monotonic()
        ends = done >= total or what != self._what
        if not ends and now - self._said_at < (0.1 if self._moves else _LINE_S):
            return
        self._what, self._said_at = what, now
        part = done / total if total else 1.0
        bar = "#" * int(part * _WIDTH)
        line = f"{what:6} [{bar:{_WIDTH}}] {part:4.0%}  {done} of {total}"
        if self._moves:
            sys.stderr.write(WIPE + line[: shutil.get_terminal_size().columns - 1])
        else:
            sys.stderr.write(f"{line}\n")
        sys.stderr.flush()

    def end(self) -> None:
        """Leave the last line that moved."""
        if self._moves and self._what:
            sys.stderr.write("\n")
