"""Safetensors files mapped into memory, and their pages given back when a tensor has been read.

A mapped page that has been read counts as this process's memory until the system is short of it. A loader which
converts every weight would so hold the model twice: in the file's form and in its own. An engine would hold networks
that it needs for a moment of each request.
"""

import functools
import json
import math
import mmap
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import torch
from safetensors import SafetensorError, safe_open

from pipelines.errors import CheckpointError

# Others (8 bits and fewer) are read by safetensors; their pages stay.
_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
}

# A smaller weight's pages are not worth a call to the system.
_LARGE_BYTES = 2**20

# Live mappings, each with its address. A mapping lives as long as a tensor in it.
_mappings: WeakKeyDictionary[mmap.mmap, int] = WeakKeyDictionary()


def tensors(path: Path) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield all tensors of a safetensors file with their names: pages are read from disk when first used.

    Writing to a tensor leaves the file alone. Raises `CheckpointError` if it is not safetensors or is cut short.
    """
    try:
        with safe_open(path, framework="pt") as file:  # this checks the header
            data, begin, header = _map(path)
            for name in file.keys():  # noqa: SIM118 (no iterator)
                entry = header[name]
                dtype, shape = _DTYPES.get(entry["dtype"]), entry["shape"]
                if dtype is None or not all(shape):
                    yield name, file.get_tensor(name)
                    continue
                offset, count = begin + entry["data_offsets"][0], math.prod(shape)
                yield name, torch.frombuffer(data, dtype=dtype, count=count, offset=offset).view(shape)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} can't be read: {error}.", "Fetch it again; it may be incomplete.") from error


def release(tensor: torch.Tensor) -> None:
    """Give back the pages of a tensor that is in a mapped file and isn't read again soon; any other stays as it is.

    What had been written to it is lost. Pages which it shares with its neighbours stay.
    """
    if (found := _place(tensor)) is None or not hasattr(mmap, "MADV_DONTNEED"):
        return
    mapping, start = found
    first = -(-start // mmap.PAGESIZE) * mmap.PAGESIZE
    length = (start + tensor.nbytes) // mmap.PAGESIZE * mmap.PAGESIZE - first
    if length > 0:
        mapping.madvise(mmap.MADV_DONTNEED, first, length)


def release_after_use(module: torch.nn.Module) -> None:
    """Give back the pages of each large weight of `module` whenever the layer that holds it has run.

    For networks that run once a request: they are read from the system's file cache again, at memory's speed. A weight
    that is written to from now on loses that, as with `release`: merge what changes it into a new one, before.
    """
    for layer in module.modules():
        weights = [*layer.parameters(recurse=False), *layer.buffers(recurse=False)]
        for weight in weights:
            if weight.nbytes >= _LARGE_BYTES and _place(weight) is not None:
                layer.register_forward_hook(functools.partial(_release_hook, weight))


def _release_hook(weight: torch.Tensor, *_: object) -> None:
    release(weight)


def _place(tensor: torch.Tensor) -> tuple[mmap.mmap, int] | None:
    """Return the mapping that a tensor is a contiguous part of, and its offset there in bytes."""
    if tensor.device.type != "cpu" or tensor.layout is not torch.strided or not tensor.is_contiguous():
        return None
    for mapping, address in _mappings.items():
        start = tensor.data_ptr() - address
        if start >= 0 and start + tensor.nbytes <= len(mapping):
            return mapping, start
    return None


def _map(path: Path) -> tuple[mmap.mmap, int, dict[str, Any]]:
    """Return the file's bytes, where its tensors begin, and what its header says of each."""
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(length))
        data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    _mappings[data] = torch.frombuffer(data, dtype=torch.uint8).data_ptr()
    return data, 8 + length, header
