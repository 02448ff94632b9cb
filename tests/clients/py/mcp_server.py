"""An MCP server over fal, started and asked as an agent does it: in JSON lines."""

import json
import subprocess
import sys

from kit import OPTIONS, say

INITIALIZE = {"protocolVersion": "2025-03-26", "capabilities": {}, "clientInfo": {"name": "test", "version": "1"}}


def tell(method, **rest):
    """Send a message."""
    print(json.dumps({"jsonrpc": "2.0", "method": method, **rest}), file=server.stdin, flush=True)


def ask(method, **params):
    """What the server answers; notices of its own are passed over."""
    tell(method, id=method, params=params)
    while (answer := json.loads(server.stdout.readline())).get("id") != method:
        pass
    return answer["result"]


command = [sys.executable, "-m", "fal_mcp_server.server"]
with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:
    ask("initialize", **INITIALIZE)
    tell("notifications/initialized")
    say(ask("tools/call", name="generate_image_from_image", arguments=OPTIONS["arguments"])["content"][0]["text"])
    server.stdin.close()
