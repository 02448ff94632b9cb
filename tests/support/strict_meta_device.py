"""A strict meta device: tensors have shapes and no values, and operations that mps or CUDA lack raise.

So code on it can't read a value, mix its tensors with the host's, make a float64 (mps has none), or copy from unpinned
host memory without waiting for the copy.
"""

import contextlib

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

NOWHERE = torch.device("meta")


class Missing(AssertionError):
    """An operation which mps or CUDA need not have."""


class _Strict(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        made = [leaf for leaf in tree_leaves(result) if isinstance(leaf, torch.Tensor) and leaf.device == NOWHERE]
        if any(tensor.dtype == torch.float64 for tensor in made):
            raise Missing(f"{func} makes a float64")
        if made and (kwargs or {}).get("non_blocking"):
            raise Missing(f"{func} does not wait for the copy of what may be gone")
        return result


@contextlib.contextmanager
def device():
    """Give the device within the context; modules move to it by `.to`."""
    with FakeTensorMode(allow_non_fake_inputs=True), _Strict():
        yield NOWHERE
