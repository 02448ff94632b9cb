"""`fourstep` on a machine with no network and no name server: what the fuzzer is let loose on.

    python -m tests.fuzz.isolated_server '{}' serve --model instant+jpeg …

The first argument is what else is different, for the control: `crashing` makes the health route raise an exception.
"""

import functools
import json
import sys

import httpcore
from starlette.routing import Route

from server import app
from server.cli import main as cli
from server.outbound import fetch, guarded_http


async def resolve_nothing(host, port):
    raise OSError(f"no name server: {host}:{port}")


async def dial_nothing(address, port, timeout):  # noqa: ASYNC109 — httpcore's
    raise httpcore.ConnectError(f"no network: {address}:{port} within {timeout}")


async def crash(_):
    raise RuntimeError("planted")


class NoWay(guarded_http.Egress):
    """The outbound door of the server, with a wall behind it: mutated URLs could name anyone."""

    __init__ = functools.partialmethod(guarded_http.Egress.__init__, resolver=resolve_nothing, dialer=dial_nothing)


def main():
    """Applies the differences, then runs the command."""
    asked = json.loads(sys.argv[1])
    app.Fetch = functools.partial(fetch.Fetch, egress=NoWay)
    if asked.get("crashing"):
        app.ROUTES.insert(0, Route("/health/crash", crash))
        app.ROUTES.insert(0, Route("/cdn/files/{name}", crash, methods=["GET"]))
    cli.main(sys.argv[2:])


if __name__ == "__main__":
    main()
