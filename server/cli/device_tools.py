"""`pull`, `doctor` and `bench` run as programs of `pipelines`, so that this side never imports torch."""

import subprocess
import sys

import msgspec

from server.settings import Settings


def run(tool: str, settings: Settings, *arguments: str) -> int:
    """Run the tool on this terminal; its exit status."""
    config = msgspec.json.encode(settings.engine).decode()
    return subprocess.call([sys.executable, "-P", "-m", "pipelines.tools", tool, "--config", config, *arguments])
