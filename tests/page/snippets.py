"""The page's snippets, as its own functions write them, run as a user would who has copied them."""

import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from tests.clients.kit import JS, install_javascript, node
from tests.support.server_process import clean_env

MODULE = Path(__file__).parents[2] / "server/static/page/code/snippets.js"
BEACH = MODULE.parents[2] / "beach.jpg"
VALUES = {
    "prompt": 'a "beach", it\'s $HOME `date` \\n \\\nEND\n😀 true',
    "negative_prompt": "fog",
    "strength": 0.8,
    "num_inference_steps": 3,
    "guidance_scale": 1.5,
    "seed": 4_294_967_295,
    "num_images": 1,
    "enable_safety_checks": False,
}
ALL = [
    *(("JavaScript", call) for call in ("run", "queue", "stream", "realtime")),
    *(("Python", call) for call in ("run", "queue", "stream", "realtime")),
    *(("curl", call) for call in ("run", "queue", "stream")),
]


def evaluated(expression, **given):
    """What the module's exports make of `given`, as JSON."""
    source = (
        f"import * as module from {json.dumps(MODULE.as_uri())};"
        f"const {{ snippet, placeOf, CALLS }} = module, given = {json.dumps(given)};"
        f"console.log(JSON.stringify({expression}))"
    )
    done = subprocess.run([node(), "--input-type=module", "-e", source], capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def snippet(language, call, document, base, *, keys=False, picture="file", way="address", values=VALUES):
    """A snippet of the server with this document, at `base`."""
    choice = {"language": language, "call": call, "picture": picture, "way": way}
    given = {"choice": choice, "values": values, "document": document, "base": base, "keys": keys}
    place = "placeOf(given.document, given.base, given.keys)"
    return evaluated(f"snippet(given.choice, given.values, {place})", **given)


def saved(program: str, folder: Path) -> str:
    """Save a program under the name that its first line gives, and return that."""
    name = program.split()[1].removesuffix(":")
    assert name in {"picture.py", "picture.mjs"}, program.splitlines()[0]
    (folder / name).write_text(program)
    return name


def run(
    text: dict[str, str], language: str, folder: Path, wrap: Callable[[Sequence[str]], list[str]] = list, **env: str
) -> "subprocess.CompletedProcess[str]":
    """Paste a snippet: the lines for the shell, then the program, beside a picture."""
    (folder / "input.jpg").write_bytes(BEACH.read_bytes())
    if language == "curl":
        command = text["program"]
    elif language == "Python":
        command = f"{sys.executable} {saved(text['program'], folder)}"
    else:
        install_javascript()
        (folder / "node_modules").symlink_to(JS / "node_modules")
        command = f"{node()} {saved(text['program'], folder)}"
    return subprocess.run(
        wrap(["env", f"--chdir={folder}", "bash", "-c", f"{text['setup']}{command}"]),
        env=clean_env(env),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
