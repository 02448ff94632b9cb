"""The audit of pinned versions, against an advisory base of the test's own."""

import http.server
import json
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from tests.support.server_process import clean_env

AUDIT = Path(__file__).parent.parent / ".ci" / "audit.py"
BAD = {("jinja2", "2.4.1"), ("urllib3", "1.0")}


@pytest.fixture
def advisories():
    """The URL of a service that knows of the bad ones, in OSV's words."""

    class Osv(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            name = asked["package"]["name"]
            affected = [{"package": {"name": name, "ecosystem": "PyPI"}, "ranges": []}]
            known = (name, asked["version"]) in BAD
            body = json.dumps({"vulns": [{"id": "TEST-1", "summary": "bad", "affected": affected}]} if known else {})
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body.encode())

        def log_message(self, *arguments):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Osv) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/v1/query"
        server.shutdown()


def audit(tmp_path, url, *pins):
    """How it ends for these pins."""
    file = tmp_path / "pins.txt"
    file.write_text("\n".join(pins) + "\n")
    command = [sys.executable, str(AUDIT), "--osv-url", url, str(file)]
    env = clean_env({"XDG_CACHE_HOME": str(tmp_path)})
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize(("pins", "status"), [(["pillow==12.0.0"], 0), (["pillow==12.0.0", "urllib3==1.0"], 1)])
def test_a_vulnerable_pin_fails_the_audit(tmp_path, advisories, pins, status):
    done = audit(tmp_path, advisories, *pins)

    assert done.returncode == status
    assert ("TEST-1" in done.stdout) == bool(status)


def test_where_the_advisories_are_out_of_reach_the_audit_says_so_and_is_left_out(tmp_path):
    done = audit(tmp_path, "http://127.0.0.1:9/v1/query", "urllib3==1.0")

    assert done.returncode == 0
    assert done.stdout.startswith("audit left out: ")
