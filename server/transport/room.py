"""Room among the connections: how many there may be, and which one makes way for a new one.

    state of a connection                        its deadline                              makes way
    TLS handshake                                `header_timeout`                          no: it is not counted yet
    open, or sending headers; no key so far      `header_timeout`, `keep_alive`            second
    open, or sending headers; has shown a key    `header_timeout`, `keep_alive`            third
    sending a body                               `min_body_rate`, `body_timeout` behind    no
    waiting for the app                          the app's                                 no
    reading an answer that is being made         `min_send_rate`, `send_timeout` behind    no
    reading the rest of a whole answer           `min_send_rate`, `send_timeout` behind    last
    answered, still sending                      `linger_s`                                first
    closed here, TLS shutdown                    five seconds                              first
    closed by the peer's half                    as closed here                            first
    open websocket                               pings, the app's                          no
    websocket, Close unanswered                  ten seconds                               first

Among those of one rank, the one makes way that has been in it for longest. The limit is on those that make no way:
where they have all places, a new request is refused. Beyond it there is room for newcomers, which would else throw one
another out before they can ask, and for probes, so that a load balancer does not take a busy server for a dead one.
"""

import enum
from typing import Protocol


class Rank(enum.IntEnum):
    """In which order connections make way."""

    ENDING = 0
    STRANGER = 1
    KNOWN = 2
    READING = 3


class Connection(Protocol):
    """What takes a place."""

    def evict(self) -> None:
        """Close at once, whatever is unsent."""


class Room:
    """The places. Every call takes constant time.

    `for_probes`, `for_newcomers`: places beyond the limit; of the latter there is one for sixteen, unless told
    otherwise. `linger_s`: seconds for which is read and dropped what a client sends on that has been answered.
    `leaving`: whether the server is about to close, so that each answer is its connection's last.
    """

    def __init__(
        self, places: int, *, for_probes: int = 16, for_newcomers: int | None = None, linger_s: float = 1.0
    ) -> None:
        self.linger_s = linger_s
        self.leaving = False
        self._places = places
        self._for_probes = for_probes
        self._for_newcomers = newcomers(places) if for_newcomers is None else for_newcomers
        self._ranks: tuple[dict[Connection, None], ...] = tuple({} for _ in Rank)  # ordered: the longest first
        self._rank_of: dict[Connection, Rank | None] = {}

    def __len__(self) -> int:
        """Return the number of connections."""
        return len(self._rank_of)

    def enter(self, connection: Connection) -> None:
        """Take a place, as one that is busy. If there are too many connections, another one makes way."""
        self._rank_of[connection] = None
        if len(self) > self._places + self._for_newcomers:
            self._evict_one()

    def leave(self, connection: Connection) -> None:
        """Give the place back; one that has left may leave again."""
        self.busy(connection)
        self._rank_of.pop(connection, None)

    def busy(self, connection: Connection) -> None:
        """Note that this connection makes no way."""
        rank = self._rank_of.get(connection)
        if rank is not None:
            del self._ranks[rank][connection]
            self._rank_of[connection] = None

    def idle(self, connection: Connection, rank: Rank) -> None:
        """Note that this connection makes way, from now on, unless it is noted in this rank already or has left."""
        if connection in self._rank_of and self._rank_of[connection] is not rank:
            self.busy(connection)
            self._rank_of[connection] = rank
            self._ranks[rank][connection] = None

    def admits(self, *, probe: bool = False) -> bool:
        """Return whether a request on an idle connection may be served."""
        busy = len(self) - sum(map(len, self._ranks))
        return busy < self._places + (self._for_probes if probe else 0)

    def _evict_one(self) -> None:
        for rank in self._ranks:
            for connection in rank:
                self.leave(connection)
                connection.evict()
                return


def newcomers(places: int) -> int:
    """Return how many connections there may be beyond these places, of which no request has come yet."""
    return places // 16
