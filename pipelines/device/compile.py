"""torch.compile for the functions that are to be captured: fewer kernels, each with less memory traffic.

What it has to gain on CUDA: torch's `group_norm` there knows no channels-last, so that every norm costs two changes of
layout beside it; compiled, norm, SiLU and layout are one kernel. What it costs: a C compiler and Triton on the machine,
and tens of seconds for each shape at the first start; after that the code is found in the cache.

No mode but the default: `reduce-overhead` would capture graphs of its own, with memory that ours can't share.
"""

from __future__ import annotations

import functools
import logging
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Callable

logger = logging.getLogger(__name__)

# Shapes of one function that may be compiled, where torch's own 8 would make it give up: sizes × batches, and some.
SHAPES = 64


class Compiler:
    """Compiles functions at their first call of each shape. After the first failure all run as they are written."""

    def __init__(self, backend: str = "inductor") -> None:
        self._backend = backend
        self.works = True
        torch._dynamo.config.recompile_limit = SHAPES

    def __call__(self, run: Callable[..., Any]) -> Callable[..., Any]:
        """`run`, compiled. Raises what `run` would raise for want of memory, and nothing else of its own."""
        compiled = torch.compile(run, backend=self._backend, dynamic=False, fullgraph=True)

        @functools.wraps(run, updated=())
        def call(*inputs: Any) -> Any:
            if self.works:
                try:
                    return compiled(*inputs)
                except torch.OutOfMemoryError:
                    raise
                except Exception as error:  # noqa: BLE001 – compilers fail in many ways, and none of them is needed
                    self.works = False
                    logger.warning("torch.compile does not work here, going on without: %s", _brief(error))
            return run(*inputs)

        return call


def _brief(error: Exception) -> str:
    """What went wrong in one line: compilers' messages are pages long."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]
