"""How often the queue does what."""

import dataclasses


@dataclasses.dataclass(frozen=True, kw_only=True)
class QueueTimes:
    """Intervals and waits of a queue and its runner, in seconds."""

    ask: float = 0.1  # how late work that nothing announces may be looked for
    ask_in_lull: float = 0.1  # the same once no job has been found for `lull`
    lull: float = 10.0
    left: float = 0.0  # a job is left to other servers for so long, if there are any, while engines are busy with calls
    tick: float = 0.1  # how late a start timeout, a changed queue position or a freed engine may be noticed
    heartbeat: float = 15.0  # between renewals of the leases
    quota: float = 1.0  # between measurements of the database
    expire: float = 30.0  # between searches for results that are too old
    disk_retry: float = 1.0  # a result that can't be written is kept and tried again: a full disk loses nothing


SHIPPED = QueueTimes()
