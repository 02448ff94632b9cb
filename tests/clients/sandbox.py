"""A corner of this machine with its own hosts file, its own loopback and no way out.

Inside, fal's host names lead to 127.0.0.1, port 443 is free to bind, and no packet can leave: what works there needs no
network. Made of Linux namespaces (util-linux's `unshare` and `nsenter`); nothing outside is touched.
"""

import contextlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

# Runs inside: brings the loopback up, puts the hosts file over the machine's, and waits for the end of its stdin.
_INSIDE = """
import fcntl, socket, struct, subprocess, sys
SIOCSIFFLAGS, IFF_UP = 0x8914, 0x1
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
    fcntl.ioctl(control, SIOCSIFFLAGS, struct.pack("16sh14x", b"lo", IFF_UP))
subprocess.run(["mount", "--bind", sys.argv[1], "/etc/hosts"], check=True)
print("ready", flush=True)
sys.stdin.read()
"""


class SandboxError(RuntimeError):
    """This machine gives no namespaces."""


class Sandbox:
    """Namespaces held open by a child process."""

    def __init__(self, pid: int, flags: Sequence[str]) -> None:
        self._enter = ["nsenter", "--target", str(pid), *flags, "--"]

    def wrap(self, command: Sequence[str]) -> list[str]:
        """The command that runs `command` inside; its process id and signals are those of `command`."""
        return [*self._enter, *command]

    def run(self, code: str, *arguments: str) -> str:
        """What a few lines of Python print inside."""
        command = self.wrap([sys.executable, "-c", code, *arguments])
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout


@contextlib.contextmanager
def sandbox(hosts: str) -> Iterator[Sandbox]:
    """A sandbox whose hosts file is `hosts`. Raises `SandboxError` where the kernel gives none."""
    namespaces = ["--mount", "--net"]
    make, enter = namespaces, namespaces
    if os.geteuid() != 0:
        make = ["--user", "--map-root-user", *namespaces]
        enter = ["--user", "--preserve-credentials", *namespaces]
    with tempfile.TemporaryDirectory() as directory:
        file = Path(directory) / "hosts"
        file.write_text(f"127.0.0.1 localhost\n::1 localhost\n{hosts}")
        command = ["unshare", *make, "--", sys.executable, "-c", _INSIDE, str(file)]
        try:
            holder = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        except FileNotFoundError as error:
            raise SandboxError("there is no unshare") from error
        with holder:
            assert holder.stdin is not None
            assert holder.stdout is not None
            assert holder.stderr is not None
            if holder.stdout.readline() != b"ready\n":
                raise SandboxError(holder.stderr.read().decode().strip())
            try:
                yield Sandbox(holder.pid, enter)
            finally:
                holder.stdin.close()
