"""A proxy that serves another server under a path of its own, as nginx does by `proxy_pass` with a slash at its end."""

import contextlib
import http.client
import socket
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

PREFIX = "/fourstep"
_OWN = ("connection", "content-length", "transfer-encoding")


@contextlib.contextmanager
def under_a_path(port: Callable[[], int]) -> Iterator[str]:
    """The URL, a slash at its end, under which the server on loopback's `port()` is found, and at no other path."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            path = self.path.removeprefix(PREFIX)
            if path == self.path or not path.startswith("/"):
                self.send_error(404)
                return
            if "Upgrade" in self.headers:
                self.tunnel(path)
                return
            with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port(), timeout=60)) as there:
                there.request(self.command, path, body, dict(self.headers))
                answer = there.getresponse()
                content = answer.read()
            self.send_response(answer.status)
            for name, value in answer.getheaders():
                if name.lower() not in _OWN:
                    self.send_header(name, value)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def tunnel(self, path: str) -> None:
            """Pass a websocket on: its handshake, then whatever comes from either side until one ends."""
            self.close_connection = True
            head = "".join(f"{name}: {value}\r\n" for name, value in self.headers.items())
            with socket.create_connection(("127.0.0.1", port())) as there:
                there.sendall(f"GET {path} HTTP/1.1\r\n{head}\r\n".encode("latin-1"))
                back = threading.Thread(target=_pass_on, args=(there.recv, self.connection))
                back.start()
                _pass_on(self.rfile.read1, there)
                back.join()

        do_POST = do_GET  # noqa: N815 — the library's names

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as proxy:
        thread = threading.Thread(target=proxy.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{proxy.server_port}{PREFIX}/"
        finally:
            proxy.shutdown()
            thread.join()


def _pass_on(read: Callable[[int], bytes], to: socket.socket) -> None:
    """Pass bytes on until there are no more, and say so."""
    with contextlib.suppress(OSError):  # either side may be gone
        while piece := read(65536):
            to.sendall(piece)
        to.shutdown(socket.SHUT_WR)
