"""A contender in a process of its own, and the lines of JSON that it and this program exchange.

    → {"stage": "unet", "side": 512, "save": null}    one call; "save": a file for its result
    ← {"wall_s": 5.1, "cpu_s": 5.0}                   user and system seconds of the whole process
    ← {"refused": "why this contender has no such figure"}
    → {"stage": "memory"}
    ← {"peak_gb": 5.9, "own_gb": 0.5}

The first line comes from the child: what it loaded, and what that took since its process began. The first call of a
stage and side prepares the inputs, outside of what is measured. The child ends at the end of its input. What libraries
print goes to standard error.
"""

import contextlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.harness.process import memory

ROOT = Path(__file__).parents[2]


class Refused(Exception):
    """A figure that this contender cannot honestly give."""


class Failed(Exception):
    """A contender which ended early, or computes something else than the other."""


class Child:
    """The parent's end. `loaded`: the child's first line. Raises `Failed` when it ends early."""

    def __init__(self, spec, environment):
        threads = {"OMP_NUM_THREADS": str(spec["threads"])}
        command = [sys.executable, "-m", "benchmarks.peers", "--child", json.dumps(spec)]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        self.name = spec["contender"]
        self._process = subprocess.Popen(command, cwd=ROOT, env=environment | threads, text=True, **pipes)
        self.loaded = self._read()

    def call(self, stage, side=0, save=None):
        with contextlib.suppress(BrokenPipeError):  # its end shows where its answer is missing
            self._process.stdin.write(json.dumps({"stage": stage, "side": side, "save": save}) + "\n")
            self._process.stdin.flush()
        return self._read()

    def close(self):
        """End the process and wait for its end."""
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()

    def _read(self):
        line = self._process.stdout.readline()
        if not line:
            raise Failed(f"{self.name} ended with status {self._process.wait()}; its last words are above")
        return json.loads(line)


def ask(spec, environment):
    """Return the first line of a child that does one thing."""
    asked = Child(spec, environment)
    asked.close()
    return asked.loaded


def run(spec):
    """The child's end."""
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    if spec["contender"] in FILES:
        _say(answers, FILES[spec["contender"]](spec))
    else:
        _serve(spec, answers)


def _write_weights(spec):
    from benchmarks.harness import fake_weights

    fake_weights.write(Path(spec["folder"]))
    return {}


def _write_taesd(spec):
    from benchmarks.gpu.random_weights import TINY_VAE
    from tests.support import checkpoint_layouts

    checkpoint_layouts.write_part(Path(spec["taesd"]).parent, "vae", TINY_VAE)
    return {}


def _convert(spec):
    from benchmarks.peers import openvino_contender

    return openvino_contender.convert(spec)


# What a child may write instead of contending; its answer says what that took.
FILES = {"weights": _write_weights, "taesd": _write_taesd, "conversion": _convert}


def _serve(spec, answers):
    """Load the contender of `spec`, then answer until the end of the input."""
    begun = time.perf_counter()
    from benchmarks.peers import contenders

    contender = contenders.load(spec)
    took = {"wall_s": time.perf_counter() - begun, "cpu_s": time.process_time()}
    _say(answers, contender.told | took)
    calls = {}
    for line in sys.stdin:
        wanted = json.loads(line)
        _say(answers, memory("self") if wanted["stage"] == "memory" else _measure(contender, calls, **wanted))


def _measure(contender, calls, stage, side, save):
    """Call a stage once; keep what it returned as `save`.npy if that is given."""
    try:
        if (stage, side) not in calls:
            calls[stage, side] = contender.prepare(stage, side)
        wall, cpu = time.perf_counter(), time.process_time()
        result = calls[stage, side]()
        took = {"wall_s": time.perf_counter() - wall, "cpu_s": time.process_time() - cpu}
    except Refused as refusal:
        return {"refused": str(refusal)}
    if save:
        import numpy as np

        np.save(save, np.asarray(result, dtype=np.float32))
    return took


def _say(answers, message):
    answers.write(json.dumps(message) + "\n")
    answers.flush()
