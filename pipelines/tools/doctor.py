"""What a server on this machine depends on, judged: one line each, and a hint where something is wrong.

Every check is a function from what it looks at to a `Finding`. None leaves anything or reaches beyond this machine.
"""

import datetime
import enum
import math
import socket
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec
import torch
from cryptography import x509

from pipelines.device import advice, cuda_support, devices, dtypes
from pipelines.device.devices import main_memory, pick_device
from pipelines.errors import NotOnDiskError, SetupError
from pipelines.hub import client, manifest
from pipelines.hub.download import gigabytes
from pipelines.messages import EngineConfig
from pipelines.model.kernels import instructions
from pipelines.tools import probes
from pipelines.weights import checkpoint

# Bytes from which an autoencoder's file is no tiny one: Stable Diffusion's has 167 MB in 16 bits, TAESD's 10 in 32.
_HEAVY_VAE_BYTES = 50e6

# What a model in 16 bits and 8 pictures of 512×512 at once take.
_BATCH_BYTES = 8e9


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


def examine(config: EngineConfig, addresses: Sequence[str], port: int, names: Collection[str]) -> Iterator[Finding]:
    """Yield all findings, in the order in which things are needed. `config.device` may be a comma-separated list.

    `names`: the host names that a takeover sends to the server.
    """
    build, system = cuda_support.build(), cuda_support.system()
    fault = cuda_support.fault(build, lambda: system)
    wanted = config.device not in {"cpu", "mps"} and checkpoint.is_full_size(config)
    level = Level.FAIL if wanted else Level.WARN
    yield driver(system, fault, level)
    yield torch_build(build, fault, level)
    for name in config.device.split(","):
        yield device(name.strip(), config)
    small = config.model == "demo" or takes_the_demo(config)
    yield memory(main_memory(), needs_gigabytes=2 if small else 6)
    yield disk("data folder", Path(config.data_dir), needs_gigabytes=1)
    yield weights(config)
    yield listening(addresses, port)
    yield clock()
    yield certificates(Path(config.data_dir) / "tls", datetime.datetime.now(datetime.UTC))
    yield hosts_file(probes.hosts_file(), names)


def driver(system: cuda_support.System, fault: cuda_support.CardError | None, level: Level) -> Finding:
    """Judge the NVIDIA driver. `fault`: why no card can be used, and `level`: how bad that is."""
    if fault and not fault.of_torch:
        return Finding(level, "driver", fault.reason, fault.hint)
    if not system.cards:
        return Finding(Level.OK, "driver", "no NVIDIA device in this machine")
    version = f", driver {system.driver}" if system.driver else ""
    return Finding(Level.OK, "driver", f"{', '.join(system.cards)}{version}")


def torch_build(build: cuda_support.Build, fault: cuda_support.CardError | None, level: Level) -> Finding:
    """Judge whether this torch can drive this machine's cards. `fault` and `level` as for `driver`."""
    if fault and fault.of_torch:
        return Finding(level, "torch", fault.reason, fault.hint)
    for index in range(len(build.cards)):  # one of several
        if one := cuda_support.card_fault(build, index):
            return Finding(Level.WARN, "torch", one.reason, one.hint)
    line = f"torch {build.version}" + (f", CUDA {build.cuda}" if build.cuda else "")
    return Finding(Level.OK, "torch", line)


def takes_the_demo(config: EngineConfig) -> bool:
    """Return whether `auto` takes the built-in model here: without an accelerator it fetches nothing."""
    if config.model != "auto" or checkpoint.is_full_size(config):
        return False
    try:
        return devices.first(config).type == "cpu"
    except SetupError:  # judged as a device
        return False


def device(name: str, config: EngineConfig) -> Finding:
    """Judge one device that engines are to use, its number format, and its free memory or instruction sets."""
    try:
        found = pick_device(name)
        config = msgspec.structs.replace(config, device=name)
        if takes_the_demo(config):
            config = msgspec.structs.replace(config, model="demo")
        devices.ask_machine(config, keep=False)
        _, dtype = dtypes.pick(config)
    except SetupError as error:
        return Finding(Level.FAIL, "device", error.reason, error.hint)
    kind = str(dtype).removeprefix("torch.")
    if found.type == "cpu":
        return Finding(Level.OK, "device", f"{found} ({instructions.names()}), {kind}", advice.emulated(found, dtype))
    if found.type != "cuda":
        return Finding(Level.OK, "device", f"{found}, {kind}")
    free, total = torch.cuda.mem_get_info(found)
    line = f"{found}, {kind}, {gigabytes(free)} of {gigabytes(total)} free"
    if free < _BATCH_BYTES:
        return Finding(Level.WARN, "device", line, _little_memory(total))
    return Finding(Level.OK, "device", line)


def _little_memory(total: float) -> str:
    """Return a hint for a card of `total` bytes that has too few free for a full batch."""
    if total >= _BATCH_BYTES:
        return "stop other programs that use it: 8 pictures of 512×512 at once want about 8 GB; with less, fewer go"
    return (
        "8 pictures of 512×512 at once want about 8 GB; with less, fewer go. --vae tiny and --safety-checker none"
        " leave more room"
    )


def memory(available: float, *, needs_gigabytes: float) -> Finding:
    """Judge the bytes of main memory that are free or can be freed: infinite where the system does not tell."""
    if math.isinf(available):
        return Finding(Level.OK, "memory", "not measured on this system")
    line = f"{gigabytes(available)} available"
    if available < needs_gigabytes * 1e9:
        return Finding(Level.WARN, "memory", line, f"an engine may need {needs_gigabytes} GB")
    return Finding(Level.OK, "memory", line)


def disk(subject: str, folder: Path, *, needs_gigabytes: float) -> Finding:
    """Judge where `folder` is or will be: whether this user may write there, and the free space."""
    if fault := probes.write_fault(folder):
        hint = "let this user write there, or choose another place with --data-dir"
        return Finding(Level.FAIL, subject, f"{folder} can't be written ({fault})", hint)
    free = probes.free_bytes(folder)
    line = f"{gigabytes(free)} free for {folder}"
    if free < needs_gigabytes * 1e9:
        return Finding(Level.FAIL, subject, line, "make room, or choose another place with --data-dir")
    return Finding(Level.OK, subject, line)


def weights(config: EngineConfig) -> Finding:
    """Judge whether what the configuration needs is on disk."""
    if config.model == "demo" or config.model.startswith("instant"):
        return Finding(Level.OK, "weights", f"{config.model}: built in")
    if takes_the_demo(config):
        hint = "`fourstep pull` fetches the real ones"
        return Finding(Level.OK, "weights", "none: without an accelerator auto takes the built-in demo model", hint)
    try:
        found, dtype = dtypes.pick(config)
        plan = checkpoint.on_disk(config, half=dtype.itemsize == 2)
    except SetupError as error:
        free = gigabytes(probes.free_bytes(client.cache_folder()))
        hint = f"{error.hint} ({free} free in {client.cache_folder()})"
        if config.model == "auto" and isinstance(error, NotOnDiskError):
            return Finding(Level.WARN, "weights", f"{error.reason} The first start fetches them.", hint)
        return Finding(Level.FAIL, "weights", error.reason, hint)
    size = sum(files.size for files in plan.files()) + (plan.single_file.stat().st_size if plan.single_file else 0)
    heavy_vae = plan.vae is None or plan.vae.size > _HEAVY_VAE_BYTES
    hint = advice.TINY_VAE if found.type == "cpu" and heavy_vae else ""
    return Finding(Level.OK, "weights", f"{plan.name}, {gigabytes(size)}{_omissions(plan)}", hint)


def listening(addresses: Sequence[str], port: int) -> Finding:
    """Judge whether the server's port is free on each address, or taken by a fourstep that is running.

    An address after the first may be none of this machine: ::1 where there is no IPv6.
    """
    first, *others = addresses
    found = [_listening(first, port), *(_listening(address, port) for address in others if _is_here(address))]
    return next((finding for finding in found if finding.level is Level.FAIL), found[0])


def _is_here(address: str) -> bool:
    try:
        _bind(address, 0)
    except OSError:
        return False
    return True


def _bind(address: str, port: int) -> None:
    with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind((address, port))


def _listening(host: str, port: int) -> Finding:
    try:
        _bind(host, port)
    except PermissionError:
        return Finding(
            Level.FAIL, "port", f"{port} may be opened by root only", "use a port from 1024 on, or see the README"
        )
    except OSError as error:
        if state := probes.server_state(host, port):
            return Finding(Level.OK, "port", f"{port}: a fourstep is running there, {state}")
        return Finding(Level.FAIL, "port", f"{host}:{port}: {error.strerror}", "stop what uses it, or choose --port")
    return Finding(Level.OK, "port", f"{host}:{port} is free")


def clock() -> Finding:
    """Judge the clock: tokens and webhook signatures are worth nothing with a wrong one."""
    now = datetime.datetime.now(datetime.UTC)
    line = f"{now:%Y-%m-%d %H:%M:%S} UTC"
    if now.year < 2025:
        return Finding(Level.FAIL, "clock", f"{line} can't be", "set it: `timedatectl set-ntp true`")
    if probes.clock_is_adrift():
        return Finding(Level.WARN, "clock", f"{line}, not synchronised", "`timedatectl set-ntp true`")
    return Finding(Level.OK, "clock", line)


def certificates(folder: Path, now: datetime.datetime) -> Finding:
    """Judge the local CA and its certificates, if there are any: in date, keys readable by their owner alone."""
    try:
        made = (folder / "ca.pem").exists()
    except OSError as error:
        line = f"{folder} can't be read ({error.strerror})"
        return Finding(Level.FAIL, "certificates", line, "let this user read it, or choose another --data-dir")
    if not made:
        return Finding(Level.OK, "certificates", "none yet: `fourstep certs` or --tls-port makes them")
    open_keys = [key.name for key in folder.glob("*key.pem") if key.stat().st_mode & 0o077]
    if open_keys:
        names = ", ".join(open_keys)
        return Finding(Level.FAIL, "certificates", f"others can read {names}", f"chmod 600 {folder}/*key.pem")
    files = [path for name in ("ca.pem", "cert.pem", "cert-dns.pem") if (path := folder / name).exists()]
    ends = []
    for path in files:
        try:
            ends.append(x509.load_pem_x509_certificate(path.read_bytes()).not_valid_after_utc)
        except ValueError:
            line = f"{path} holds no certificate"
            return Finding(Level.WARN, "certificates", line, "`fourstep certs` makes it again")
    line = f"valid until {min(ends):%Y-%m-%d}"
    if min(ends) <= now:
        return Finding(Level.FAIL, "certificates", line, "`fourstep certs` makes new ones")
    return Finding(Level.OK, "certificates", line)


def hosts_file(path: Path, names: Collection[str]) -> Finding:
    """Judge which of these host names the hosts file at `path` has: all or none, else calls to the others leave.

    All are to have the same addresses, of a server inside.
    """
    there = probes.addresses_in(path)
    missing = [name for name in names if name not in there]
    if len(missing) == len(names):
        return Finding(
            Level.OK, "hosts file", f"{path} has none of fal's {len(names)} names; `fourstep hosts` prints them"
        )
    if missing:
        line = f"{path} lacks {', '.join(missing)}: calls to them leave this machine, with their key"
        return Finding(Level.WARN, "hosts file", line, "add the lines that `fourstep hosts` prints")
    addresses = set[probes.Address]().union(*(there[name] for name in names))
    strange = [str(address) for address in addresses if address.is_global or address.is_unspecified]
    hint = "replace their lines by those that `fourstep hosts --address` prints"
    if strange:
        line = f"{path} sends fal's names to {', '.join(sorted(strange))}: no address inside your network"
        return Finding(Level.WARN, "hosts file", line, hint)
    if any(there[name] != addresses for name in names):
        line = f"{path} sends fal's names to different addresses: {', '.join(sorted(map(str, addresses)))}"
        return Finding(Level.WARN, "hosts file", line, hint)
    return Finding(Level.OK, "hosts file", f"{path} has all of fal's {len(names)} names")


def _omissions(plan: manifest.Manifest) -> str:
    left_out = [name for name in ("lora", "safety_checker") if getattr(plan, name) is None]
    return f" (without {', '.join(left_out).replace('_', ' ')})" if left_out else ""
