"""Unloads engines that have no work, so that other programs may have their devices, and wakes them for requests."""

import asyncio
from collections.abc import Sequence

from server.workers.dispatcher import Dispatcher
from server.workers.supervisor import State, Supervisor

_UP = (State.READY, State.STARTING)


class IdleUnload:
    """Unloads each engine that had no request for `after_s` seconds, and wakes as many as waiting requests need.

    `after_s` 0: none is ever unloaded. Call `look` after every dispatch.
    """

    def __init__(self, supervisors: Sequence[Supervisor], dispatcher: Dispatcher, after_s: float) -> None:
        self._supervisors = supervisors
        self._dispatcher = dispatcher
        self._after_s = after_s
        self._timers: dict[Supervisor, asyncio.TimerHandle] = {}

    def look(self) -> None:
        """Time the engines without a request, and wake others if those that are up have no room for what waits."""
        if not self._after_s:
            return
        for supervisor in self._supervisors:
            idle = supervisor.state is State.READY and not self._dispatcher.count(supervisor)
            if not idle and supervisor in self._timers:
                self._timers.pop(supervisor).cancel()
            elif idle and supervisor not in self._timers:
                loop = asyncio.get_running_loop()
                self._timers[supervisor] = loop.call_later(self._after_s, supervisor.unload)
        while sleeping := self._needed():
            sleeping[0].wake()

    def _needed(self) -> list[Supervisor]:
        """Return the unloaded engines if requests wait that those which are up or starting have no room for.

        A large picture waits for a decoder, not for a device, once an engine is up. An engine that has ended since it
        was last ready is not counted on.
        """
        unloaded = [supervisor for supervisor in self._supervisors if supervisor.state is State.UNLOADED]
        if not unloaded:
            return []
        up = any(supervisor.state in _UP for supervisor in self._supervisors)
        waiting = sum(not (pending.large and up) for pending in self._dispatcher.waiting)
        coming = sum(each.capacity for each in self._supervisors if each.state is State.STARTING and not each.failing)
        return unloaded if waiting > coming else []
