"""`fourstep demo`: a server, one request through fal's own client, a picture, and where the time went."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from server.cli.arguments import MODEL_SETTINGS
from server.cli.launcher import LaunchError, Server, running
from server.data_dir import prepare
from server.environment import child_environment
from server.outbound.fetch import SAMPLES
from server.settings import Settings

_EXAMPLE = Path(__file__).with_name("example_client.py")

# Fetching the real weights for the first time takes as long as the network needs.
_READY_TIMEOUT_S = 3600.0
# Stable Diffusion itself takes one or two minutes for a picture on two cores.
_ANSWER_TIMEOUT_S = 600.0


def run(settings: Settings, output: str, *, answer_timeout_s: float = _ANSWER_TIMEOUT_S) -> int:
    """Serve, ask, save, stop; return the exit code. A fault is written to stderr, with a hint."""
    if importlib.util.find_spec("fal_client") is None:
        return _fail("fal's Python client is not installed. Hint: pip install 'fourstep[demo]'")
    if fault := _unwritable(Path(output).absolute()):
        return _fail(f"--output: {fault}")
    flags = [f"--{name.replace('_', '-')}={getattr(settings, name)}" for name in MODEL_SETTINGS]
    # The request's picture is ours whatever the model: with the weights on disk no network is needed.
    flags += ["--tls-port=0", "--url-files=" + ",".join(f"{url}={file}" for url, file in SAMPLES.items())]
    prepare(settings.data_dir)
    data_dir = settings.data_dir / "demo-server"
    prepare(data_dir)
    log_path = data_dir / "log"
    try:
        with (
            log_path.open("wb") as log,
            running(data_dir, *flags, ready=False, env=child_environment(), log=log) as server,
        ):
            server.wait_ready(_READY_TIMEOUT_S, show=_say)
            notice = server.get("/health").get("notice")
            if notice:
                _say(notice)
            result = _ask(server, output, answer_timeout_s)
    except LaunchError as error:
        return _fail(f"{error}\nThe server's log: {log_path}")
    except subprocess.TimeoutExpired:
        return _fail(f"no picture within {answer_timeout_s:.0f} s.\nThe server's log: {log_path}")
    except subprocess.CalledProcessError as error:
        return _fail(f"the client failed:\n{error.stderr}\nThe server's log: {log_path}")
    _report(result, Path(output))
    _say("Next: `fourstep serve --model auto` (or `make serve`), and open http://localhost:8000/")
    return 0


def _unwritable(output: Path) -> str:
    """Return why no picture can be written there; "" when one can."""
    if output.is_dir():
        return f"{output} is a folder; name a file in it"
    return "" if output.parent.is_dir() else f"there is no folder {output.parent}"


def _ask(server: Server, output: str, timeout_s: float) -> dict[str, Any]:
    """Run the example program against `server` as its documentation says, by environment alone."""
    environment = child_environment(
        FAL_KEY="demo:demo",
        FAL_RUN_HOST=f"{server.tls_host}/run",
        FAL_QUEUE_RUN_HOST=f"{server.tls_host}/queue",
        SSL_CERT_FILE=str(server.bundle),
    )
    command = [sys.executable, "-P", str(_EXAMPLE), output]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=timeout_s)
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def _report(result: dict[str, Any], path: Path) -> None:
    image = result["images"][0]
    _say(f"{path.absolute()}: {image['width']}×{image['height']}, {path.stat().st_size} bytes, seed {result['seed']}")
    stages = {name: seconds for name, seconds in result["timings"].items() if name != "inference"}
    width = max(len(name) for name in ("inference", *stages))
    for name, seconds in {**stages, "inference": result["timings"]["inference"]}.items():
        _say(f"  {name:<{width}}  {seconds * 1000:8.1f} ms")


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def _fail(text: str) -> int:
    sys.stderr.write(f"fourstep demo: {text}\n")
    return 1
