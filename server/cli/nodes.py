"""`fourstep nodes`: the servers that share a database, and in what they differ."""

import asyncio
import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING

import msgspec

from server.cli.output import show
from server.nodes import forms
from server.settings import Settings, SettingsError

if TYPE_CHECKING:  # an extra
    from server.nodes.row import Node

_SILENT_S = 5.0
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
    running = [node for node in there if node.silent_s < _SILENT_S]
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
    state = f"{node.silent_s:.0f} s ago" + (", silent" if node.silent_s >= _SILENT_S else "")
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
