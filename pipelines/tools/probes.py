"""Facts about this machine that `doctor` judges. Nothing is left behind, and nothing beyond this machine is asked."""

import ctypes
import http.client
import ipaddress
import json
import shutil
import sys
import tempfile
from pathlib import Path
from typing import TypeAlias

_BLOCK = 4096  # bytes: what a file system gives out, so that a full disk shows

Address: TypeAlias = ipaddress.IPv4Address | ipaddress.IPv6Address


def free_bytes(folder: Path) -> int:
    """Return the free space where `folder` is or will be."""
    return shutil.disk_usage(_nearest(folder)).free


def write_fault(folder: Path) -> str:
    """Return why this user can't write where `folder` is or will be, in the system's words; "" if that works."""
    try:
        with tempfile.TemporaryFile(dir=_nearest(folder)) as file:
            file.write(bytes(_BLOCK))
            file.flush()
    except OSError as error:
        return error.strerror or type(error).__name__
    return ""


def _nearest(folder: Path) -> Path:
    """Return the folder, or the nearest one above it that there is."""
    return next(path for path in (folder, *folder.parents) if _is_there(path))


def _is_there(path: Path) -> bool:
    try:
        path.stat()
    except OSError:  # also what this user may not look at
        return False
    return True


def clock_is_adrift() -> bool:
    """Return whether Linux says that the clock is not synchronised; False where the system does not tell."""
    try:
        state: int = ctypes.CDLL(None).adjtimex(ctypes.create_string_buffer(512))  # modes 0: only asks
    except (OSError, AttributeError):
        return False
    return state == 5  # TIME_ERROR


def hosts_file() -> Path:
    """Return where this system has its hosts file."""
    return Path(r"C:\Windows\System32\drivers\etc\hosts" if sys.platform == "win32" else "/etc/hosts")


def addresses_in(hosts: Path) -> dict[str, set[Address]]:
    """Return the addresses of each name in a hosts file, in lower case; of none where that can't be read."""
    found: dict[str, set[Address]] = {}
    try:
        lines = hosts.read_text("utf-8", "replace").splitlines()
    except OSError:
        return found
    for line in lines:
        first, *names = line.partition("#")[0].split() or [""]
        try:
            address = ipaddress.ip_address(first)
        except ValueError:  # the system passes over such a line too
            continue
        for name in names:
            found.setdefault(name.lower(), set()).add(address)
    return found


def server_state(host: str, port: int) -> str:
    """Return the state of a fourstep on that port, or ""."""
    connection = http.client.HTTPConnection(host, port, timeout=2)
    try:
        connection.request("GET", "/health")
        return str(json.loads(connection.getresponse().read())["state"])
    except (OSError, http.client.HTTPException, ValueError, KeyError, TypeError):
        return ""
    finally:
        connection.close()
