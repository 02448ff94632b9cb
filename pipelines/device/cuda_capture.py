"""Captures of functions as CUDA graphs, for `pipelines.device.cuda_graphs`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from typing_extensions import override

from pipelines.device.cuda_graphs import Capture, Graph, fill

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pipelines.device.cuda_graphs import Run, Tensors
    from pipelines.model.calls import Rows

# Most bytes which count as the driver's own for a graph; what is missing beyond is another program's.
MOST_OF_DRIVER = 64 * 2**20


class Cuda(Capture):
    """CUDA graphs. `exact`: only kernels that sum in the same order in every process."""

    def __init__(self, *, exact: bool = False) -> None:
        self._exact = exact

    @override
    def pool(self) -> Any:
        return torch.cuda.graph_pool_handle()

    @override
    def warm_up(self, run: Run, inputs: Tensors) -> int:
        cudnn: Any = torch.backends.cudnn
        chooses, cudnn.benchmark = cudnn.benchmark, not self._exact
        try:
            run(*inputs)
            empty_cache()
            # From an empty cache, so that the allocator finds as little to use again as in a new pool. Another stream's
            # blocks are of no use to this one.
            before = torch.cuda.memory_reserved()
            run(*inputs)
            return torch.cuda.memory_reserved() - before
        finally:
            cudnn.benchmark = chooses

    @override
    def capture(self, run: Run, inputs: Tensors, pool: Any) -> Graph:
        # The current stream must be the one of later calls: graphs share memory and scratch by stream.
        return CudaGraph(run, inputs, pool)

    @override
    def free(self) -> float:
        empty_cache()
        free, _ = torch.cuda.mem_get_info()
        return free


class CudaGraph(Graph):
    """`torch.cuda.CUDAGraph` with the tensors that it reads and writes."""

    def __init__(self, run: Run, inputs: Tensors, pool: Any) -> None:
        self._inputs = inputs
        empty_cache()  # else what the warm-up runs leave behind would hide what the graph takes
        reserved, (free, _) = torch.cuda.memory_reserved(), torch.cuda.mem_get_info()
        self._graph = torch.cuda.CUDAGraph()
        # On this very stream: memory is shared within a pool only by captures of one stream, and cuBLAS keeps its
        # scratch by stream. Codec threads may allocate pinned memory meanwhile: only this thread's calls can spoil it.
        stream = torch.cuda.current_stream()
        with torch.cuda.graph(self._graph, pool=pool, stream=stream, capture_error_mode="thread_local"):
            self._outputs = run(*self._inputs)
        self.reserved = torch.cuda.memory_reserved() - reserved
        taken = free - torch.cuda.mem_get_info()[0] - self.reserved
        self.beside = min(max(taken, 0), MOST_OF_DRIVER)

    @override
    def replay(self, inputs: Sequence[Rows]) -> Any:
        for held, given in zip(self._inputs, inputs, strict=True):
            fill(held[: len(given)], given)
        self._graph.replay()
        # The next replay writes over the outputs.
        return clone(self._outputs)

    @override
    def destroy(self) -> None:
        torch.cuda.synchronize()  # its last replay may still run
        self._graph.reset()
        self._inputs, self._outputs = (), None
        torch.cuda.empty_cache()


def empty_cache() -> None:
    """Give what torch keeps for later back to the device, once all that was submitted is done."""
    torch.cuda.synchronize()
    torch.cuda.empty_cache()


def clone(outputs: Any) -> Any:
    """Return a copy of a tensor, or of each of a tuple; None stays."""
    if isinstance(outputs, tuple):
        return tuple(clone(output) for output in outputs)
    return None if outputs is None else outputs.clone()
