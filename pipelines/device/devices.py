"""The device of an engine, its free memory, and the settings of a process that computes on it."""

import contextlib
import ctypes
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from pipelines.device import cuda_support
from pipelines.errors import CheckpointError
from pipelines.messages import EngineConfig
from pipelines.model.kernels import choices
from pipelines.model.kernels.choices import Choices
from pipelines.model.kernels.cuda import trials
from pipelines.model.kernels.cuda.trials import Trials

# <malloc.h>. The largest value that mallopt takes for the threshold is that of an int.
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4
_KEPT_BYTES = 2**31 - 1

MEMINFO = Path("/proc/meminfo")

# What leaves the choice to this machine.
_UNNAMED = frozenset({"auto", "all"})


def pick_device(name: str) -> torch.device:
    """Return the device that `name` means: `auto` is cuda, then mps, then cpu; cuda is the card with most processors.

    Of `all` it is the same. Raises `CheckpointError` if it is absent or can't be used. `auto` passes over cards that
    can't (`passed_over`).
    """
    if name in _UNNAMED:
        return _best()
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise CheckpointError(f"{name!r} names no device.", "Use auto, cpu, mps, cuda or cuda:N.") from error
    if device.type == "cuda":
        return _check_cuda(device)
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise CheckpointError("This machine or this torch build has no mps device.", "Use --device auto.")
    if device.type not in {"cpu", "mps"}:
        raise CheckpointError(f"Devices of type {device.type!r} are not supported.", "Use auto, cpu, mps or cuda.")
    return device


def every(build: cuda_support.Build) -> list[str]:
    """Return the device of each engine that `all` means: the cards that can be used, else what `auto` finds."""
    cards = range(len(build.cards))
    return [f"cuda:{index}" for index in cards if cuda_support.card_fault(build, index) is None] or ["auto"]


def first(config: EngineConfig) -> torch.device:
    """Return the first device that `config` names. Raises `CheckpointError`."""
    return pick_device(config.device.split(",")[0].strip())


def label(device: torch.device) -> str:
    """Return what to call a device: a card by its name."""
    if device.type != "cuda":
        return str(device)
    return f"{device} ({cuda_support.build().cards[device.index or 0].name})"


def passed_over(config: EngineConfig) -> CheckpointError | None:
    """Return why the NVIDIA card of this machine is not used, where the processor stands in for it; else None."""
    if config.device.split(",")[0].strip() not in _UNNAMED or first(config).type != "cpu":
        return None
    return cuda_support.fault(cuda_support.build())


def prepare(config: EngineConfig) -> None:
    """Set what all computing of an engine depends on, before any tensor is made. Raises `CheckpointError`.

    With one image at a time only kernels that always sum in the same order are used, chosen by rule and not by timing,
    so that another process or another device of the same kind computes the same.
    """
    device = first(config)
    ask_machine(config)
    if device.type == "cuda":
        torch.cuda.set_device(device)  # streams, graphs and memory statistics go by the current device
        cudnn: Any = torch.backends.cudnn
        cudnn.deterministic = config.max_batch == 1
        # torch does not count cuDNN's attention among the deterministic ones.
        torch.backends.cuda.enable_cudnn_sdp(config.max_batch > 1)
        trials.use(Trials(_kept(config, trials.FILE)))


@contextlib.contextmanager
def tuning(config: EngineConfig) -> Iterator[None]:
    """Have cuDNN time its kernels for each shape that is new within the context; not with one image at a time.

    It keeps the first answer for a shape, timed or not: so all of loading must lie within, and no request, for which
    that would take seconds.
    """
    cudnn: Any = torch.backends.cudnn
    cudnn.benchmark = config.max_batch > 1
    try:
        yield
    finally:
        cudnn.benchmark = False


def ask_machine(config: EngineConfig, *, keep: bool = True) -> None:
    """Have what is faster on this processor or card found out, once for all engines; `keep`: in the data folder.

    Not on `mps`, and not with one image at a time.
    """
    if config.threads:
        torch.set_num_threads(config.threads)
    device = first(config)
    if config.max_batch == 1 or device.type not in {"cpu", "cuda"}:
        choices.use(Choices())
        return
    machine = choices.this_card(device) if device.type == "cuda" else choices.this_machine()
    choices.use(Choices(_kept(config, choices.FILE), machine=machine, keep=keep))


def _kept(config: EngineConfig, name: str) -> Path | None:
    """Return a file of the data folder; None without one: nothing is kept in the folder that this process runs in."""
    return Path(config.data_dir) / name if config.data_dir else None


def free_memory(device: torch.device) -> float:
    """Return the bytes free for this process, its own cache included; infinity if the system does not tell."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
        free, _ = torch.cuda.mem_get_info(device)
        return free
    return main_memory() if device.type == "cpu" else math.inf


def main_memory(meminfo: Path = MEMINFO) -> float:
    """Return the bytes of main memory that are free or can be freed; infinity except on Linux, which tells."""
    if not meminfo.is_file():
        return math.inf
    fields = dict(line.split(":", 1) for line in meminfo.read_text().splitlines())
    return int(fields["MemAvailable"].split()[0]) * 1024


def keep_freed_memory() -> None:
    """Keep the memory that this process frees for its next allocations, where the allocator can (glibc).

    Otherwise the kernel maps every large activation anew, page by page: a third of an autoencoder's time on batches.
    The process then holds the most that it ever needed, as a CUDA process does. Call it when the weights are in place,
    so that they lie outside of what is kept.
    """
    if (libc := _glibc()) is not None:
        libc.mallopt(_M_MMAP_MAX, 0)
        libc.mallopt(_M_TRIM_THRESHOLD, _KEPT_BYTES)


def give_back_freed_memory() -> None:
    """Give the memory that this process has freed back to the system, where the allocator can (glibc).

    By itself it keeps what lies between blocks in use: a quarter of a full-size model once its weights are packed.
    """
    if (libc := _glibc()) is not None:
        libc.malloc_trim(0)


def _glibc() -> ctypes.CDLL | None:
    libc = ctypes.CDLL(None)
    return libc if sys.platform == "linux" and hasattr(libc, "gnu_get_libc_version") else None


def _best() -> torch.device:
    index = cuda_support.best(cuda_support.build())
    if index is not None:
        return torch.device("cuda", index)
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def _check_cuda(device: torch.device) -> torch.device:
    """Return a CUDA device with its number. Raises `CheckpointError` if it can't be used."""
    build = cuda_support.build()
    index = (cuda_support.best(build) or 0) if device.index is None else device.index
    if index < len(build.cards):
        if fault := cuda_support.card_fault(build, index):
            raise fault
        return torch.device("cuda", index)
    if fault := cuda_support.fault(build):
        raise fault
    if build.cards:
        raise CheckpointError(
            f"{device} is not there: torch sees {len(build.cards)} CUDA device(s).", "See `fourstep doctor`."
        )
    if build.cuda is None:
        raise CheckpointError(
            f"torch {build.version} is not built for CUDA.", "Install torch's CUDA build, or use --device cpu."
        )
    raise CheckpointError(
        f"torch sees no CUDA device: {build.words}.", "Check the driver with `fourstep doctor`, or use --device cpu."
    )
