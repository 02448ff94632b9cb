"""Memory budget of the stages: how many pictures of a size a call may take, from its measured memory.

A stage's memory grows in proportion to pixels × rows: it is all activations (attention keeps no matrix of its scores).
So each stage is measured once. One picture alone always runs; if memory runs out then, the engine gives up what it can
(`pipelines.engine.stage_runner`). All but `measure` is arithmetic.
"""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

if TYPE_CHECKING:
    from collections.abc import Callable

# Unmeasured sizes get other kernels with other scratch, and memory fragments.
MARGIN = 1.25


class MemoryBudget:
    """Rows per call for each stage, within `budget` bytes."""

    def __init__(self, budget: float) -> None:
        self.budget = budget
        self._costs: dict[str, float] = {}

    def note(self, stage: str, pixels: int, rows: int, nbytes: int) -> None:
        """Record that a stage took at most `nbytes` bytes for `rows` rows of `pixels` pixels each."""
        self._costs[stage] = max(nbytes / (pixels * rows), self._costs.get(stage, 0.0))

    def rows(self, stage: str, pixels: int, most: int) -> int:
        """Return how many rows of `pixels` pixels the stage may take, from 1 to `most`; `most` if not measured."""
        cost = self.need(stage, pixels)
        return max(1, int(min(most, self.budget / cost))) if cost else most

    def need(self, stage: str, pixels: int) -> float:
        """Return the bytes that the stage may take for a row of `pixels` pixels; 0 if not measured."""
        return MARGIN * self._costs.get(stage, 0.0) * pixels

    def __str__(self) -> str:
        costs = ", ".join(f"{stage} {cost:.0f}" for stage, cost in self._costs.items()) or "to be measured"
        return f"{self.budget / 1e9:.1f} GB for a stage; bytes a pixel: {costs}"


class Measured(NamedTuple):
    """Bytes of a call: `peak`, by which the memory in use grows at most; `pool`, what a pool of its own would hold."""

    peak: int
    pool: int


def measure(device: torch.device, run: Callable[[], object]) -> Measured:
    """Return what a call takes, beside what was there before.

    On CUDA the allocator counts. What it holds is more than what is in use: from an empty cache, as in a new pool, it
    leaves gaps which later tensors are too large for. On a CPU the size of the process tells little (freed memory
    stays, shared pages come and go), so the tensors that operators return are counted while they live; their scratch
    is left to the margin.
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
        used, held = torch.cuda.memory_allocated(device), torch.cuda.memory_reserved(device)
        run()
        return Measured(torch.cuda.max_memory_allocated(device) - used, torch.cuda.memory_reserved(device) - held)
    counter = Counter()
    with counter:
        run()
    return Measured(counter.most, counter.most)


class Counter(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch's own
    """A context which counts the bytes of all live storages that operators have made in it; `most` at once."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.most = self._now = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {storage.data_ptr() for storage in _storages((args, kwargs))}
        result = func(*args, **kwargs or {})
        for storage in _storages(result):
            if (address := storage.data_ptr()) not in given | self._known:
                self._known.add(address)
                self._now += storage.nbytes()
                weakref.finalize(storage, self._gone, address, storage.nbytes())
        self.most = max(self.most, self._now)
        return result

    def _gone(self, address: int, nbytes: int) -> None:
        self._known.discard(address)
        self._now -= nbytes


def _storages(tree: Any) -> list[torch.UntypedStorage]:
    """Return the storages of all strided tensors; weights in oneDNN's own layout have none."""
    tensors = (leaf for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor))
    return [tensor.untyped_storage() for tensor in tensors if tensor.layout is torch.strided]
