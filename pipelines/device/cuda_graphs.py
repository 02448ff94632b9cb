"""CUDA graphs of a model's functions: a call of a captured shape is one launch.

A UNet call of SD1.5 is some 600 kernels, which Python and the driver take longer to launch than an H100 takes to run
them. A CUDA graph launches them at once, but for one shape only. So what takes and returns tensors
[rows, …] is captured for a few numbers of rows and the most frequent sizes (`pipelines.device.captures`).

    learning    calls made meanwhile are captured, within a budget
    replay      copy the inputs in, run the graph, copy the outputs out
    evict       destroy graphs for their memory

A call takes the smallest graph that holds it and fills only its own rows; the outputs are cut back. Rows that it does
not fill hold old values. No picture reads another's rows, so they cost time and change no result. A call of more rows
than were captured runs as it is or, if its function may be `split`, as several replays.

Graphs of one stream (`pipelines.device.streams`) never run at once. So they share the tensors which their inputs are
copied to, and one memory pool, as large as the largest of them needs. Torch frees a pool only as a whole, when its last
graph is gone: that is why a pool that has grown over its budget is given up whole. Graphs of different streams do run
at once and share nothing.
"""

from __future__ import annotations

import contextlib
import logging
import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

import torch

from pipelines.errors import CaptureFailedError
from pipelines.model.calls import gathered

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Sequence

    from torch import Tensor

    from pipelines.model.calls import Rows

    Tensors: TypeAlias = tuple[Tensor, ...]
    Run: TypeAlias = Callable[..., Any]

Size: TypeAlias = tuple[int, int]

logger = logging.getLogger(__name__)

# A capture finds the blocks of its pool less well than the run that measured it found its own: a replay of the
# allocator's rules on a trace of the full-size networks, largest shape first, took 2 % more.
FRAGMENTED = 1.05


class Graph(Protocol):
    """A function captured for one shape. Bytes of the device: `reserved` its pool grew by, `beside` it took else."""

    reserved: int
    beside: int

    def replay(self, inputs: Sequence[Rows]) -> Any:
        """Return the outputs for inputs of at most the captured number of rows. The caller may keep them."""

    def destroy(self) -> None:
        """Wait for the last replay and give up what the graph holds. It can't be replayed afterwards."""


class Capture(Protocol):
    """A device's way to capture functions."""

    def pool(self) -> Any:
        """Return a memory pool for graphs which never run at once."""

    def warm_up(self, run: Run, inputs: Tensors) -> int:
        """Run it, so that all it needs is loaded and chosen, and return the bytes that it takes in a pool of its own.

        Raises `torch.OutOfMemoryError`.
        """

    def capture(self, run: Run, inputs: Tensors, pool: Any) -> Graph:
        """Capture `run`, warmed up, which will read `inputs` at every replay."""

    def free(self) -> float:
        """Return the bytes that no pool and no tensor holds."""


@dataclass(eq=False)
class Pool:
    """Memory of one stream's graphs. Bytes: `reserved` in the device's pool `handle`, `beside` it."""

    handle: Any
    reserved: int = 0
    beside: int = 0
    inputs: dict[tuple[str, int], Tensor] = field(default_factory=dict)  # by kind and number of input

    @property
    def nbytes(self) -> int:
        """All of it, with the tensors which inputs are copied to."""
        return self.reserved + self.beside + sum(tensor.nbytes for tensor in self.inputs.values())

    def hold(self, inputs: Tensors) -> Tensors:
        """Return tensors like these to capture with, shared with other graphs as far as they are large enough."""
        self.inputs |= {kind: given.clone() for kind, given in self.lacks(inputs).items()}
        return tuple(self.inputs[kind][: len(given)] for kind, given in _by_kind(inputs).items())

    def lacks(self, inputs: Tensors) -> dict[tuple[str, int], Tensor]:
        """Return those of the inputs for which no tensor is held that is large enough."""
        kinds = _by_kind(inputs)
        return {kind: given for kind, given in kinds.items() if len(self.inputs.get(kind, ())) < len(given)}


@dataclass(eq=False)
class Learning:
    """What is being captured: functions of these `names` (all if there are none), into pools of up to `budget` bytes.

    `overgrown`: bytes of a pool that came out larger, and was given up; 0: none did.
    """

    names: Collection[str]
    budget: float
    overgrown: int = 0


class Graphs:
    """All graphs on a device, in pools of at most `budget` bytes each. Used from the device's thread."""

    def __init__(self, device: Capture, budget: float = math.inf) -> None:
        self._device = device
        self._budget = budget
        self._learning: Learning | None = None
        self._pools: dict[str, Pool] = {}  # by stream
        self._streams: dict[str, str] = {}  # by function
        self._held: dict[tuple[str, Size], dict[int, Graph]] = {}  # by rows

    def wrap(
        self,
        name: str,
        run: Run,
        size: Callable[[Rows], Size],
        *,
        stream: str = "",
        split: bool = False,
    ) -> Run:
        """Return `run` with graphs: a function of tensors [rows, …] or lists of rows; it returns a tensor or several.

        `size`: first input → size of the pictures. `stream`: the stream in which it is called; graphs of one stream
        share memory. `split`: a call of more rows than were captured is several replays.
        """
        self._streams[name] = stream

        def call(*inputs: Rows) -> Any:
            rows, wanted = len(inputs[0]), size(inputs[0])
            if self._learning and rows not in self._held.get((name, wanted), {}):
                self._learn(self._learning, name, wanted, run, tuple(map(gathered, inputs)))
            parts = self._parts(name, rows, wanted, split=split)
            if not parts:
                return run(*inputs)
            outputs, start = [], 0
            for graph, count in parts:
                taken = tuple(given[start : start + count] for given in inputs)
                outputs.append(cut(graph.replay(taken), count))
                start += count
            return join(outputs)

        return call

    @contextlib.contextmanager
    def learning(self, *names: str, budget: float | None = None) -> Iterator[Learning]:
        """Capture every new shape within the context, of these functions or of all.

        Call the largest first: each capture after it takes the same memory again. A pool that outgrows `budget` is
        given up, and nothing more is captured.
        """
        self._learning = Learning(names, self._budget if budget is None else budget)
        try:
            yield self._learning
        finally:
            self._learning = None

    @property
    def nbytes(self) -> int:
        """Device memory of all graphs."""
        return sum(pool.nbytes for pool in self._pools.values())

    def held(self, stream: str) -> int:
        """Return the device memory of a stream's graphs."""
        return self._pools[stream].nbytes if stream in self._pools else 0

    def captured(self, name: str, size: Size) -> int:
        """Return the most rows of pictures of this height and width for which a function has a graph; 0 for none."""
        return max(self._held.get((name, size), {}), default=0)

    def evict(self, *streams: str) -> bool:
        """Destroy all graphs of these streams, or of all. Return False if there were none."""
        dropped = [self._drop(stream) for stream in streams or tuple(self._pools)]
        return any(dropped)

    def _parts(self, name: str, rows: int, size: Size, *, split: bool) -> Sequence[tuple[Graph, int]]:
        """Return the graphs whose replays make up a call, with the rows of each; none: it has no graph."""
        held, parts = self._held.get((name, size), {}), []
        most = max(held, default=0)
        while split and most and rows > most:
            parts.append((held[most], most))
            rows -= most
        large_enough = [captured for captured in held if captured >= rows]
        return [*parts, (held[min(large_enough)], rows)] if large_enough else []

    def _learn(self, learning: Learning, name: str, size: Size, run: Run, inputs: Tensors) -> None:
        """Capture a shape. A shape which has no room runs uncaptured. Raises `CaptureFailedError`."""
        if learning.overgrown or (learning.names and name not in learning.names):
            return
        what = f"{name} for {len(inputs[0])} rows of {size[0]}×{size[1]}"
        stream = self._streams[name]
        pool = self._pools.setdefault(stream, Pool(None))
        try:
            # Here, because an allocation that fails within a capture leaves torch's allocator unusable.
            growth = max(0.0, FRAGMENTED * self._device.warm_up(run, inputs) - pool.reserved)
            growth += sum(given.nbytes for given in pool.lacks(inputs).values())
            if growth > min(learning.budget - pool.nbytes, self._device.free()):
                logger.warning("no room to capture %s: %.0f MB", what, growth / 1e6)
                return
        except torch.OutOfMemoryError:
            logger.warning("no room to capture %s", what)
            return
        try:
            pool.handle = pool.handle or self._device.pool()
            graph = self._device.capture(run, pool.hold(inputs), pool.handle)
        except RuntimeError as error:
            raise CaptureFailedError(what, error) from error
        pool.reserved += graph.reserved
        pool.beside += graph.beside
        self._held.setdefault((name, size), {})[len(inputs[0])] = graph
        if pool.nbytes > learning.budget:
            logger.warning("graphs took %.0f of %.0f MB with %s", pool.nbytes / 1e6, learning.budget / 1e6, what)
            learning.overgrown = pool.nbytes
            self._drop(stream)

    def _drop(self, stream: str) -> bool:
        """Destroy a stream's graphs, and with the last of them their pool. Return False if there were none."""
        gone = [key for key in self._held if self._streams[key[0]] == stream]
        for key in gone:
            for graph in self._held.pop(key).values():
                graph.destroy()
        self._pools.pop(stream, None)
        return bool(gone)


def _by_kind(inputs: Tensors) -> dict[tuple[str, int], Tensor]:
    """Return inputs by what tensors must have in common to be used for them."""
    return {(f"{tuple(given.shape[1:])} {given.dtype}", number): given for number, given in enumerate(inputs)}


def cut(outputs: Any, rows: int) -> Any:
    """Return the first rows of a tensor, or of each of a tuple; None stays."""
    if isinstance(outputs, tuple):
        return tuple(cut(output, rows) for output in outputs)
    return None if outputs is None else outputs[:rows]


def fill(held: Tensor, given: Rows) -> None:
    """Copy rows into a tensor: in one operation, also from a list of them."""
    if isinstance(given, torch.Tensor):
        held.copy_(given, non_blocking=True)
    else:
        torch.stack(list(given), out=held)


def join(outputs: Sequence[Any]) -> Any:
    """Return the rows of several outputs as one; None stays."""
    first, *others = outputs
    if not others or first is None:
        return first
    if isinstance(first, tuple):
        return tuple(map(join, zip(*outputs, strict=True)))
    return torch.cat(list(outputs))
