"""`fourstep pull`, `doctor` and `bench`: programs of `pipelines.tools`, so that this process never imports torch."""

import signal
import subprocess
import sys

import msgspec

from server.environment import child_environment
from server.settings import Settings, SettingsError
from server.transport.takeover import HOSTS_FILE_NAMES
from server.workers.launch import ENVIRONMENT


def pull(settings: Settings) -> int:
    """Fetch the weights; afterwards no network is needed."""
    return _run("pull", settings)


def doctor(settings: Settings) -> int:
    """Check driver, memory, disk, weights, port, certificates and the hosts file."""
    names = ",".join(HOSTS_FILE_NAMES)
    return _run("doctor", settings, "--port", str(settings.port), "--names", names, "--host", *settings.addresses)


def bench(settings: Settings, requests: int | None, clients: int, seconds: int) -> int:
    """Measure this machine: by a number of requests, or else for some seconds."""
    length = f"--requests={requests}" if requests else f"--seconds={seconds}"
    return _run("bench", settings, length, f"--clients={clients}")


def every_device(settings: Settings) -> str:
    """Return the devices that `all` means, by commas. Raises `SettingsError` if torch can't say."""
    done = subprocess.run(
        _command("devices", settings), env=child_environment(**ENVIRONMENT), capture_output=True, text=True, check=False
    )
    if done.returncode or not done.stdout.strip():
        why = (done.stderr.strip().splitlines() or [f"status {done.returncode}"])[-1]
        raise SettingsError(f"--device all: torch can't say what is there ({why}). Hint: name them, as cuda:0,cuda:1")
    return done.stdout.split()[-1]


def _run(tool: str, settings: Settings, *arguments: str) -> int:
    """Run the tool on this terminal, in an engine's environment, and return its exit status."""
    signal.signal(signal.SIGINT, lambda *_: None)  # Ctrl-C reaches the tool too, which says what there is and ends
    return subprocess.call([*_command(tool, settings), *arguments], env=child_environment(**ENVIRONMENT))


def _command(tool: str, settings: Settings) -> list[str]:
    config = msgspec.json.encode(settings.engine).decode()
    return [sys.executable, "-P", "-m", "pipelines.tools", tool, "--config", config]
