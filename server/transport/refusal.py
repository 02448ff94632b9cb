"""Answers that end a connection, and the requests which get one: those that two parsers may read in two ways."""

import json
import uuid
from collections.abc import Iterable

from server.fal.errors import FalError


def refusal(error: FalError) -> tuple[dict[str, str], bytes]:
    """Return headers and body of an error which ends its connection."""
    body = json.dumps(error.body).encode()
    headers = {
        "content-type": "application/json",
        "content-length": str(len(body)),
        "connection": "close",
        "x-fal-request-id": str(uuid.uuid4()),
        **error.headers,
    }
    return headers, body


def ambiguity(headers: Iterable[tuple[bytes, bytes]], http_version: str, *, upgrades: bool) -> str | None:
    """Return what in a request's head a proxy in front may have read otherwise; None if nothing.

    `upgrades`: it asks for another protocol; the parser takes what follows for that, though it may be a body. The
    parser itself refuses two lengths, a length beside a coding, and bare line ends.
    """
    hosts = 0
    for name, value in headers:
        if name == b"host":
            hosts += 1
        elif name == b"transfer-encoding" and (http_version == "1.0" or value.lower() != b"chunked"):
            return "Transfer-Encoding can only be chunked, in HTTP/1.1"
        elif upgrades and (name == b"transfer-encoding" or (name == b"content-length" and value.strip(b"0 "))):
            return (
                "A request with a body can't ask for another protocol: leave Upgrade out"
                " (`curl --http1.1`; in Java `HttpClient.Version.HTTP_1_1`)"
            )
    return "More than one Host header" if hosts > 1 else None
