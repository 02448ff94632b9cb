"""How the server starts engine processes: the command, and the environment that their libraries read."""

import sys
from collections.abc import Sequence

from server.environment import child_environment
from server.workers.process import Launch, ProcessTimes

COMMAND = (sys.executable, "-P", "-m", "pipelines.worker")

# For the libraries in an engine process: cuda:N counts as nvidia-smi does, no telemetry, and torch asks for large
# pages, where Linux has them on request: a full-size model has a million small ones, and making those takes seconds.
ENVIRONMENT = {
    "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
    "DISABLE_TELEMETRY": "1",
    "DO_NOT_TRACK": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "THP_MEM_ALLOC_ENABLE": "1",
    "TOKENIZERS_PARALLELISM": "false",  # prompts are short: its threads would only compete with torch's
}


def launch(command: Sequence[str], patience_s: float, times: ProcessTimes) -> Launch:
    """Return how engines are started and watched."""
    return Launch(command=command, environment=child_environment(**ENVIRONMENT), patience_s=patience_s, times=times)
