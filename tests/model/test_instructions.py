"""Instruction sets are torch's word; an older torch that lacks a question gets no for an answer."""

import types

import pytest

from pipelines.model.kernels import instructions

# What torch.cpu has on some machines: the questions that say yes, and the capabilities.
MACHINES = {
    "Haswell": (["avx2"], {}),
    "Zen 4": (["avx2", "avx512", "avx512_bf16"], {}),
    "Sapphire Rapids": (["avx2", "avx512", "avx512_bf16", "amx_tile"], {}),
    "Graviton 3": ([], {"neon": True, "bf16": True, "sve": True, "sve2": False}),
    "Apple M1": ([], {"neon": True, "bf16": False}),
}


def torch_of(sets, capabilities):
    asked = ("avx2", "avx512", "avx512_bf16", "amx_tile")
    answers = {f"_is_{name}_supported": lambda name=name: name in sets for name in asked}
    return types.SimpleNamespace(**answers, get_capabilities=lambda: capabilities)


@pytest.mark.parametrize(
    ("machine", "names", "bfloat16", "amx"),
    [
        ("Haswell", "AVX2", False, False),
        ("Zen 4", "AVX2, AVX-512, AVX512-BF16", True, False),
        ("Sapphire Rapids", "AVX2, AVX-512, AVX512-BF16, AMX", True, True),
        ("Graviton 3", "NEON, BF16, SVE", True, False),
        ("Apple M1", "NEON", False, False),
    ],
)
def test_machines_are_told_apart(machine, names, bfloat16, amx, monkeypatch):
    monkeypatch.setattr(instructions.torch, "cpu", torch_of(*MACHINES[machine]))

    assert instructions.names() == names
    assert (instructions.has_bfloat16(), instructions.has_amx()) == (bfloat16, amx)


def test_a_torch_that_knows_none_of_the_questions_has_its_own_word(monkeypatch):
    monkeypatch.setattr(instructions.torch, "cpu", types.SimpleNamespace())
    monkeypatch.setattr(instructions.torch.backends.cpu, "get_cpu_capability", lambda: "VSX")

    assert instructions.names() == "VSX"
    assert not instructions.has_bfloat16()


def test_this_torch_knows_the_questions():
    assert all(hasattr(instructions.torch.cpu, question) for question in instructions._X86.values())
