"""The processor's instruction set, and how a smaller one is emulated. Imports nothing heavy."""

import os
from pathlib import Path

FLAGS = ("avx2", "avx512f", "avx512_bf16", "amx_tile", "amx_bf16")
# What limits torch, oneDNN, MKL and OpenVINO. OpenVINO reads its own variable only together with oneDNN's.
VARIABLES = {
    "ATEN_CPU_CAPABILITY": "avx2",
    "MKL_ENABLE_INSTRUCTIONS": "AVX2",
    "ONEDNN_MAX_CPU_ISA": "AVX2",
    "OV_CPU_MAX_ISA": "AVX2",
}
CPUINFO = Path("/proc/cpuinfo")


def describe(isa):
    """Return the processor's name, its instruction sets and which are emulated: `isa` is "native" or "avx2"."""
    lines = CPUINFO.read_text().splitlines() if CPUINFO.exists() else []
    fields = dict(reversed([[part.strip() for part in line.split(":", 1)] for line in lines if ":" in line]))
    known = set(fields.get("flags", "").split())
    limits = {name: value for name, value in environment(isa).items() if name in VARIABLES}
    return {
        "processor": fields.get("model name", "unknown"),
        "family": "/".join(fields.get(name, "?") for name in ("vendor_id", "cpu family", "model")),
        "has": [flag for flag in FLAGS if flag in known],
        "emulated": limits,
    }


def environment(isa):
    """Return the environment of the contenders' processes."""
    return dict(os.environ) | (VARIABLES if isa == "avx2" else {})


def has_bfloat16(described):
    """Return whether the processor, as far as it is not limited, multiplies bfloat16."""
    return not described["emulated"] and bool({"avx512_bf16", "amx_tile"} & set(described["has"]))
