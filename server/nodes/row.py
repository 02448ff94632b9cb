"""What servers on one database know of each other: each has a row, renewed every second, and reads those of all."""

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec

from server.jobs.postgres.connection import Statement
from server.jobs.postgres.pool import Pool

SILENT_S = 5.0  # without a sign of life for longer a server does not count
GONE_S = 86_400.0  # a row of a server that has been silent for longer is deleted

# It does not wait for the disk: a database that dies has forgotten nothing of it that the next second does not bring.
_BEAT = Statement(
    "node",
    """
WITH begun AS MATERIALIZED (SELECT set_config('synchronous_commit', 'off', true)), mine AS (
    INSERT INTO nodes (id, name, address, release, devices, model, room, in_flight, sockets, draining, counts,
        heartbeat)
    SELECT $1, $2, $3, $4, $5::text::jsonb, $6, $7, $8, $9, $10, $11::text::jsonb, extract(epoch FROM now()) FROM begun
    ON CONFLICT (id) DO UPDATE SET devices = excluded.devices, model = excluded.model, room = excluded.room,
        in_flight = excluded.in_flight, sockets = excluded.sockets, draining = excluded.draining,
        counts = excluded.counts, heartbeat = excluded.heartbeat
), gone AS (DELETE FROM nodes WHERE heartbeat < extract(epoch FROM now()) - $12::float8)
SELECT id, name, address, release, devices::text, model, room, in_flight, sockets, draining, counts::text,
    (extract(epoch FROM now()) - heartbeat)::float8 AS silent_s, extract(epoch FROM now())::float8 AS now,
    (SELECT sum(version) FROM documents)::bigint AS documents
FROM nodes
""",
)
_ALL = Statement(
    "nodes",
    """
SELECT id, name, address, release, devices::text, model, room, in_flight, sockets, draining, counts::text,
    (extract(epoch FROM now()) - heartbeat)::float8 AS silent_s, extract(epoch FROM now())::float8 AS now
FROM nodes ORDER BY name, id
""",
)
_LEAVE = Statement("node_left", "DELETE FROM nodes WHERE id = $1")


_EVERYWHERE = {"0.0.0.0", "::"}  # noqa: S104


def address(host: str, port: int, name: str) -> str:
    """Return where a server is reached that listens on `host`: by its machine's name if that is everywhere."""
    reached = name if host in _EVERYWHERE else f"[{host}]" if ":" in host else host
    return f"{reached}:{port}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Node:
    """One server. `room`: jobs that its engines take at once; `counts`: calls and sockets in flight, by limited key.

    `silent_s`: seconds since its last heartbeat.
    """

    id: str
    name: str
    address: str
    release: str
    devices: Sequence[str] = ()
    model: str = ""
    room: int = 0
    in_flight: int = 0
    sockets: int = 0
    draining: bool = False
    counts: Mapping[str, Mapping[str, int]] = dataclasses.field(default_factory=dict)
    silent_s: float = 0.0

    @property
    def silent(self) -> bool:
        """Whether it has shown no sign of life of late."""
        return self.silent_s >= SILENT_S


class Nodes:
    """This server's row, and what it last read of the others."""

    def __init__(self, pool: Pool, describe: Callable[[], Node]) -> None:
        self._pool = pool
        self._describe = describe
        self.others: Sequence[Node] = ()
        self.documents: int | None = None  # the sum of their versions, if known
        self.offset_s = 0.0  # by how much this machine's clock is ahead of the database's

    async def beat(self) -> None:
        """Renew the row, and read those of the others. Raises `DatabaseError`."""
        me = self._describe()
        asked = time.time()
        rows = await self._pool.read(
            self._pool.fetch(
                _BEAT,
                me.id,
                me.name,
                me.address,
                me.release,
                _json(me.devices),
                me.model,
                me.room,
                me.in_flight,
                me.sockets,
                me.draining,
                _json(me.counts),
                GONE_S,
            )
        )
        self.others = [node for node in map(_node, rows) if node.id != me.id]
        if rows:
            self.offset_s = asked - rows[0]["now"]
            self.documents = rows[0]["documents"]

    async def leave(self) -> None:
        """Delete the row: the server has ended as it should."""
        await self._pool.write(self._pool.fetch(_LEAVE, self._describe().id))


async def all_nodes(pool: Pool) -> list[Node]:
    """Return every server that has a row, by name. Raises `DatabaseError`."""
    return [_node(row) for row in await pool.read(pool.fetch(_ALL))]


def _node(row: Any) -> Node:
    fields = {field.name: row[field.name] for field in dataclasses.fields(Node)}
    return Node(**fields | {name: msgspec.json.decode(row[name]) for name in ("devices", "counts")})


def _json(value: object) -> str:
    return msgspec.json.encode(value).decode()
