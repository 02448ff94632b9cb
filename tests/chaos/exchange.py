"""Raw requests, each over its own connection; prepared beforehand, as attackers and victim share processors."""

import asyncio

HOST = "127.0.0.1"


def written(method, path, key="", body=b"", **fields):
    """Return a request, after whose answer the connection closes. `key`: `name:secret`; "" for none."""
    fields |= {"Host": "localhost", "Connection": "close", "Content-Length": len(body)}
    if key:
        fields["Authorization"] = f"Key {key}"
    head = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
    return f"{method} {path} HTTP/1.1\r\n{head}\r\n".encode() + body


async def exchange(port, request):
    """Return status and body of the answer; status 0 if there was none, or the connection broke."""
    try:
        reader, writer = await asyncio.open_connection(HOST, port)
    except OSError:
        return 0, b""
    try:
        writer.write(request)
        answer = await reader.read()
    except ConnectionError:
        return 0, b""
    finally:
        writer.transport.abort()
    head, _, body = answer.partition(b"\r\n\r\n")
    return int(head.split(b" ", 2)[1]) if head else 0, body
