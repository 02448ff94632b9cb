"""Whether torch can compute on the NVIDIA cards of this machine; if not, why, and what helps.

Torch is asked first. Only where it sees no card are the driver's own library (NVML) and the system asked whether there
is one after all. Engines and `fourstep doctor` ask the same functions.
"""

import ctypes
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch

from pipelines.errors import CheckpointError

# The oldest driver for each major version of CUDA; all its minor versions run on it.
_DRIVERS = {12: 525, 13: 580}

# For older cards and drivers than torch's default build takes, and the first capability of which that has code.
_OLD_CARDS = (
    "torch's build for CUDA 12.6, which torch 2.14 is the last to have"
    " (pip install --index-url https://download.pytorch.org/whl/cu126 'torch<2.15')"
)
_OLDEST = (7, 5)

_ON_THE_PROCESSOR = "Or use the processor: --device cpu."

# NVML's answer after an update of the driver, until the machine is started anew.
_MISMATCH = 18


class CardError(CheckpointError):
    """A card can't be used. `of_torch`: because of torch's build, not of driver or system."""

    def __init__(self, reason: str, hint: str, *, of_torch: bool = False) -> None:
        super().__init__(reason, f"{hint}. {_ON_THE_PROCESSOR}")
        self.of_torch = of_torch


class Card(NamedTuple):
    """A card that torch sees: name, compute capability (major, minor), number of multiprocessors."""

    name: str
    capability: tuple[int, int]
    processors: int


@dataclass(frozen=True, kw_only=True)
class Build:
    """This torch: its version, the CUDA or ROCm that it is built for, what it has code for, the cards that it sees.

    `words`: why it sees none.
    """

    version: str
    cuda: str | None = None
    rocm: str | None = None
    kinds: tuple[str, ...] = ()
    cards: tuple[Card, ...] = ()
    words: str = ""


@dataclass(frozen=True, kw_only=True)
class System:
    """What is known of this machine's NVIDIA cards without torch.

    `cards`: their names. `driver`: version by NVML, "" if that does not answer. `stale`: NVML is newer than the driver
    that runs. `loaded`: the kernel has the driver. `blocked`: its device files that are missing or shut to this user.
    """

    cards: tuple[str, ...] = ()
    driver: str = ""
    stale: bool = False
    loaded: bool = False
    blocked: tuple[str, ...] = ()
    container: bool = False


def build() -> Build:
    """Return what this torch is, and the cards that it sees. The driver is started for that."""
    if torch.version.cuda is None and torch.version.hip is None:
        return Build(version=torch.__version__)
    words = ""
    try:
        torch.cuda.init()  # type: ignore[no-untyped-call]  # torch's own
    except (RuntimeError, AssertionError, torch.cuda.DeferredCudaCallError) as error:  # no driver, too old a one, …
        words = str(error).partition("\n")[0]
    found = [torch.cuda.get_device_properties(index) for index in range(0 if words else torch.cuda.device_count())]
    return Build(
        version=torch.__version__,
        cuda=torch.version.cuda,
        rocm=torch.version.hip,
        kinds=tuple(torch.cuda.get_arch_list()),
        cards=tuple(Card(card.name, (card.major, card.minor), card.multi_processor_count) for card in found),
        words=words,
    )


def system(root: Path = Path("/")) -> System:
    """Return what driver and system say of NVIDIA cards. `root`: the folder of `/sys`, `/proc` and `/dev`."""
    driver, stale, names = _nvml()
    proc = root / "proc/driver/nvidia"
    if not names:
        files = sorted(proc.glob("gpus/*/information"))
        lines = [line for file in files for line in file.read_text().splitlines() if line.startswith("Model:")]
        names = [line.removeprefix("Model:").strip() for line in lines]
    return System(
        cards=tuple(names or _on_bus(root / "sys/bus/pci/devices")),
        driver=driver,
        stale=stale,
        loaded=(proc / "version").exists(),
        blocked=tuple(
            f"/dev/{name}"
            for name in ("nvidiactl", "nvidia-uvm")
            if not os.access(root / "dev" / name, os.R_OK | os.W_OK)
        ),
        container=any((root / name).exists() for name in (".dockerenv", "run/.containerenv")),
    )


def best(of: Build) -> int | None:
    """Return the index of the card with the most multiprocessors among those that can be used; None without one."""
    usable = [index for index in range(len(of.cards)) if card_fault(of, index) is None]
    return max(usable, key=lambda index: of.cards[index].processors, default=None)


def card_fault(of: Build, index: int) -> CardError | None:
    """Return why a card that torch sees can't be used; None if it can."""
    card = of.cards[index]
    if of.rocm is not None:
        return CardError(
            f"torch {of.version} is built for ROCm, and fourstep does not compute on AMD's cards ({card.name}).",
            "Install torch's CUDA build for an NVIDIA card",
            of_torch=True,
        )
    if of.kinds and not runs_on(of.kinds, card.capability):
        other = _OLD_CARDS if card.capability < _OLDEST else "a newer torch"
        return CardError(
            f"{card.name} can't be used: torch {of.version} has no code for it (compute capability"
            f" {'.'.join(map(str, card.capability))}; it has {' '.join(of.kinds)}).",
            f"Install {other}",
            of_torch=True,
        )
    return None


def fault(of: Build, look: Callable[[], System] = system) -> CardError | None:
    """Return why no card of this machine can be used; None if one can, or there is none."""
    if of.cards:
        return None if best(of) is not None else card_fault(of, 0)
    there = look()
    return _unseen(of, there) if there.cards else None


def _unseen(of: Build, there: System) -> CardError:
    """Return why torch sees none of the cards that are there."""
    names = ", ".join(there.cards)
    reason, hint = _why(of, there)
    return CardError(f"{names} can't be used: {reason}.", hint, of_torch=of.cuda is None)


def _why(of: Build, there: System) -> tuple[str, str]:
    """Return why torch sees no card, in words that follow "because", and what helps."""
    if of.cuda is None:
        kind = "the processor" if of.rocm is None else "ROCm"
        return f"torch {of.version} is built for {kind} only", "Install torch's CUDA build (on Linux pip's own torch)"
    if there.container and there.blocked:
        return (
            "this container was started without GPUs",
            "Start it with `docker run --gpus all` (NVIDIA's container toolkit must be on the host)",
        )
    if there.stale:
        return "its driver was updated and the old one still runs", "Start the machine anew"
    if there.loaded and there.blocked:
        return (
            f"its driver runs, but this user can't open {' and '.join(there.blocked)}",
            "`sudo nvidia-modprobe -u -c 0` makes the device files, and deploy/fourstep.service does so at each start",
        )
    return _why_with_driver(of.cuda, of, there)


def _why_with_driver(cuda: str, of: Build, there: System) -> tuple[str, str]:
    if not there.driver:
        return "its driver is not installed or does not run", "Install NVIDIA's driver; `nvidia-smi` must list the card"
    least = _DRIVERS.get(int(cuda.partition(".")[0]), 0)
    if int(there.driver.partition(".")[0]) < least:
        return (
            f"its driver {there.driver} is too old for CUDA {cuda} of torch {of.version}",
            f"Install driver {least} or newer, or {_OLD_CARDS}",
        )
    return (
        f"torch says “{of.words}” (driver {there.driver})",
        "See that CUDA_VISIBLE_DEVICES does not hide it and that `nvidia-smi` lists it",
    )


def runs_on(kinds: tuple[str, ...], capability: tuple[int, int]) -> bool:
    """Return whether code built for `kinds` (sm_80, compute_90, …) runs on a device of that compute capability.

    Machine code (sm) runs on the same major version from its minor version on, PTX (compute) on everything newer.
    """
    for kind in kinds:
        family, _, digits = kind.partition("_")
        number = int("".join(filter(str.isdigit, digits)))
        built = divmod(number, 10)
        if family == "compute" and built <= capability:
            return True
        if family == "sm" and built[0] == capability[0] and built[1] <= capability[1]:
            return True
    return False


def _nvml() -> tuple[str, bool, list[str]]:
    """Return the driver's version ("" without one), whether another one still runs, and the cards' names."""
    try:
        library = ctypes.CDLL("libnvidia-ml.so.1")
    except OSError:
        return "", False, []
    if status := library.nvmlInit_v2():
        return "", status == _MISMATCH, []
    version, name, count = ctypes.create_string_buffer(96), ctypes.create_string_buffer(96), ctypes.c_uint()
    library.nvmlSystemGetDriverVersion(version, len(version))
    library.nvmlDeviceGetCount_v2(ctypes.byref(count))
    names = []
    for index in range(count.value):
        card = ctypes.c_void_p()
        if library.nvmlDeviceGetHandleByIndex_v2(index, ctypes.byref(card)) == 0:
            library.nvmlDeviceGetName(card, name, len(name))
            names.append(name.value.decode())
    library.nvmlShutdown()
    return version.value.decode(), False, names


def _on_bus(devices: Path) -> list[str]:
    """Return what Linux's list of PCI devices has of NVIDIA's display devices, whatever their driver does."""
    found = []
    for entry in sorted(devices.glob("*")):
        vendor, kind, model = (entry / name for name in ("vendor", "class", "device"))
        if vendor.is_file() and vendor.read_text().strip() == "0x10de" and kind.read_text().startswith("0x03"):
            found.append(f"NVIDIA device {model.read_text().strip().removeprefix('0x')} (PCI {entry.name})")
    return found
