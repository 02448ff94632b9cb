"""Malformed HTTP requests to every route of the table, as bytes."""

from urllib.parse import quote

from starlette.routing import Route, WebSocketRoute

from server.app import ROUTES
from tests.fuzz import values
from tests.support.server_process import APP

KEY = "me:secret"

HTTP_ROUTES = [(method, route.path) for route in ROUTES if isinstance(route, Route) for method in sorted(route.methods)]
SOCKET_PATHS = [route.path for route in ROUTES if isinstance(route, WebSocketRoute)]

# The routes that read an input, where most errors could be.
BUSY = [("POST", "/run/{app:path}"), ("POST", "/run/{app:path}/stream"), ("POST", "/queue/{app:path}")]

ODD_SEGMENTS = (
    "",
    ".",
    "..",
    "%2e%2e",
    "%2F",
    "%00",
    "%",
    "%zz",
    "%ff",
    "%c0%af",
    "%ed%a0%80",
    "%F0%9F%98%80",
    "\xff",
    "a" * 5000,
    "requests",
    "-1",
    "9" * 5000,
    "٣",
    "*",
    ";x=1",
    "a b",
    "a\tb",
    "{app}",
    "//",
)

QUERY_NAMES = (
    "logs",
    "ticket",
    "endpoint_id",
    "expand",
    "limit",
    "cursor",
    "q",
    "fal_webhook",
    "fal_max_queue_length",
    "fal_jwt_token",
    "fal_key_id",
    "fal_key_secret",
    "max_buffering",
    "prompt",
    "image_url",
    "num_images",
    "seed",
)
ODD_QUERY = (
    "",
    "1",
    "-1",
    "true",
    "%00",
    "%ff",
    "%ed%a0%80",
    "%",
    "+",
    "&&",
    "=",
    "a=b",
    "٣",
    "9" * 5000,
    "http://127.0.0.1:1/hook",
    "http://[",
    "ftp://x",
    "eyJhbGciOiJub25lIn0.e30.",
    "a.b.c",
    "[]",
    "\xe9",
)

ODD_HEADERS = {
    "Host": (
        "",
        "[",
        "a b",
        "x" * 300,
        "fal.run",
        "queue.fal.run",
        "ws.fal.run",
        "110602490-lcm-sd15-i2i.x",
        "localhost:99999",
        "\xff",
    ),
    "Authorization": (
        "",
        "Key",
        "Key me",
        "Key me:wrong",
        "Bearer",
        "Bearer x.y.z",
        "Bearer eyJhbGciOiJub25lIn0.e30.",
        "\xff\xfe",
        "Basic ===",
    ),
    "Content-Type": (
        "",
        "text/plain",
        "application/x-www-form-urlencoded",
        "multipart/form-data",
        "image/jpeg; " + "x" * 2000,
        "\xff",
    ),
    "Content-Encoding": ("gzip", "br", "zstd"),
    "Content-Length": ("", "-1", "+5", "0x10", "1e3", " 5 ", "99999999999999999999", "٣", "5, 5", "75497473"),
    "Transfer-Encoding": ("chunked", "gzip", "chunked, chunked", "identity", "xchunked"),
    "Expect": ("100-continue", "200-ok"),
    "Connection": ("close", "keep-alive", "upgrade", "x, y", "keep-alive, upgrade"),
    "Upgrade": ("h2c", "websocket", "", "WebSocket"),
    "Range": (
        "bytes=0-1",
        "bytes=5-1",
        "bytes=-0",
        "bytes=0-1,3-4",
        "bytes=99999999999999999999-",
        "bytes=٣-",
        "lines=1",
    ),
    "If-Range": ("x", '"x"'),
    "If-None-Match": ("*", '""', ",,,", 'W/"'),
    "Origin": ("null", "http://evil.example", "http://localhost", "x" * 3000, "\xff"),
    "Access-Control-Request-Method": ("POST", "\x7f"),
    "X-Forwarded-For": ("1.2.3.4", "x" * 2000, ",", "[::1"),
    "X-Forwarded-Proto": ("https", "javascript", ""),
    "X-Fal-Target-Url": (
        "",
        "http://[",
        "https://fal.run/" + APP,
        "https://evil.example/",
        "https://fal.run/api/fal/proxy",
        "https://queue.fal.run/" + APP + "/requests/%00",
        "https://rest.fal.ai/%ff",
    ),
    "X-Fal-Queue-Priority": ("low", "\xff"),
    "X-Fal-Request-Timeout": ("nan", "inf", "-1", "1e400", "0.2", "x"),
    "X-Fal-Object-Lifecycle-Preference": (
        "{",
        "null",
        "[]",
        '{"expiration_duration_seconds": -1}',
        '{"expiration_duration_seconds": 1e999}',
        '{"initial_acl": {"default": 7}}',
    ),
    "X-Fal-Object-Lifecycle": ('{"expiration_duration_seconds": 99999999999999999999}', "\xff"),
    "X-Fal-File-Name": ("../../x", "\xff\xfe", "x" * 9000, "=?utf-8?q?x?="),
    "X-Fal-Store-IO": ("0", "x"),
    "X-Fal-No-Retry": ("1", "x"),
    "X-Request-ID": ("x" * 5000, "\x01"),
    "Cookie": ("a" * 4000, "\xff"),
    "": ("", "x"),
    "A B": ("x",),
    "\xff": ("x",),
    "Sec-WebSocket-Key": ("", "x"),
}

METHODS = ("GET", "POST", "PUT", "DELETE", "PATCH", "HEAD", "OPTIONS", "TRACE", "CONNECT", "PROPFIND", "get", "X", "")


def request(rng, live, route):
    """Return the bytes of one request to a route (method, path). `live`: placeholder → a value that exists."""
    method, path = route
    target = filled(rng, path, live)
    headers = [("Host", live["{host}"]), ("Authorization", f"Key {KEY}"), ("Content-Type", "application/json")]
    body = _body(rng, path, live) if method in {"POST", "PUT", "PATCH"} else b""
    if "ticket" not in path and "/cdn/upload/" in path:
        target += f"?ticket={live['{ticket}']}"
    if path == "/api/fal/proxy":
        headers.append(("X-Fal-Target-Url", f"https://fal.run/{APP}"))
    for _ in range(rng.choice((0, 0, 0, 1, 1, 2))):
        match rng.randrange(5):
            case 0:
                target = _odd_path(rng, target)
            case 1:
                target += rng.choice("?&") + rng.choice(QUERY_NAMES) + "=" + rng.choice(ODD_QUERY)
            case 2:
                method = rng.choice(METHODS)
            case _:
                _odd_header(rng, headers)
    return _wired(rng, method, target, headers, body)


def filled(rng, path, live):
    """Return a path of the route table with its placeholders filled, sometimes with an invalid value."""
    for placeholder in [part for part in live if part in path]:
        value = live[placeholder] if rng.random() < 0.85 else rng.choice(ODD_SEGMENTS)
        path = path.replace(placeholder, value)
    assert "{" not in path or "{app}" in path, f"{path}: a new placeholder: give it a value in fuzz.live_values"
    return path


def _body(rng, path, live):
    if path.startswith("/cdn/") and not path.endswith("complete"):
        return values.picture(rng)
    if path.startswith(("/run/", "/queue/", "/api/")):
        given = values.fields(rng)
        if rng.random() < 0.1:
            given["image_url"] = f"http://{live['{host}']}/cdn/files/{live['{name}']}"
        return values.json_body(rng, given)
    given = {
        "allowed_apps": [APP],
        "token_expiration": 120,
        "duration": 60,
        "content_type": "image/jpeg",
        "file_name": "a.jpg",
        "parts": [{"partNumber": 1, "etag": "0" * 32}],
    }
    for _ in range(rng.choice((0, 1, 2))):
        given[rng.choice(list(given))] = rng.choice(values.ODD)
    return values.json_body(rng, given)


def _odd_path(rng, target):
    match rng.randrange(6):
        case 0:
            return f"{target}/{rng.choice(ODD_SEGMENTS)}"
        case 1:
            return f"/{rng.choice(ODD_SEGMENTS)}{target}"
        case 2:
            return "".join(f"%{ord(char):02x}" if rng.random() < 0.3 else char for char in quote(target, safe="/?=&%"))
        case 3:
            return rng.choice((f"http://x{target}", "*", "x:1", target[1:], f"{target}#f", f"{target}?{'a=1&' * 3000}"))
        case 4:
            return target.replace("/", rng.choice(("//", "/./", "\\", "/%2f/")))
        case _:
            return values.flipped(rng, target.encode("latin-1", "replace"), 3).decode("latin-1")


def _odd_header(rng, headers):
    name = rng.choice(list(ODD_HEADERS))
    value = rng.choice(ODD_HEADERS[name])
    match rng.randrange(4):
        case 0:
            headers[:] = [pair for pair in headers if pair[0] != name]
        case 1:
            headers.append((name, value))
        case _:
            headers[:] = [*(pair for pair in headers if pair[0] != name), (name, value)]


def _wired(rng, method, target, headers, body):
    """Return the request's bytes; sometimes chunked, cut off, with trailing data, or with bits changed."""
    names = {name for name, _ in headers}
    if rng.random() < 0.1 and not names & {"Content-Length", "Transfer-Encoding"}:
        headers.append(("Transfer-Encoding", "chunked"))
        body = _chunked(rng, body)
    elif "Content-Length" not in names and "Transfer-Encoding" not in names and (body or rng.random() < 0.5):
        headers.append(("Content-Length", str(len(body))))
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers)
    head = f"{method} {target} HTTP/1.1\r\n{lines}\r\n".encode("latin-1", "replace")
    match rng.randrange(40):
        case 0:
            head = values.flipped(rng, head, 4)
        case 1:
            head = head.replace(b"HTTP/1.1", rng.choice((b"HTTP/1.0", b"HTTP/9.9", b"", b"HTTP/1.1 x", b"http/1.1")))
        case 2:
            head = head.replace(b"\r\n", rng.choice((b"\n", b"\r", b"\r\n ", b"\0\r\n")))
        case 3:
            return (head + body)[: rng.randrange(len(head) + len(body))]
        case 4:
            return head + body + rng.choice((b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n", b"\0" * 100, b"x"))
        case 5:
            return rng.choice((b"\x16\x03\x01\x02\x00\x01\x00", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", rng.randbytes(64)))
    return head + body


def _chunked(rng, body):
    """Return the body in chunks, sometimes one with a wrong length."""
    out, at = [], 0
    while at < len(body):
        piece = body[at : at + rng.choice((1, 100, 5000, 100_000))]
        at += len(piece)
        said = f"{len(piece):x}" if rng.random() < 0.97 else rng.choice(("0", "-1", "ffffffffffffffffff", "g", "1;x=y"))
        out.append(said.encode() + b"\r\n" + piece + b"\r\n")
        if len(out) > 200:
            out.append(f"{len(body) - at:x}\r\n".encode() + body[at:] + b"\r\n")
            break
    return b"".join(out) + rng.choice((b"0\r\n\r\n", b"0\r\nX: y\r\n\r\n", b"0\r\n\r\n"))
