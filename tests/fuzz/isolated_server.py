"""`fourstep` without network and name server: the fuzzer's target.

    python -m tests.fuzz.isolated_server '{}' serve --model instant+jpeg …

The first argument is JSON with further differences, for the control: `crashing` makes the health route raise.
"""

import functools
import json
import sys

import httpcore
from starlette.routing import Route

from server.app import ROUTES, Parts
from server.outbound import fetch, guarded_http
from tests.support.server_process import serve


def resolve_nothing(host, port):
    raise OSError(f"no name server: {host}:{port}")


async def dial_nothing(address, port, timeout):  # noqa: ASYNC109 — httpcore's
    raise httpcore.ConnectError(f"no network: {address}:{port} within {timeout}")


async def crash(_):
    raise RuntimeError("planted")


def main():
    """Apply the differences, then run the command."""
    asked = json.loads(sys.argv[1])
    egress = functools.partial(guarded_http.Egress, dialer=dial_nothing)
    planted = (Route("/health/crash", crash), Route("/cdn/files/{name}", crash, methods=["GET"]))
    parts = Parts(
        # mutated URLs could name any host
        fetch=functools.partial(fetch.Fetch, resolver=resolve_nothing, egress=egress),
        routes=[*(planted if asked.get("crashing") else ()), *ROUTES],
    )
    sys.exit(serve(parts, sys.argv[2:]))


if __name__ == "__main__":
    main()
