"""Looks at everything that a server on this machine depends on: one line each, and what to do about it.

Every check is a function from what it looks at to a `Finding`; none changes anything, none reaches beyond this machine.
"""

import ctypes
import datetime
import enum
import http.client
import json
import math
import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from cryptography import x509

from pipelines.device.devices import main_memory, pick, pick_device
from pipelines.errors import CheckpointError
from pipelines.hub import client, manifest
from pipelines.hub.download import gigabytes
from pipelines.messages import EngineConfig
from pipelines.weights import checkpoint


class Level(enum.Enum):
    """How bad it is. Only FAIL keeps a server from working."""

    OK = "OK"
    WARN = "WARN"
    FAIL = "FAIL"


class Finding(NamedTuple):
    """What a check found: a short subject, one line, and a hint ("" where nothing needs one)."""

    level: Level
    subject: str
    line: str
    hint: str = ""

    def __str__(self) -> str:
        line = f"{self.level.value:<5} {self.subject:<13} {self.line}"
        return f"{line}\n{'':<19} → {self.hint}" if self.hint else line


def examine(config: EngineConfig, host: str, port: int) -> Iterator[Finding]:
    """All findings, in the order in which things are needed. `config.device` may be a comma-separated list."""
    cards = graphics_cards()
    yield driver(cards, unclaimed_nvidia(Path("/sys/bus/pci/devices")))
    yield torch_build(bool(cards))
    for name in config.device.split(","):
        yield device(name.strip())
    yield memory(main_memory(), needs_gigabytes=2 if config.model == "demo" else 6)
    yield disk("data folder", Path(config.data_dir), needs_gigabytes=1)
    yield weights(config)
    yield listening(host, port)
    yield clock()
    yield certificates(Path(config.data_dir) / "tls", datetime.datetime.now(datetime.UTC))


def graphics_cards() -> list[str]:
    """Name, driver and memory of each NVIDIA device, as its driver tells; empty without a working driver."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return []
    query = [program, "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]
    try:
        answer = subprocess.run(query, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return []
    return [line.strip() for line in answer.stdout.splitlines() if line.strip()]


def unclaimed_nvidia(devices: Path) -> bool:
    """Whether a PCI display device of NVIDIA is in this machine (Linux's `devices`), whatever its driver does."""
    for entry in devices.glob("*"):
        vendor, kind = entry / "vendor", entry / "class"
        if vendor.is_file() and vendor.read_text().strip() == "0x10de" and kind.read_text().startswith("0x03"):
            return True
    return False


def driver(cards: list[str], hardware: bool) -> Finding:  # noqa: FBT001 (two facts, named at the call)
    """The NVIDIA driver: there if the hardware is."""
    if cards:
        return Finding(Level.OK, "driver", "; ".join(cards))
    if hardware:
        return Finding(
            Level.FAIL,
            "driver",
            "an NVIDIA device is in this machine, but its driver does not answer",
            "install NVIDIA's driver, or start it again: `nvidia-smi` must list the device "
            "(in a container: `docker run --gpus all`)",
        )
    return Finding(Level.OK, "driver", "no NVIDIA device in this machine")


def torch_build(has_cards: bool) -> Finding:  # noqa: FBT001
    """Whether this torch can drive this machine's devices."""
    build = f"torch {torch.__version__}"
    if not has_cards:
        return Finding(Level.OK, "torch", build)
    if torch.version.cuda is None:
        return Finding(
            Level.FAIL, "torch", f"{build} is built for the CPU only", "install torch's CUDA build: `make install`"
        )
    if not torch.cuda.is_available():
        return Finding(
            Level.FAIL, "torch", f"{build} sees no device", f"its CUDA {torch.version.cuda} needs a newer driver"
        )
    kinds = torch.cuda.get_arch_list()
    for index in range(torch.cuda.device_count()):
        if not runs_on(kinds, torch.cuda.get_device_capability(index)):
            name = torch.cuda.get_device_name(index)
            return Finding(
                Level.FAIL,
                "torch",
                f"{build} has no code for {name} (it has {' '.join(kinds)})",
                "install a torch build for this device",
            )
    return Finding(Level.OK, "torch", f"{build}, CUDA {torch.version.cuda}")


def runs_on(kinds: list[str], capability: tuple[int, int]) -> bool:
    """Whether code built for `kinds` (sm_80, compute_90, …) runs on a device of that compute capability.

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


def device(name: str) -> Finding:
    """One device that engines are to use, and its free memory."""
    try:
        found = pick_device(name)
    except CheckpointError as error:
        return Finding(Level.FAIL, "device", error.reason, error.hint)
    if found.type != "cuda":
        return Finding(Level.OK, "device", str(found))
    free, total = torch.cuda.mem_get_info(found)
    line = f"{found}, {gigabytes(free)} of {gigabytes(total)} free"
    if free < 5e9:
        return Finding(Level.WARN, "device", line, "stop other programs that use it; a batch of 8 takes about 5 GB")
    return Finding(Level.OK, "device", line)


def memory(available: float, *, needs_gigabytes: float) -> Finding:
    """Bytes of main memory that are free or can be freed; infinitely many where the system does not tell."""
    if math.isinf(available):
        return Finding(Level.OK, "memory", "not measured on this system")
    line = f"{gigabytes(available)} available"
    if available < needs_gigabytes * 1e9:
        return Finding(Level.WARN, "memory", line, f"an engine may need {needs_gigabytes} GB")
    return Finding(Level.OK, "memory", line)


def disk(subject: str, folder: Path, *, needs_gigabytes: float) -> Finding:
    """Free space where `folder` is or will be."""
    free = shutil.disk_usage(_existing(folder)).free
    line = f"{gigabytes(free)} free for {folder}"
    if free < needs_gigabytes * 1e9:
        return Finding(Level.FAIL, subject, line, "make room, or choose another place with --data-dir")
    return Finding(Level.OK, subject, line)


def weights(config: EngineConfig) -> Finding:
    """Whether what the configuration needs is on disk."""
    if config.model == "demo" or config.model.startswith("instant"):
        return Finding(Level.OK, "weights", f"{config.model}: built in")
    try:
        _, dtype = pick(config)
        plan = checkpoint.on_disk(config, half=dtype.itemsize == 2)
    except CheckpointError as error:
        free = gigabytes(shutil.disk_usage(_existing(client.cache_folder())).free)
        level = Level.WARN if config.model == "auto" else Level.FAIL
        return Finding(level, "weights", error.reason, f"{error.hint} ({free} free in {client.cache_folder()})")
    size = sum(files.size for files in plan.files()) + (plan.single_file.stat().st_size if plan.single_file else 0)
    return Finding(Level.OK, "weights", f"{plan.name}, {gigabytes(size)}{_omissions(plan)}")


def listening(host: str, port: int) -> Finding:
    """Whether the server's port is free, or taken by a fourstep that is running."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        with socket.socket(family) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
    except PermissionError:
        return Finding(
            Level.FAIL, "port", f"{port} may be opened by root only", "use a port from 1024 on, or see the README"
        )
    except OSError as error:
        if state := _health(host, port):
            return Finding(Level.OK, "port", f"{port}: a fourstep is running there, {state}")
        return Finding(Level.FAIL, "port", f"{host}:{port}: {error.strerror}", "stop what uses it, or choose --port")
    return Finding(Level.OK, "port", f"{host}:{port} is free")


def clock() -> Finding:
    """Tokens and webhook signatures are worth nothing with a wrong clock. Linux tells whether it is synchronised."""
    now = datetime.datetime.now(datetime.UTC)
    line = f"{now:%Y-%m-%d %H:%M:%S} UTC"
    if now.year < 2025:
        return Finding(Level.FAIL, "clock", f"{line} can't be", "set it: `timedatectl set-ntp true`")
    try:
        state = ctypes.CDLL(None).adjtimex(ctypes.create_string_buffer(512))  # modes 0: only asks
    except (OSError, AttributeError):
        return Finding(Level.OK, "clock", line)
    if state == 5:  # TIME_ERROR: not synchronised
        return Finding(Level.WARN, "clock", f"{line}, not synchronised", "`timedatectl set-ntp true`")
    return Finding(Level.OK, "clock", line)


def certificates(folder: Path, now: datetime.datetime) -> Finding:
    """The local CA and its certificate, if there are any: in date, and their keys readable by their owner alone."""
    if not (folder / "ca.pem").exists():
        return Finding(Level.OK, "certificates", "none yet: `fourstep certs` or --tls-port makes them")
    open_keys = [key.name for key in folder.glob("*key.pem") if key.stat().st_mode & 0o077]
    if open_keys:
        names = ", ".join(open_keys)
        return Finding(Level.FAIL, "certificates", f"others can read {names}", f"chmod 600 {folder}/*key.pem")
    files = [path for path in (folder / "ca.pem", folder / "cert.pem") if path.exists()]
    ends = [x509.load_pem_x509_certificate(path.read_bytes()).not_valid_after_utc for path in files]
    line = f"valid until {min(ends):%Y-%m-%d}"
    if min(ends) <= now:
        return Finding(Level.FAIL, "certificates", line, "`fourstep certs` makes new ones")
    return Finding(Level.OK, "certificates", line)


def _existing(folder: Path) -> Path:
    return next(parent for parent in (folder, *folder.parents) if parent.exists())


def _omissions(plan: manifest.Manifest) -> str:
    left_out = [name for name in ("lora", "safety_checker") if getattr(plan, name) is None]
    return f" (without {', '.join(left_out).replace('_', ' ')})" if left_out else ""


def _health(host: str, port: int) -> str:
    """The state of a fourstep on that port, or ""."""
    connection = http.client.HTTPConnection(host, port, timeout=2)
    try:
        connection.request("GET", "/health")
        return str(json.loads(connection.getresponse().read())["state"])
    except (OSError, http.client.HTTPException, ValueError, KeyError, TypeError):
        return ""
    finally:
        connection.close()
