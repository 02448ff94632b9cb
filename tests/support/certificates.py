"""Certificates as a thief of the CA's key could make them, and a TLS server that presents them."""

import contextlib
import socket
import ssl
import threading
from collections.abc import Iterator

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key

from server.transport import certificates, tls

_ANSWER = b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nConnection: close\r\n\r\n<title>hello</title>"


def rogue_context(files: tls.TlsFiles, name: str) -> ssl.SSLContext:
    """A server context whose certificate the local CA's key signed for any name at all."""
    key, ca_key = (load_pem_private_key(path.read_bytes(), None) for path in (files.key, files.ca_key))
    ca = x509.load_pem_x509_certificate(files.ca.read_bytes())
    rogue = certificates.sign_server(key, certificates.subject_names([name]), ca, ca_key, certificates.utc_now())
    for path in (files.cert, files.dns_cert):
        path.write_bytes(rogue.public_bytes(Encoding.PEM))
    return tls.server_context(files)


@contextlib.contextmanager
def answering(context: ssl.SSLContext) -> Iterator[int]:
    """The port of a loopback server that shakes hands, says hello to whoever trusts it, and hangs up."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=_accept, args=(listener, context), daemon=True)
        thread.start()
        try:
            yield listener.getsockname()[1]
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()


def _accept(listener: socket.socket, context: ssl.SSLContext) -> None:
    while True:
        try:
            connection, _ = listener.accept()
        except OSError:  # the listener is shut: the test is over
            return
        connection.settimeout(5)
        with connection, contextlib.suppress(OSError), context.wrap_socket(connection, server_side=True) as peer:
            peer.recv(65536)
            peer.sendall(_ANSWER)
