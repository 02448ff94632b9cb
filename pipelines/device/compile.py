"""torch.compile for the captured functions: fewer kernels, each with less memory traffic.

Gain on CUDA: torch's `group_norm` has no channels-last kernel there, so every norm costs two changes of layout;
compiled, norm, SiLU and layout are one kernel. Cost: a C compiler and Triton on the machine, and tens of seconds for
each shape at the first start; later starts find the code in the cache.

Only the default mode: `reduce-overhead` would capture graphs of its own, whose memory ours can't share.
"""

from __future__ import annotations

import functools
import logging
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Callable

logger = logging.getLogger(__name__)

# Most shapes of one function to compile: sizes × batches, and a margin. Torch gives up after 8 by default.
SHAPES = 64


class Compiler:
    """Compiles functions at their first call of each shape. After the first failure all run uncompiled."""

    def __init__(self, backend: str = "inductor") -> None:
        self._backend = backend
        self.works = True
        torch._dynamo.config.recompile_limit = SHAPES

    def __call__(self, run: Callable[..., Any]) -> Callable[..., Any]:
        """Return `run`, compiled. Compiling adds no error of its own except `torch.OutOfMemoryError`."""
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
    """Return the error in one line; compilers' messages are pages long."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]
