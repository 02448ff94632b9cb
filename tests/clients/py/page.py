"""Serve `page.html` on loopback, let a browser open it, say what the page reports, end the browser."""

import json
import os
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

from kit import OPTIONS, say
from playwright.sync_api import sync_playwright

PAGE = Path(__file__).parents[1] / "page.html"
reports = []
reported = threading.Event()


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        self.answer(PAGE.read_bytes(), "text/html; charset=utf-8")

    def do_POST(self):
        reports.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        self.answer(b"", "text/plain")
        reported.set()

    def answer(self, body, content_type):
        self.send_response(200)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


server = HTTPServer(("127.0.0.1", 0), Handler)
threading.Thread(target=server.serve_forever, daemon=True).start()
options = json.dumps({"key": os.environ["FAL_KEY"], "picture": os.environ["PICTURE"]})
url = f"http://127.0.0.1:{server.server_port}/#{options.encode().hex()}"
environment = {**os.environ, "HOME": OPTIONS["home"]}
with sync_playwright() as playwright:
    browser = playwright.chromium.launch_persistent_context(
        OPTIONS["home"] + "/profile", executable_path=OPTIONS["browser"], args=["--no-sandbox"], env=environment
    )
    browser.new_page().goto(url)
    reported.wait(40)
    browser.close()
say(reports[0])
