"""Where a request's picture comes from: a data URI, a stored file, or the network."""

import asyncio
import time
import weakref
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

from server.access.limits import Reservation
from server.fal import data_uri
from server.fal.errors import PassingFailure, invalid
from server.outbound.fetch import Fetch, FetchError
from server.storage.files import Files

# Characters of a data URI up to which it is decoded at once: a millisecond of the loop at most, if it has no escapes.
_AT_ONCE_CHARS = 1 << 20
_ESCAPED_AT_ONCE_CHARS = 1 << 15

# Seconds that the decoding thread sleeps after each piece. Released for less, the interpreter is not handed over.
# Escapes take four times as long as plain base64: with them it rests as long as it works.
_PAUSE_S = 1e-5
_REST_S = 5e-4


class DataUris:
    """Decodes data URIs: small ones at once, the others on one thread.

    It has a thread of its own, and a single one, so that neither the loop nor what stores files waits for long. A
    tenant's are decoded one after the other, and `turn_s` seconds of each in turn with those of other tenants.
    """

    def __init__(self, turn_s: float = 0.01) -> None:
        self._turn_s = turn_s
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="data-uris")
        self._first: weakref.WeakValueDictionary[str, asyncio.Lock] = weakref.WeakValueDictionary()

    async def decode(self, uri: str, max_bytes: int, *, tenant: str) -> bytes:
        """Return the bytes in a `data:` URI. Raises as `server.fal.data_uri.decode` does."""
        escaped = "%" in uri
        if len(uri) <= (_ESCAPED_AT_ONCE_CHARS if escaped else _AT_ONCE_CHARS):
            return data_uri.decode(uri, max_bytes)
        loop = asyncio.get_running_loop()
        pause_s = _REST_S if escaped else _PAUSE_S
        pieces, decoded = data_uri.pieces(uri, max_bytes), list[bytes]()
        async with self._first.setdefault(tenant, asyncio.Lock()):
            while await loop.run_in_executor(self._thread, self._turn, pieces, decoded, pause_s):
                pass
        return b"".join(decoded)

    def _turn(self, pieces: Iterator[bytes], decoded: list[bytes], pause_s: float) -> bool:
        """Decode for one turn. Return whether there may be more."""
        end = time.monotonic() + self._turn_s
        for piece in pieces:
            decoded.append(piece)
            if time.monotonic() >= end:
                return True
            time.sleep(pause_s)
        return False

    def close(self) -> None:
        """Decode no more."""
        self._thread.shutdown(wait=False, cancel_futures=True)


class Inputs:
    """Gets the pictures that `image_url` names. `max_bytes`: the largest."""

    def __init__(self, files: Files, fetch: Fetch, *, max_bytes: int, data_uris: DataUris | None = None) -> None:
        self._files = files
        self._fetch = fetch
        self._max_bytes = max_bytes
        self._data_uris = data_uris or DataUris()

    def close(self) -> None:
        """Decode no more."""
        self._data_uris.close()

    async def get(self, url: str, *, tenant: str, memory: Reservation) -> bytes:
        """Return the encoded picture, for `tenant`. Raises `InvalidInput`, and `RequestError` 429.

        `memory` is taken for what is read or fetched; a data URI's is held already, by the body in which it came.
        """
        url = url.strip()
        try:
            if url[:5].lower() == "data:":
                return await self._data_uris.decode(url, self._max_bytes, tenant=tenant)
            if stored := await self._files.local(url, reader=tenant):
                memory.take(stored.size)
                return await self._files.read(stored)
            return await self._fetch.get(url, self._max_bytes, memory.take, tenant=tenant)
        except data_uri.TooLargeError:
            message = f"The image is larger than {self._max_bytes} bytes"
            raise invalid("image_url", "file_too_large", message, {"max_size": self._max_bytes}) from None
        except data_uri.DataUriError as error:
            raise invalid("image_url", "image_load_error", f"Could not load image from data URI: {error}") from None
        except FetchError as error:
            about = {"max_size": self._max_bytes} if error.kind == "file_too_large" else None
            lasting = invalid("image_url", error.kind, error.message, about)
            raise (PassingFailure(error.message, lasting) if error.passing else lasting) from None
        except FileNotFoundError:  # it has just expired
            raise invalid("image_url", "file_download_error", "There is no such file") from None
