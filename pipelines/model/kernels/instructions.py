"""The instruction sets of this machine's processor, as torch tells them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

# What torch calls the question; an older torch lacks some, and then the answer is no.
_X86 = {
    "AVX2": "_is_avx2_supported",
    "AVX-512": "_is_avx512_supported",
    "AVX512-BF16": "_is_avx512_bf16_supported",
    "AMX": "_is_amx_tile_supported",
}
_ARM = {"NEON": "neon", "BF16": "bf16", "SVE": "sve", "SVE2": "sve2"}


def names() -> str:
    """Return those that matter here, like "AVX2, AVX-512"; torch's own word for the processor where none is known."""
    known = [name for name, question in _X86.items() if _has(question)]
    known += [name for name, word in _ARM.items() if _capabilities().get(word) is True]
    return ", ".join(known) or str(torch.backends.cpu.get_cpu_capability())


def has_amx() -> bool:
    """Return whether this is an x86 processor with tile products, which take bfloat16."""
    return _has(_X86["AMX"])


def has_x86_bfloat16() -> bool:
    """Return whether this is an x86 processor with products of bfloat16. They need not be faster than float32's."""
    return has_amx() or _has(_X86["AVX512-BF16"])


def has_bfloat16() -> bool:
    """Return whether this processor has products of bfloat16. Without, they are emulated, slowly."""
    return has_x86_bfloat16() or _capabilities().get("bf16") is True


def _has(question: str) -> bool:
    ask: Callable[[], bool] = getattr(torch.cpu, question, lambda: False)
    return ask()


def _capabilities() -> Mapping[str, Any]:
    ask: Callable[[], Mapping[str, Any]] = getattr(torch.cpu, "get_capabilities", dict)
    return ask()
