"""A real server process on loopback for tests: `with serving("--model", "instant") as server: …`."""

import contextlib
import os
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from server.launch import Server, running, start

__all__ = ["Server", "clean_env", "serving", "start_server"]

# Test machines may preset trust stores, keys and proxies: a test sets its own.
_NOT_INHERITED = (
    "FAL_",
    "FOURSTEP_",
    "SSL_CERT",
    "NODE_",
    "REQUESTS_CA",
    "CURL_CA",
    "HTTP_PROXY",
    "HTTPS_PROXY",
    "ALL_PROXY",
)


def clean_env(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """This process's environment without what would change a server's or a client's mind, and with `extra`."""
    kept = {name: value for name, value in os.environ.items() if not name.upper().startswith(_NOT_INHERITED)}
    return {**kept, **(extra or {})}


@contextlib.contextmanager
def serving(
    *flags: str, data_dir: Path | None = None, env: Mapping[str, str] | None = None, ready: bool = True
) -> Iterator[Server]:
    """A server that has loaded its model (unless `ready` is false), stopped at the end; its log at `data_dir/log`."""
    with contextlib.ExitStack() as stack:
        where = data_dir or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="fourstep-")))
        log = stack.enter_context((where / "log").open("ab"))
        yield stack.enter_context(running(where, *flags, ready=ready, env=clean_env(env), log=log))


def start_server(*flags: str, data_dir: Path, env: Mapping[str, str] | None = None) -> Server:
    """A server for tests that kill it: the caller ends it. Its log is appended to `data_dir/log`."""
    with (data_dir / "log").open("ab") as log:
        return start(data_dir, *flags, env=clean_env(env), log=log)
