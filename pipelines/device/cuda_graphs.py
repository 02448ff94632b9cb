"""CUDA graphs of a model's functions: a call of a captured shape is one launch.

A UNet call of SD1.5 is some 600 kernels, which Python and the driver take longer to launch than an H100 takes to run
them. A CUDA graph launches them at once, but for one shape only. So the model's functions, which take and return
tensors [rows, …], are captured for a few numbers of rows and the most frequent sizes. A call with fewer rows than were
captured fills only its own, and its outputs are cut back. All other shapes run uncaptured, slower.

    learning    calls made meanwhile are captured, as at warm-up
    replay      copy the inputs in, run the graph, copy the outputs out
    evict       destroy all graphs, when one picture alone has no room beside them

Rows that a call does not fill hold old values. No row reads another, so they cost time and change no result.

Graphs of one stream (`pipelines.device.streams`) never run at once, so they share one memory pool, as large as the
largest of them needs. Graphs of different streams do run at once and share nothing.
"""

from __future__ import annotations

import contextlib
import logging
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

import torch
from typing_extensions import override

from pipelines.errors import CaptureFailedError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from torch import Tensor

    Tensors: TypeAlias = tuple[Tensor, ...]
    Run: TypeAlias = Callable[..., Any]

Size: TypeAlias = tuple[int, int]

logger = logging.getLogger(__name__)

# Runs before a capture: the first one loads kernels and lets cuDNN choose, which a capture must not contain.
WARM_UP_RUNS = 2


class Graph(Protocol):
    """A function captured for one shape. `nbytes`: device memory that the capture took."""

    nbytes: int

    def replay(self, inputs: Tensors) -> Any:
        """Return the outputs for inputs of at most the captured number of rows. The caller may keep them."""

    def destroy(self) -> None:
        """Free all memory. The graph can't be replayed afterwards."""


class Capture(Protocol):
    """A device's way to capture functions."""

    def pool(self) -> Any:
        """Return a memory pool for graphs which never run at once."""

    def capture(self, run: Run, inputs: Tensors, pool: Any) -> Graph:
        """Capture `run` for inputs of this shape. Raises `torch.OutOfMemoryError` if there is no room."""


class Graphs:
    """All graphs on a device, within `budget` bytes. Used from the device's thread."""

    def __init__(self, device: Capture, budget: int) -> None:
        self._device = device
        self._budget = budget
        self._learning = False
        self._pools: dict[str, Any] = {}
        self._held: dict[tuple[str, Size], dict[int, Graph]] = {}  # by rows

    def wrap(self, name: str, run: Run, size: Callable[[Tensor], Size], *, stream: str = "") -> Run:
        """Return `run` with graphs: a function of tensors [rows, …] which returns a tensor or a tuple of them.

        `size`: first input → size of the pictures. `stream`: the stream in which it is called; graphs of one stream
        share memory.
        """

        def call(*inputs: Tensor) -> Any:
            rows, wanted = len(inputs[0]), size(inputs[0])
            if self._learning and rows not in self._held.get((name, wanted), {}):
                self._learn(name, wanted, run, inputs, stream)
            graph = self._graph(name, rows, wanted)
            return run(*inputs) if graph is None else cut(graph.replay(inputs), rows)

        return call

    @contextlib.contextmanager
    def learning(self) -> Iterator[None]:
        """Capture every new shape within the context. Call the most frequent first: none is evicted for another."""
        self._learning = True
        try:
            yield
        finally:
            self._learning = False

    @property
    def nbytes(self) -> int:
        """Device memory of all graphs."""
        return sum(graph.nbytes for graphs in self._held.values() for graph in graphs.values())

    def evict(self) -> bool:
        """Destroy all graphs; they share memory, so fewer would free nothing. Return False if there were none."""
        graphs = [graph for held in self._held.values() for graph in held.values()]
        for graph in graphs:
            graph.destroy()
        self._held.clear()
        self._pools.clear()
        return bool(graphs)

    def _graph(self, name: str, rows: int, size: Size) -> Graph | None:
        """Return the smallest graph with at least `rows` rows."""
        held = self._held.get((name, size), {})
        large_enough = [captured for captured in held if captured >= rows]
        return held[min(large_enough)] if large_enough else None

    def _learn(self, name: str, size: Size, run: Run, inputs: Tensors, stream: str) -> None:
        """Capture a shape. A shape which has no room runs uncaptured. Raises `CaptureFailedError`."""
        what = f"{name} for {len(inputs[0])} rows of {size[0]}×{size[1]}"
        if stream not in self._pools:
            self._pools[stream] = self._device.pool()
        try:
            graph = self._device.capture(run, inputs, self._pools[stream])
        except torch.OutOfMemoryError:
            logger.warning("no room to capture %s", what)
            return
        except RuntimeError as error:
            raise CaptureFailedError(what, error) from error
        if self.nbytes + graph.nbytes > self._budget:
            graph.destroy()
            logger.warning("no room in the budget for %s", what)
            return
        self._held.setdefault((name, size), {})[len(inputs[0])] = graph


def cut(outputs: Any, rows: int) -> Any:
    """Return the first rows of a tensor, or of each of a tuple; None stays."""
    if isinstance(outputs, tuple):
        return tuple(cut(output, rows) for output in outputs)
    return None if outputs is None else outputs[:rows]


class Cuda(Capture):
    """CUDA graphs. `exact`: only kernels that sum in the same order in every process."""

    def __init__(self, *, exact: bool = False) -> None:
        self._exact = exact

    @override
    def pool(self) -> Any:
        return torch.cuda.graph_pool_handle()

    @override
    def capture(self, run: Run, inputs: Tensors, pool: Any) -> Graph:
        # The current stream must be the one of later calls: graphs share memory and scratch by stream.
        cudnn: Any = torch.backends.cudnn
        chooses, cudnn.benchmark = cudnn.benchmark, not self._exact
        try:
            return CudaGraph(run, inputs, pool)
        finally:
            cudnn.benchmark = chooses


class CudaGraph(Graph):
    """`torch.cuda.CUDAGraph` with the tensors that it reads and writes."""

    def __init__(self, run: Run, inputs: Tensors, pool: Any) -> None:
        self._inputs = tuple(tensor.clone() for tensor in inputs)
        for _ in range(WARM_UP_RUNS):
            run(*self._inputs)
        torch.cuda.synchronize()
        torch.cuda.empty_cache()  # else what the warm-up runs leave behind would hide what the graph takes
        before = torch.cuda.memory_reserved()
        self._graph = torch.cuda.CUDAGraph()
        # On this very stream: memory is shared within a pool only by captures of one stream, and cuBLAS keeps its
        # scratch by stream. Codec threads may allocate pinned memory meanwhile: only this thread's calls can spoil it.
        stream = torch.cuda.current_stream()
        with torch.cuda.graph(self._graph, pool=pool, stream=stream, capture_error_mode="thread_local"):
            self._outputs = run(*self._inputs)
        self.nbytes = torch.cuda.memory_reserved() - before

    @override
    def replay(self, inputs: Tensors) -> Any:
        for held, given in zip(self._inputs, inputs, strict=True):
            held[: len(given)].copy_(given, non_blocking=True)
        self._graph.replay()
        # The next replay writes over the outputs.
        return clone(self._outputs)

    @override
    def destroy(self) -> None:
        torch.cuda.synchronize()  # its last replay may still run
        self._graph.reset()
        self._inputs, self._outputs = (), None
        torch.cuda.empty_cache()


def clone(outputs: Any) -> Any:
    """Return a copy of a tensor, or of each of a tuple; None stays."""
    if isinstance(outputs, tuple):
        return tuple(clone(output) for output in outputs)
    return None if outputs is None else outputs.clone()
