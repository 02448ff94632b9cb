"""CUDA C, compiled for a card and launched: NVIDIA's own libraries through `cuda-bindings`.

torch's CUDA builds for Linux bring both; neither a compiler nor CUDA's headers need be on the machine.
"""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

import torch
from typing_extensions import override

if TYPE_CHECKING:
    from collections.abc import Sequence

    Argument: TypeAlias = torch.Tensor | float | None


class CompilerError(RuntimeError):
    """NVRTC or the driver has refused something, in its own words."""


class Kernels(Protocol):
    """Compiled kernels."""

    def launch(self, name: str, grid: tuple[int, int], block: int, *arguments: Argument) -> None:
        """Launch a kernel in the current stream, for a grid of blocks of `block` threads.

        Tensors are passed by their address, None as the null pointer, ints and floats in 32 bits.
        """


class CudaKernels(Kernels):
    """The kernels of a CUDA C source on a card. Raises `CompilerError`, `ImportError` without `cuda-bindings`."""

    def __init__(self, source: str, definitions: Sequence[str], device: torch.device) -> None:
        """`definitions` like "NAME=1"."""
        from cuda.bindings import driver  # noqa: PLC0415 – comes with torch's CUDA builds only

        self._driver: Any = driver
        major, minor = torch.cuda.get_device_capability(device)
        with torch.cuda.device(device):
            torch.cuda.current_stream().synchronize()  # makes the card's context
            self._module = _result(driver.cuModuleLoadData(compiled(source, definitions, f"sm_{major}{minor}")))
        self._functions: dict[str, Any] = {}

    @override
    def launch(self, name: str, grid: tuple[int, int], block: int, *arguments: Argument) -> None:
        if name not in self._functions:
            self._functions[name] = _result(self._driver.cuModuleGetFunction(self._module, name.encode()))
        values, types = zip(*map(_passed, arguments), strict=True)
        stream = torch.cuda.current_stream().cuda_stream
        _result(
            self._driver.cuLaunchKernel(self._functions[name], *grid, 1, block, 1, 1, 0, stream, (values, types), 0)
        )


def compiled(source: str, definitions: Sequence[str], architecture: str) -> bytes:
    """Return the machine code of a source for an architecture like "sm_80". Raises as `CudaKernels` does."""
    from cuda.bindings import nvrtc  # noqa: PLC0415 – as above

    program = _result(nvrtc.nvrtcCreateProgram(source.encode(), b"", 0, [], []))
    try:
        options = [f"-arch={architecture}", "-std=c++17", *(f"-D{each}" for each in definitions)]
        failed, *_ = nvrtc.nvrtcCompileProgram(program, len(options), [option.encode() for option in options])
        if failed:
            log = bytearray(_result(nvrtc.nvrtcGetProgramLogSize(program)))
            _result(nvrtc.nvrtcGetProgramLog(program, log))
            raise CompilerError(f"{failed.name}: {log.decode(errors='replace').strip(chr(0)).strip()}")
        code = bytearray(_result(nvrtc.nvrtcGetCUBINSize(program)))
        _result(nvrtc.nvrtcGetCUBIN(program, code))
        return bytes(code)
    finally:
        _result(nvrtc.nvrtcDestroyProgram(program))


def _passed(argument: Argument) -> tuple[float, Any]:
    """Return an argument's value and its type in C."""
    if argument is None:
        return 0, ctypes.c_void_p
    if isinstance(argument, torch.Tensor):
        return argument.data_ptr(), ctypes.c_void_p
    return argument, ctypes.c_int if isinstance(argument, int) else ctypes.c_float


def _result(answer: Any) -> Any:
    """Return what a call of `cuda-bindings` returns beside its status."""
    status, *results = answer
    if status:
        raise CompilerError(status.name)
    return results[0] if results else None
