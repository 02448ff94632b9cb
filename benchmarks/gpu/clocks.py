"""Clocks, power and temperature of the GPU beside every section: a card that was throttled explains a slow figure."""

import contextlib
import statistics
import subprocess
import sys
import threading

FIELDS = {
    "sm_mhz": "clocks.sm",
    "memory_mhz": "clocks.mem",
    "watts": "power.draw",
    "celsius": "temperature.gpu",
    "memory_mb": "memory.used",
}
TOLD_EVERY_MS = 500
# In a dry run, what a card would say.
PRETENDED = "import time\nwhile True:\n    print('1980, 2619, 412.5, 61, 9000', flush=True)\n    time.sleep(0.05)"


class Clocks:
    """A context in which nvidia-smi tells about the first GPU twice a second."""

    def __init__(self, *, dry):
        asked = ",".join(FIELDS.values())
        self._command = ["nvidia-smi", "--id=0", f"--query-gpu={asked}", "--format=csv,noheader,nounits"]
        self._command.append(f"--loop-ms={TOLD_EVERY_MS}")
        if dry:
            self._command = [sys.executable, "-S", "-c", PRETENDED]
        self._rows, self._process = [], None

    def __enter__(self):
        with contextlib.suppress(FileNotFoundError):  # figures without clocks are worth having
            self._process = subprocess.Popen(self._command, stdout=subprocess.PIPE, text=True)
            threading.Thread(target=self._read, daemon=True).start()
        return self

    def __exit__(self, *exception):
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    @contextlib.contextmanager
    def beside(self, found):
        """Add the least, the median and the largest of each figure within the context to a section's findings."""
        begun = len(self._rows)
        yield
        columns = zip(*self._rows[begun:], strict=True)
        if self._process is None:
            found["clocks"] = "nvidia-smi is not here"
        elif rows := list(columns):
            found["clocks"] = {
                name: [min(values), statistics.median(values), max(values)]
                for name, values in zip(FIELDS, rows, strict=True)
            }

    def _read(self):
        for line in self._process.stdout:
            with contextlib.suppress(ValueError):  # "[N/A]" of a card that does not tell
                values = [float(value) for value in line.split(",")]
                if len(values) == len(FIELDS):
                    self._rows.append(values)
