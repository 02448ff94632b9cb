"""What an attack is: clients with a key of their own, or none, beside a good client whose calls are timed."""

import dataclasses
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Literal

Good = Literal["inline", "stored", "named"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Target:
    """The attacked server, on loopback. `key`: the attacker's, `name:secret`."""

    port: int
    key: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Attack:
    """One attack.

    `run(target)` attacks until it is cancelled. It runs in a process of its own, and prints one line once the attack
    is under way; a figure which it wants in the report is printed as a line of JSON when it is cancelled.
    `flags`, `changes`: of the server, beside the harness's own, and differences for `tests.chaos.modified_server`.
    `control_flags`, `control_changes`: the same of the server without the protection; its flags are added to `flags`.
    `good`: how the good client gives its picture: as a data URI, as a stored file, or by a URL with a host name.
    `harm`: a figure of the report that is ten times as large on the server without the protection, if there is one.
    """

    name: str
    run: Callable[[Target], Awaitable[None]]
    flags: tuple[str, ...] = ()
    changes: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    control_flags: tuple[str, ...] = ()
    control_changes: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    good: Good = "inline"
    harm: str = ""
