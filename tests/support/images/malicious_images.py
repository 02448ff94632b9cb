"""Pictures made to hurt: bombs, polyglots, liars and files that are none. Made here, in full, from nothing.

`REFUSED` must be refused; `HARMLESS` may be decoded, as long as nothing but the picture comes through. Each is a
function, so that nothing large lives longer than its test.
"""

import struct
import zlib
from collections.abc import Callable

Maker = Callable[[], bytes]

PAYLOAD = b"<script>alert('polyglot')</script>"

# --- PNG ---------------------------------------------------------------------------------------------------------

_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
_SIGNATURE = b"\x89PNG\r\n\x1a\n"


def chunk(name: bytes, body: bytes = b"", *, claimed: int | None = None) -> bytes:
    """One PNG chunk; `claimed` is the length that it lies about."""
    length = len(body) if claimed is None else claimed
    return struct.pack(">I", length) + name + body + struct.pack(">I", zlib.crc32(name + body))


def ihdr(width: int, height: int, depth: int = 8, colour: int = 2, interlace: int = 0) -> bytes:
    """A PNG's header chunk."""
    return chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, interlace))


def zeros(count: int) -> bytes:
    """So many zero bytes, deflated a thousand to one, without making them all at once."""
    packer, block = zlib.compressobj(9), bytes(1 << 20)
    parts = [packer.compress(block) for _ in range(count >> 20)]
    return b"".join([*parts, packer.compress(bytes(count & (1 << 20) - 1)), packer.flush()])


def png(
    width: int, height: int, depth: int = 8, colour: int = 2, *, extra: bytes = b"", data: bytes | None = None
) -> bytes:
    """A black PNG of this size, whole and well-formed."""
    rows = zeros(height * (1 + -(-width * depth * _CHANNELS[colour] // 8))) if data is None else data
    palette = chunk(b"PLTE", bytes(768)) if colour == 3 else b""
    return _SIGNATURE + ihdr(width, height, depth, colour) + palette + extra + chunk(b"IDAT", rows) + chunk(b"IEND")


def _png_header_only(width: int, height: int, depth: int = 8, colour: int = 2, interlace: int = 0) -> bytes:
    return _SIGNATURE + ihdr(width, height, depth, colour, interlace) + chunk(b"IDAT", zeros(64)) + chunk(b"IEND")


def _png_late_damage() -> bytes:
    """49 megapixels of colour whose data is wrong at its very end."""
    data = bytearray(zeros(7000 * 21001))
    data[-40] ^= 0xFF
    return png(7000, 7000, data=bytes(data))


def _apng(frames: int) -> bytes:
    control = struct.pack(">IIIIIHHBB", 0, 64, 64, 0, 0, 1, 100, 0, 0)
    head = chunk(b"acTL", struct.pack(">II", frames, 0)) + chunk(b"fcTL", control)
    return png(64, 64, extra=head)


# --- JPEG --------------------------------------------------------------------------------------------------------


def segment(marker: int, body: bytes) -> bytes:
    """One JPEG segment."""
    return struct.pack(">BBH", 0xFF, marker, 2 + len(body)) + body


def _sof(width: int, height: int, marker: int = 0xC0, precision: int = 8, sampling: bytes = b"\x22\x11\x11") -> bytes:
    parts = b"".join(bytes([i + 1, factors, 0]) for i, factors in enumerate(sampling))
    return segment(marker, struct.pack(">BHHB", precision, height, width, len(sampling)) + parts)


_DQT = segment(0xDB, b"\0" + bytes([1] * 64))
_DHT = segment(0xC4, b"\x00\x01" + bytes(15) + b"\x00") + segment(0xC4, b"\x10\x01" + bytes(15) + b"\x00")
_SOS = segment(0xDA, b"\x03\x01\x00\x02\x00\x03\x00\x00\x3f\x00")


def jpeg(*segments: bytes, data: bytes = b"") -> bytes:
    """A JPEG of these segments and this entropy-coded data."""
    return b"\xff\xd8" + b"".join(segments) + data + b"\xff\xd9"


def _jpeg_of(width: int, height: int, *, filled: bool = True, **sof: int | bytes) -> bytes:
    """A grey JPEG: each block is two zero bits."""
    blocks = -(-width // 16) * -(-height // 16) * 6
    data = bytes(-(-blocks * 2 // 8)) if filled else b"\0"
    return jpeg(_DQT, _DHT, _sof(width, height, **sof), _SOS, data=data)


def jpeg_of_scans(width: int, height: int, scans: int) -> bytes:
    """A progressive JPEG drawn over and over."""
    dc = segment(0xDA, b"\x03\x01\x00\x02\x00\x03\x00\x00\x00\x00") + b"\0"
    return jpeg(_DQT, _DHT, _sof(width, height, 0xC2), dc * scans)


def _small_jpeg(*segments: bytes) -> bytes:
    return jpeg(*segments, _DQT, _DHT, _sof(64, 64), _SOS, data=bytes(24))


def _exif(entries: int, offset: int = 8) -> bytes:
    """An Exif block whose directory claims so many entries, at this offset."""
    directory = b"II*\0" + struct.pack("<I", offset) + struct.pack("<H", entries)
    return segment(0xE1, b"Exif\0\0" + directory + struct.pack("<HHII", 0x0112, 3, 1, 6) * 8)


# --- WebP --------------------------------------------------------------------------------------------------------


def riff_chunk(name: bytes, content: bytes) -> bytes:
    """One chunk of a WebP."""
    return name + struct.pack("<I", len(content)) + content + bytes(len(content) & 1)


def riff(*chunks: tuple[bytes, bytes], tail: bytes = b"", claimed: int | None = None) -> bytes:
    """A WebP of these chunks, and of those in `tail`."""
    body = b"WEBP" + b"".join(riff_chunk(*parts) for parts in chunks) + tail
    return b"RIFF" + struct.pack("<I", len(body) if claimed is None else claimed) + body


def vp8x(width: int, height: int, flags: int = 0) -> tuple[bytes, bytes]:
    """A WebP canvas."""
    return b"VP8X", bytes([flags, 0, 0, 0]) + (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")


def _vp8(width: int, height: int) -> tuple[bytes, bytes]:
    return b"VP8 ", b"\x30\x01\x00\x9d\x01\x2a" + struct.pack("<HH", width, height) + bytes(32)


def _vp8l(width: int, height: int) -> tuple[bytes, bytes]:
    return b"VP8L", b"\x2f" + struct.pack("<I", width - 1 | height - 1 << 14) + bytes(32)


def _frame(width: int, height: int) -> tuple[bytes, bytes]:
    name, content = _vp8l(width, height)
    place = bytes(6) + (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little") + bytes(4)
    return b"ANMF", place + riff_chunk(name, content)


# --- GIF, BMP, TIFF ----------------------------------------------------------------------------------------------


def gif(width: int, height: int, *, before: bytes = b"", data: bytes = b"\x02\x02\x44\x01\0", screen: int = 1) -> bytes:
    """A GIF of two colours with one frame of this size, most of which is missing."""
    head = b"GIF89a" + struct.pack("<HHBBB", screen, screen, 0x80, 0, 0) + b"\0\0\0\xff\xff\xff"
    return head + before + b"," + struct.pack("<HHHHB", 0, 0, width, height, 0) + data + b";"


def bmp(
    width: int, height: int, depth: int = 24, compression: int = 0, data: bytes = b"", *, colours: int = 0
) -> bytes:
    """A BMP of this header, and this data."""
    info = struct.pack("<IiiHHIIiiII", 40, width, height, 1, depth, compression, 0, 0, 0, colours, 0)
    return b"BM" + struct.pack("<IHHI", 54 + len(data), 0, 0, 54) + info + data


def tiff(*entries: tuple[int, int, int, int], data: bytes = b"", count: int | None = None) -> bytes:
    """A TIFF of one directory with these entries (tag, type, number, value), and of this data at offset 1000."""
    packed = b"".join(struct.pack("<HHII", *entry) for entry in entries)
    head = b"II*\0\x08\0\0\0" + struct.pack("<H", len(entries) if count is None else count) + packed + bytes(4)
    return head.ljust(1000, b"\0") + data


def tiff_of(
    width: int, height: int, *more: tuple[int, int, int, int], compression: int = 1, data: bytes = b"", rows: int = 0
) -> bytes:
    """A grey TIFF in one strip."""
    entries = [(256, 4, 1, width), (257, 4, 1, height), (258, 3, 1, 8), (259, 3, 1, compression), (262, 3, 1, 1)]
    strips = [(273, 4, 1, 1000), (277, 3, 1, 1), (278, 4, 1, rows or height), (279, 4, 1, len(data))]
    return tiff(*more, *entries, *strips, data=data)  # of a tag that comes twice, the first counts


def overlapping_strips(strips: int) -> bytes:
    """A TIFF whose strips of deflate are all the same bytes, most of which stand for nothing."""
    strip = b"\x78\x01" + b"\0\0\0\xff\xff" * 10_000 + zlib.compress(bytes(64))[2:]
    offset = 1000 + 8 * strips
    numbers = struct.pack(f"<{2 * strips}I", *[offset] * strips, *[len(strip)] * strips)
    places = [(273, 4, strips, 1000), (279, 4, strips, 1000 + 4 * strips)]
    return tiff_of(64, strips, *places, compression=8, rows=1, data=numbers + strip)


def _tiled(width: int, height: int, tile: int, compression: int = 8) -> bytes:
    data = zeros(1 << 20)
    entries = [(256, 4, 1, width), (257, 4, 1, height), (258, 3, 1, 8), (259, 3, 1, compression), (262, 3, 1, 1)]
    tiles = [(322, 4, 1, tile), (323, 4, 1, tile), (324, 4, 1, 1000), (325, 4, 1, len(data))]
    return tiff(*entries, *tiles, data=data)


# --- AVIF --------------------------------------------------------------------------------------------------------


def box(name: bytes, *bodies: bytes, version: int | None = None) -> bytes:
    """One box; with a version, a full one."""
    body = (b"" if version is None else struct.pack(">I", version << 24)) + b"".join(bodies)
    return struct.pack(">I", 8 + len(body)) + name + body


def av1(width: int, height: int) -> bytes:
    """An AV1 stream that has a sequence header and no frame that can be shown."""
    bits = f"{0:03b}11{0:05b}{15:04b}{15:04b}{width - 1:016b}{height - 1:016b}".ljust(96, "0")
    header = int(bits, 2).to_bytes(12, "big")
    return b"\x0a" + bytes([len(header)]) + header + b"\x32\x08" + bytes(8)


def avif(
    width: int,
    height: int,
    *,
    stream: bytes = b"",
    parts: int = 1,
    kind: bytes = b"avif",
    extra: bytes = b"",
    cut: int = 0,
) -> bytes:
    """An AVIF that claims this size, and whose stream is read in so many parts, each the whole."""
    stream = stream or av1(width, height)
    ftyp = box(b"ftyp", kind, bytes(4), b"avif")

    def meta(offset: int) -> bytes:
        places = struct.pack(">HHHH", 1, 1, 0, parts) + struct.pack(">II", offset, len(stream)) * parts
        size = box(b"ispe", struct.pack(">II", width, height), version=0)
        owned = struct.pack(">IHBBB", 1, 1, 2, 1, 2)
        return box(
            b"meta",
            box(b"hdlr", bytes(4), b"pict", bytes(13), version=0),
            box(b"pitm", b"\0\1", version=0),
            box(b"iloc", b"\x44\0", places, version=0),
            box(b"iinf", b"\0\1", box(b"infe", b"\0\1\0\0av01\0", version=2), version=0),
            box(b"iprp", box(b"ipco", size, box(b"av1C", b"\x81\0\x0c\0")), box(b"ipma", owned, version=0)),
            extra,
            version=0,
        )

    offset = len(ftyp) + len(meta(0)) + 8
    return (ftyp + meta(offset) + box(b"mdat", stream))[: -cut or None]


def shared_avif(setup: bytes, *, items: int = 1, uses: int = 1, stream: bytes | None = None) -> bytes:
    """An AVIF of 64×64 of so many items, with one stream, each of which names the same `av1C` so many times."""
    stream = av1(64, 64) if stream is None else stream

    def meta(offset: int) -> bytes:
        numbers = range(1, items + 1)
        places = [struct.pack(">HHHII", number, 0, 1, offset, len(stream)) for number in numbers]
        infos = [box(b"infe", struct.pack(">HH", number, 0) + b"av01\0", version=2) for number in numbers]
        owned = [struct.pack(">HB", number, 1 + uses) + b"\1" + b"\2" * uses for number in numbers]
        size = box(b"ispe", struct.pack(">II", 64, 64), version=0)
        return box(
            b"meta",
            box(b"pitm", b"\0\1", version=0),
            box(b"iloc", b"\x44\0", struct.pack(">H", items), *places, version=0),
            box(b"iinf", struct.pack(">H", items), *infos, version=0),
            box(
                b"iprp",
                box(b"ipco", size, box(b"av1C", b"\x81\0\x0c\0", setup)),
                box(b"ipma", struct.pack(">I", items), *owned, version=0),
            ),
            version=0,
        )

    ftyp = box(b"ftyp", b"avif", bytes(4), b"avif")
    # Items may not overlap in length: what follows is as long as all of them.
    return ftyp + meta(len(ftyp) + len(meta(0)) + 8) + box(b"mdat", stream * items)


# --- the lists ---------------------------------------------------------------------------------------------------

REFUSED: dict[str, Maker] = {
    # more pixels than may be, told by the header
    "png 169 megapixels in 20 KB": lambda: png(13000, 13000, 1, 0),
    "png just over 50 megapixels": lambda: png(7072, 7072, 1, 0),
    "png 2 gigapixels wide": lambda: _png_header_only(2**31 - 1, 1),
    "png 2 gigapixels high": lambda: _png_header_only(1, 2**31 - 1),
    "png 4 gigapixels squared": lambda: _png_header_only(2**32 - 1, 2**32 - 1, 16, 6),
    "png 65535 squared grey": lambda: _png_header_only(65535, 65535, 8, 0),
    "png 65535 squared palette": lambda: _png_header_only(65535, 65535, 8, 3),
    "png 65535 squared grey and alpha": lambda: _png_header_only(65535, 65535, 16, 4),
    "png 65535 squared interlaced": lambda: _png_header_only(65535, 65535, 8, 6, 1),
    "jpeg 65535 squared": lambda: _jpeg_of(65535, 65535, filled=False),
    "jpeg 65535 squared progressive": lambda: _jpeg_of(65535, 65535, filled=False, marker=0xC2),
    "jpeg just over 50 megapixels": lambda: _jpeg_of(7072, 7072),
    "webp canvas of 16 million squared": lambda: riff(vp8x(2**24, 2**24, 2), _frame(1, 1)),
    "webp lossy 16383 squared": lambda: riff(_vp8(16383, 16383)),
    "webp lossless 16384 squared": lambda: riff(_vp8l(16384, 16384)),
    # more memory than may be
    "jpeg progressive 4:4:4:4, 49 megapixels": lambda: _jpeg_of(
        7000, 7000, filled=False, marker=0xC2, sampling=b"\x11\x11\x11\x11"
    ),
    "webp 49 megapixels": lambda: riff(_vp8(7000, 7000)),
    "webp canvas of 49 megapixels round one pixel": lambda: riff(vp8x(7000, 7000, 2), _frame(1, 1)),
    # shapes that nobody takes pictures in
    "png one pixel high": lambda: png(50000, 1),
    "png one pixel wide": lambda: png(1, 50000),
    "png one pixel": lambda: png(1, 1),
    "jpeg 65535×700": lambda: _jpeg_of(65535, 700),
    "png no width": lambda: _png_header_only(0, 64),
    "png no height": lambda: _png_header_only(64, 0),
    "jpeg no height": lambda: _jpeg_of(64, 0, filled=False),
    "webp no size": lambda: riff(_vp8(0, 0)),
    # liars and wasters of time
    "png late damage, 49 megapixels": _png_late_damage,
    "png data too short, 49 megapixels": lambda: _png_header_only(7000, 7000),
    "png data too short, interlaced": lambda: _png_header_only(6999, 7001, 8, 2, 1),
    "png data too short, 16 bit": lambda: _png_header_only(4000, 4000, 16, 6),
    "png a million chunks": lambda: png(64, 64, extra=chunk(b"teSt") * 1_000_000),
    "png chunk of 2 GB": lambda: _SIGNATURE + ihdr(64, 64) + chunk(b"IDAT", zeros(64), claimed=2**31 - 1),
    "png no data": lambda: _SIGNATURE + ihdr(64, 64) + chunk(b"IEND"),
    "png no palette": lambda: png(64, 64, 8, 3).replace(b"PLTE", b"plTE"),
    "png impossible depth": lambda: _png_header_only(64, 64, 16, 3),
    "png impossible colour": lambda: _png_header_only(64, 64, 8, 5),
    "png with more alpha than palette": lambda: png(64, 64, 8, 3, extra=chunk(b"tRNS", bytes(4000))),
    "png impossible filter": lambda: png(64, 64, data=zlib.compress((b"\x09" + bytes(192)) * 64)),
    "png signature alone": lambda: _SIGNATURE,
    "png header cut": lambda: png(64, 64)[:20],
    "jpeg 50 megapixels drawn 2000 times": lambda: jpeg_of_scans(7000, 7000, 2000),
    "jpeg 1 megapixel drawn 60000 times": lambda: jpeg_of_scans(1000, 1000, 60000),
    "jpeg a million comments": lambda: _small_jpeg(segment(0xFE, b"") * 1_000_000),
    "jpeg two sizes": lambda: jpeg(_DQT, _DHT, _sof(64, 64), _sof(65535, 65535), _SOS, data=bytes(24)),
    "jpeg size after picture": lambda: jpeg(_DQT, _DHT, _SOS, bytes(24), _sof(65535, 65535)),
    "jpeg 12 bit": lambda: _jpeg_of(64, 64, precision=12),
    "jpeg lossless": lambda: _jpeg_of(64, 64, marker=0xC3),
    "jpeg arithmetic": lambda: _jpeg_of(64, 64, marker=0xC9),
    "jpeg two components": lambda: _jpeg_of(64, 64, sampling=b"\x11\x11"),
    "jpeg 255 components": lambda: _jpeg_of(64, 64, sampling=bytes(255)),
    "jpeg impossible sampling": lambda: _jpeg_of(64, 64, sampling=b"\x00\xff\x11"),
    "jpeg segment longer than the file": lambda: b"\xff\xd8\xff\xe1\xff\xffExif",
    "jpeg nothing but markers": lambda: b"\xff\xd8" + b"\xff" * 10_000_000,
    "jpeg nothing but restarts": lambda: b"\xff\xd8" + b"\xff\xd0" * 5_000_000,
    "jpeg start alone": lambda: b"\xff\xd8\xff",
    "jpeg cut": lambda: _jpeg_of(512, 512)[:-700],
    "webp cut": lambda: riff(_vp8l(64, 64))[:-8],
    "webp longer than the file": lambda: riff(_vp8l(64, 64), claimed=2**32 - 1),
    "webp a million chunks": lambda: riff(vp8x(64, 64), tail=riff_chunk(b"JUNK", b"") * 1_000_000),
    "webp a hundred thousand frames": lambda: riff(vp8x(64, 64, 2), tail=riff_chunk(*_frame(64, 64)) * 100_000),
    "webp empty": riff,
    "webp noise": lambda: riff((b"VP8L", b"\x2f" + bytes(range(256)) * 40)),
    # other formats, and what only looks like one
    "nothing": lambda: b"",
    "text": lambda: b"Hello, World!",
    "html": lambda: b"<!doctype html>" + PAYLOAD,
    "svg": lambda: b"<svg xmlns='http://www.w3.org/2000/svg'>" + PAYLOAD + b"</svg>",
    # the rarer formats
    "gif frame of 65535 squared": lambda: gif(65535, 65535),
    "gif screen of 65535 squared": lambda: gif(64, 64, screen=65535),
    "gif with a million blocks first": lambda: gif(64, 64, before=b"!\xfe" + b"\1x" * 1_000_000 + b"\0"),
    "gif with a million comments first": lambda: gif(64, 64, before=b"!\xfe\0" * 1_000_000),
    "gif with nothing but stray bytes": lambda: gif(64, 64, before=bytes(10_000_000)),
    "gif without a picture": lambda: gif(64, 64, before=b";"),
    "gif whose picture ends at once": lambda: gif(64, 64),
    "gif cut in its header": lambda: gif(64, 64)[:20],
    "bmp with the least size there is": lambda: bmp(-(2**31), -(2**31)),
    "bmp 2 gigapixels high": lambda: bmp(1, 2**31 - 1),
    "bmp of 4 billion colours": lambda: bmp(64, 64, 8, colours=2**32 - 1),
    "bmp of no data, 49 megapixels": lambda: bmp(7000, 7000),
    "bmp of 25 million empty runs": lambda: bmp(64, 64, 8, 1, bytes(50_000_000)),
    "bmp of 49 megapixels in runs": lambda: bmp(7000, 7000, 8, 1, bytes(1024) + b"\1\5\0\0" * 7000 + b"\0\1"),
    "bmp round a png": lambda: bmp(64, 64, 24, 5, png(64, 64)),
    "bmp header of a size that is none": lambda: b"BM" + bytes(12) + struct.pack("<I", 2**31) + bytes(64),
    "tiff 65535 squared": lambda: tiff_of(65535, 65535),
    "tiff 49 megapixels in one strip of deflate": lambda: tiff_of(7000, 7000, compression=8, data=zeros(49_000_000)),
    "tiff 2 gigapixels wide": lambda: tiff_of(2**31 - 1, 1),
    "tiff tile of 65535 squared": lambda: _tiled(64, 64, 65520),
    "tiff a million strips": lambda: tiff_of(64, 64, (273, 4, 1_000_000, 1000))[:1000] + bytes(4_000_000),
    "tiff 64 strips where one is": lambda: tiff_of(64, 64, rows=1, data=bytes(4096)),
    "tiff of a thousand strips in one": lambda: overlapping_strips(1000),
    "tiff that ends before its picture": lambda: tiff_of(64, 64, data=bytes(4096))[:-1],
    "tiff of 65535 entries": lambda: tiff(*[(256, 4, 1, 64)] * 65535),
    "tiff of 65535 different entries": lambda: tiff(*[(tag, 3, 1, 1) for tag in range(65535)]),
    "tiff that claims more entries than it has": lambda: tiff(count=65535),
    "tiff of 4 billion colours": lambda: tiff_of(64, 64, (320, 3, 2**32 - 1, 1000), data=bytes(4096)),
    "tiff of no bits": lambda: tiff_of(64, 64, (258, 3, 0, 8), data=bytes(4096)),
    "tiff whose orientation has no value": lambda: tiff_of(64, 64, (274, 3, 0, 6), data=bytes(4096)),
    "tiff of colours out of range": lambda: tiff_of(
        64, 64, (262, 3, 1, 3), (320, 4, 768, 1000), data=b"\xff" * 4 * 4096
    ),
    "tiff whose directory lies nowhere": lambda: b"II*\0\xff\xff\xff\xff" + bytes(64),
    "tiff of lzma": lambda: tiff_of(64, 64, compression=34925, data=bytes(4096)),
    "tiff of floats": lambda: tiff_of(64, 64, (339, 3, 1, 3), data=bytes(4096)),
    "tiff of no width": lambda: tiff_of(0, 64, data=bytes(4096)),
    "avif 65535 squared": lambda: avif(65535, 65535),
    "avif that claims 64 squared and is 16384 squared": lambda: avif(64, 64, stream=av1(16384, 16384)),
    "avif whose second header is larger": lambda: avif(64, 64, stream=av1(64, 64) + av1(65535, 65535)),
    "avif of a thousand frames": lambda: avif(2000, 2000, stream=av1(2000, 2000) * 1000),
    "avif a million units": lambda: avif(64, 64, stream=b"\x12\0" * 1_000_000),
    "avif whose parts are each the whole": lambda: avif(64, 64, stream=av1(64, 64) + bytes(1_000_000), parts=60_000),
    "avif of 4 million units in one shared setup": lambda: shared_avif(av1(64, 64) * 500, items=20, uses=200),
    "avif of a million units in two streams": lambda: shared_avif(b"", items=2, stream=b"\x12\0" * 500_000),
    "avif a million boxes": lambda: avif(64, 64) + box(b"free") * 1_000_000,
    "avif a million boxes inside": lambda: avif(64, 64, extra=box(b"free") * 1_000_000),
    "avif without frames": lambda: avif(64, 64),
    "avif cut": lambda: avif(64, 64, cut=10),
    "avif of no size": lambda: avif(0, 64, stream=av1(64, 64)),
    "avif box longer than the file": lambda: avif(64, 64) + struct.pack(">I4s", 2**32 - 1, b"moov"),
    "avif without its tables": lambda: box(b"ftyp", b"avif", bytes(4)) + box(b"meta", bytes(4)),
    "gif": lambda: b"GIF89a\xff\xff\xff\xff\x80\0\0" + bytes(64),
    "gif and javascript": lambda: b"GIF89a/*" + bytes(32) + b"*/=1;alert(1)",
    "bmp": lambda: b"BM" + struct.pack("<IIIIIIHH", 2**31, 0, 54, 40, 60000, 60000, 1, 24) + bytes(64),
    "tiff": lambda: b"II*\0\x08\0\0\0\xff\xff" + bytes(64),
    "tiff big": lambda: b"MM\0+\0\x08\0\0" + bytes(64),
    "psd": lambda: b"8BPS\0\x01" + bytes(6) + struct.pack(">HIIHH", 4, 30000, 30000, 8, 3),
    "eps": lambda: b"%!PS-Adobe-3.0 EPSF-3.0\n(%pipe%id) (w) file\n",
    "pdf round a jpeg": lambda: b"%PDF-1.7\n1 0 obj stream\n" + _small_jpeg() + b"endstream",
    "zip round a png": lambda: b"PK\x03\x04" + bytes(26) + png(64, 64),
    "ico": lambda: b"\0\0\x01\0\x01\0" + bytes(16) + png(64, 64),
    "icns": lambda: b"icns" + bytes(64),
    "avif": lambda: b"\0\0\0\x20ftypavif" + bytes(64),
    "heic": lambda: b"\0\0\0\x20ftypheic" + bytes(64),
    "jpeg 2000": lambda: b"\0\0\0\x0cjP  \r\n\x87\n" + bytes(64),
    "fits": lambda: b"SIMPLE  =                    T" + bytes(2880),
    "wav": lambda: b"RIFF" + struct.pack("<I", 40) + b"WAVEfmt " + bytes(64),
    "elf": lambda: b"\x7fELF" + bytes(64),
    "gzip": lambda: b"\x1f\x8b\x08" + bytes(64),
    "jpeg behind a line break": lambda: b"\n" + _small_jpeg(),
    "png behind a byte order mark": lambda: b"\xef\xbb\xbf" + png(64, 64),
}

HARMLESS: dict[str, Maker] = {
    "png end cut": lambda: png(64, 64)[:-12],
    "png with a zip behind it": lambda: png(64, 64) + b"PK\x03\x04" + PAYLOAD,
    "png with html in its text": lambda: png(64, 64, extra=chunk(b"tEXt", b"Comment\0" + PAYLOAD)),
    "png with 200 text bombs": lambda: png(64, 64, extra=chunk(b"zTXt", b"x\0\0" + zeros(10 << 20)) * 200),
    "png with 100 text bombs in UTF-8": lambda: png(
        64, 64, extra=chunk(b"iTXt", b"x\0\1\0\0\0" + zeros(10 << 20)) * 100
    ),
    "png with 1000 bombs in raw profiles": lambda: png(
        64, 64, extra=chunk(b"zTXt", b"Raw profile type exif\0\0" + zeros(10 << 20)) * 1000
    ),
    "png with a bomb in XMP": lambda: png(
        64, 64, extra=chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + zeros(100 << 20))
    ),
    "png with XMP cut": lambda: png(64, 64, extra=chunk(b"iTXt", b"XML:com.adobe.xmp\0\1")),
    "png with a profile bomb": lambda: png(64, 64, extra=chunk(b"iCCP", b"x\0\0" + zeros(100 << 20))),
    "png that inflates to more than its size": lambda: png(64, 64, data=zeros(200 << 20)),
    "png of 4 billion frames": lambda: _apng(2**32 - 1),
    "png with a broken Exif block": lambda: png(64, 64, extra=chunk(b"eXIf", b"II*\0\xff\xff\xff\x7f")),
    "png 24 megapixels, one bit": lambda: png(4900, 4900, 1, 0),
    "jpeg with html in its comment": lambda: _small_jpeg(segment(0xFE, PAYLOAD)),
    "jpeg with a zip behind it": lambda: _small_jpeg() + b"PK\x03\x04" + PAYLOAD,
    "jpeg with junk between segments": lambda: _small_jpeg(segment(0xFE, b""), bytes(5_000_000) + PAYLOAD),
    "jpeg with 60000 comments": lambda: _small_jpeg(segment(0xFE, PAYLOAD) * 60_000),
    "jpeg with a thumbnail of 4 gigapixels": lambda: _small_jpeg(
        segment(0xE1, b"Exif\0\0" + _jpeg_of(65535, 65535, filled=False))
    ),
    "jpeg with an Exif block of 65535 entries": lambda: _small_jpeg(_exif(65535)),
    "jpeg with an Exif block that points at itself": lambda: _small_jpeg(_exif(8, 0)),
    "jpeg with an Exif block that points nowhere": lambda: _small_jpeg(_exif(8, 2**32 - 1)),
    "jpeg with Photoshop's segment cut": lambda: _small_jpeg(segment(0xED, b"Photoshop 3.0\x008BIM")),
    "jpeg with 255 profile segments": lambda: _small_jpeg(segment(0xE2, b"ICC_PROFILE\0\x01\xff" + bytes(60000)) * 255),
    "jpeg that says it holds many": lambda: _small_jpeg(segment(0xE2, b"MPF\0II*\0\x08\0\0\0\xff\xff")),
    "jpeg 49 megapixels of grey": lambda: _jpeg_of(7000, 7000),
}
