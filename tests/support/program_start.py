"""`python -m NAME ARGUMENTS…` in a process of its own which has imported torch, diffusers and transformers already.

Importing them takes ten seconds of processor each time: processes are forked from one that has, as `multiprocessing`'s
fork server does it. Nothing of this repository is in that one.
"""

import multiprocessing
import os
import runpy
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
SLOW_IMPORTS = [
    "torch",
    "transformers.models.clip",
    "diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion_img2img",
]


def start(name: str, *arguments: str, output: Path, errors: Path | None = None) -> int | None:
    """Run the program to its end, stdout to a file and stderr to `errors` or the same; its exit status."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(SLOW_IMPORTS)
    process = context.Process(target=_run, args=(name, arguments, output, errors))
    process.start()
    process.join()
    return process.exitcode


def _run(name: str, arguments: tuple[str, ...], output: Path, errors: Path | None) -> None:
    for stream, path in ((sys.stdout, output), (sys.stderr, errors or output)):
        stream.flush()
        with path.open("ab") as file:
            os.dup2(file.fileno(), stream.fileno())
    os.chdir(ROOT)
    sys.argv = [name, *arguments]
    runpy.run_module(name, run_name="__main__", alter_sys=True)
