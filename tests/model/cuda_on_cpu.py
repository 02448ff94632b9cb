"""The kernels of a CUDA source, compiled as C++ and run on the processor, thread by thread (`cuda_on_cpu.h`)."""

import ctypes
import re
import shutil
import subprocess
from pathlib import Path

import torch

HEADER = Path(__file__).with_suffix(".h")
COMPILER = shutil.which("g++")

# Bytes on either side of a tensor.
_GUARD = 4096


class KernelsOnCpu:
    """Kernels as `compiler.Kernels` has them, of tensors on the processor.

    `backwards`: threads run in turn from the last to the first. Tensors lie between guards: what reads beside one gets
    not-a-numbers, and what writes there is found. The first must begin where CUDA can read 16 bytes at once.
    """

    def __init__(self, source: str, definitions: list[str], folder: Path, *, backwards: bool = False) -> None:
        self.backwards, self.launched = backwards, []
        names = re.findall(r"^STATISTICS\((\d)\)", source, re.MULTILINE)
        kernels = [f"statistics_{width}" for width in names] + re.findall(r"^NORMALISE\((\w+)", source, re.MULTILINE)
        program, library = folder / "kernels.cpp", folder / "kernels.so"
        runs = "\n".join(f"RUNS({name})" for name in kernels)
        program.write_text(f'#include "{HEADER}"\n{source}\n{runs}\n')
        options = [*(f"-D{each}" for each in definitions), "-std=c++17", "-O1", "-shared", "-fPIC", "-w"]
        subprocess.run([COMPILER, *options, "-o", library, program], check=True)
        self.library = ctypes.CDLL(str(library))

    def launch(self, name, grid, block, *arguments):
        self.launched.append((name, grid, block))
        run = getattr(self.library, f"run_{name}")
        run.restype = ctypes.c_bool
        tensors = [each for each in arguments if isinstance(each, torch.Tensor)]
        if tensors[0].data_ptr() % 16:
            raise AssertionError(f"{name} reads 16 bytes at an address that is no multiple of 16")
        guarded = {id(tensor): _guarded(tensor) for tensor in tensors}
        words = [_word(guarded[id(each)][1] if isinstance(each, torch.Tensor) else each) for each in arguments]
        given = (ctypes.c_int64 * len(words))(*words)
        if not run((ctypes.c_int * 2)(*grid), block, ctypes.c_bool(self.backwards), given):
            raise AssertionError(f"{name}: some threads of a block wait for others for ever")
        for tensor in tensors:
            whole, inner = guarded[id(tensor)]
            if not (whole[:_GUARD].eq(0xFF).all() and whole[-_GUARD:].eq(0xFF).all()):
                raise AssertionError(f"{name} writes beside its tensors")
            _memory(tensor).copy_(inner)


def _guarded(tensor):
    """Return a copy of a tensor's memory between bytes that read as NaN in every dtype, with those and without."""
    memory = _memory(tensor)
    whole = torch.full((_GUARD + memory.nbytes + _GUARD,), 0xFF, dtype=torch.uint8)
    inner = whole[_GUARD : _GUARD + memory.nbytes].view(tensor.dtype)
    inner.copy_(memory)
    return whole, inner


def _memory(tensor):
    """Return all numbers from a tensor's first to its last as they lie in memory."""
    span = 1 + sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return tensor.as_strided((span,), (1,))


def _word(argument):
    if argument is None:
        return 0
    if isinstance(argument, torch.Tensor):
        return argument.data_ptr()
    if isinstance(argument, int):
        return argument
    return int.from_bytes(bytes(ctypes.c_float(argument)) + bytes(4), "little")
