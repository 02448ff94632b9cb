"""How often the queue does what, and for how long a claim holds."""

import dataclasses


@dataclasses.dataclass(frozen=True, kw_only=True)
class QueueTimes:
    """Intervals and waits of a queue and its runner, in seconds."""

    tick: float = 0.1  # how late a start timeout, a changed queue position or a freed engine may be noticed
    far: float = 1.0  # how late a changed position may be told that is not near the front; in ticks
    lease: float = 60.0  # a worker that is silent for longer has lost its jobs
    heartbeat: float = 15.0  # between renewals of the leases: four to a lease
    quota: float = 1.0  # between measurements of the database
    expire: float = 30.0  # between searches for results that are too old
    disk_retry: float = 1.0  # a result that can't be written is kept and tried again: a full disk loses nothing


SHIPPED = QueueTimes()
