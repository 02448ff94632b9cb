"""Nearly valid values: text, JSON, msgpack and pictures, each determined by a `random.Random`."""

import base64
import functools
import io
import json
import struct

import msgspec
from PIL import Image

from tests.support.images import colour_profiles, malicious_images

SMALL = (96, 64)

ODD = (
    None,
    True,
    -1,
    0,
    1.5,
    1e308,
    2**31,
    2**53 + 1,
    2**63,
    -(2**63),
    2**64,
    10**30,
    "",
    " ",
    "\0",
    "NaN",
    "1e400",
    "é\u202e😀",
    "\udcff",
    "a" * 60_000,
    [],
    [[]],
    {},
    {"": 0},
    "data:",
    "data:,",
    "data:image/png;base64,",
    "data:image/png;base64,====",
    "data:image/png;base64,%%%",
    "data:image/svg+xml,<svg/>",
    "DATA:;base64,AAAA",
    "http://127.0.0.1:1/a.png",
    "http://[::1]/a.png",
    "http://[::1/",
    "http://0x7f.1/",
    "https://127.0.0.1:99999/",
    "file:///etc/passwd",
    "//",
    "http://",
)

# JSON that no encoder writes. `%s` is a valid object without its braces.
ODD_JSON = (
    b"",
    b"{",
    b"null",
    b"[]",
    b'"{}"',
    b"{%s",
    b"{%s}}",
    b"{%s,}",
    b"{%s} // a comment",
    b"\xef\xbb\xbf{%s}",
    b"{%s}\0",
    b'{%s, "seed": NaN}',
    b'{%s, "seed": -Infinity}',
    b'{%s, "strength": 1e999}',
    b'{%s, "seed": ' + b"9" * 5000 + b"}",
    b'{%s, "seed": 0x10}',
    b'{%s, "seed": 1.' + b"0" * 5000 + b"}",
    b'{%s, "seed": -0}',
    b'{%s, "prompt": "\\ud800"}',
    b'{%s, "prompt": "\\u0000"}',
    b'{%s, "prompt": "\xff\xfe"}',
    b'{%s, "prompt": "\xed\xa0\x80"}',
    b'{%s, "prompt": "\n"}',
    b'{%s, "prompt": 1, "prompt": "p"}',
    b"{%s, 'prompt': 'p'}",
    b'{%s, "__proto__": {}, "constructor": 1}',
    b'{%s, "x": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    b'{"x":' * 5_000 + b"1" + b"}" * 5_000,
)


def flipped(rng, data, most=12):
    """Return `data` with some bits or bytes changed, inserted, repeated, deleted, or cut off."""
    out = bytearray(data)
    for _ in range(rng.randint(1, most)):
        at = rng.randrange(len(out) + 1)
        match rng.randrange(6):
            case 0 | 1 if at < len(out):
                out[at] ^= 1 << rng.randrange(8)
            case 2:
                out[at:at] = rng.randbytes(rng.randint(1, 8))
            case 3:
                del out[at : at + rng.randint(1, 16)]
            case 4:
                out[at:at] = out[at : at + rng.randint(1, 64)]
            case 5 if rng.random() < 0.2:
                del out[at:]
    return bytes(out)


# --- pictures


@functools.cache
def pictures():
    """Return valid pictures of each kind that decoders distinguish: name → file."""
    grey = Image.linear_gradient("L").resize(SMALL)
    colour = Image.merge("RGB", (grey, grey.rotate(180), grey.transpose(Image.Transpose.FLIP_LEFT_RIGHT)))
    clear = colour.copy()
    clear.putalpha(grey)
    wide = Image.new("I;16", SMALL, 1000)
    exif = Image.Exif()
    exif[0x0112] = 6
    made = {
        "jpeg": (colour, "JPEG", {"quality": 80}),
        "jpeg progressive": (colour, "JPEG", {"progressive": True}),
        "jpeg grey": (grey, "JPEG", {}),
        "jpeg cmyk": (colour.convert("CMYK"), "JPEG", {}),
        "jpeg turned": (colour, "JPEG", {"exif": exif}),
        "png": (colour, "PNG", {}),
        "png clear": (clear, "PNG", {}),
        "png palette": (colour.quantize(16), "PNG", {"transparency": 3}),
        "png 16": (wide, "PNG", {}),
        "png 1": (grey.convert("1"), "PNG", {}),
        "webp": (colour, "WEBP", {}),
        "webp lossless": (clear, "WEBP", {"lossless": True}),
        "gif": (colour, "GIF", {}),
        "bmp": (colour, "BMP", {}),
        "tiff": (colour, "TIFF", {"compression": "tiff_adobe_deflate"}),
        "avif": (clear, "AVIF", {}),
        "jpeg of other colours": (colour, "JPEG", {"icc_profile": colour_profiles.P3}),
        "tiff of ink": (colour.convert("CMYK"), "TIFF", {"icc_profile": colour_profiles.cmyk()}),
    }
    return {name: _saved(image, kind, options) for name, (image, kind, options) in made.items()}


def _saved(image, kind, options):
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def picture(rng):
    """Return a picture, damaged in most cases."""
    return rng.choice(DAMAGES)(rng, _good(rng))


def _good(rng):
    return rng.choice(list(pictures().values()))


DAMAGES = (
    lambda rng, data: data,
    lambda rng, data: data[: rng.randrange(len(data))],
    lambda rng, data: data[: rng.randrange(len(data))] + _good(rng)[rng.randrange(60) :],
    lambda rng, data: data[: rng.choice((4, 12, 30))] + rng.randbytes(rng.randint(0, 2000)),
    flipped,
    lambda rng, data: flipped(rng, data, 2),
    lambda rng, _: _contradictory(rng),
    lambda rng, _: _shuffled(rng),
)


def _contradictory(rng):
    """Return a picture whose header contradicts its data."""
    width, height = (rng.choice((0, 1, 63, 64, 65, 96, 513, 4096, 32767, 65535)) for _ in range(2))
    match rng.randrange(3):
        case 0:
            depth, colour, interlace = rng.choice((1, 2, 3, 8, 16)), rng.randrange(8), rng.randrange(3)
            good = pictures()["png"]
            return good[:8] + malicious_images.ihdr(width, height, depth, colour, interlace) + good[33:]
        case 1:
            good = bytearray(pictures()[rng.choice(("jpeg", "jpeg progressive", "jpeg cmyk"))])
            at = next(good.find(mark) for mark in (b"\xff\xc0", b"\xff\xc2") if mark in good)
            good[at + 4 : at + 9] = struct.pack(">BHH", rng.choice((8, 12, 0)), height, width)
            return bytes(good)
        case _:
            size = max(width, 1), max(height, 1)
            return malicious_images.riff(malicious_images.vp8x(*size, rng.randrange(256)), tail=pictures()["webp"][12:])


def _shuffled(rng):
    """Return a PNG with a chunk dropped or doubled, or in another order; checksums are valid."""
    data = pictures()[rng.choice(("png", "png palette", "png clear"))]
    chunks, at = [], 8
    while at < len(data):
        length = struct.unpack(">I", data[at : at + 4])[0]
        chunks.append(data[at : at + 12 + length])
        at += 12 + length
    match rng.randrange(3):
        case 0:
            chunks.pop(rng.randrange(len(chunks)))
        case 1:
            chunks.insert(rng.randrange(len(chunks)), rng.choice(chunks))
        case _:
            rng.shuffle(chunks)
    return data[:8] + b"".join(chunks)


def data_uri(rng, data):
    """Return `data` as a data URI; sometimes in variants that some apps write, sometimes invalid."""
    head = rng.choice(("data:image/jpeg;base64,", "data:;base64,", "data:image/png;base64;base64,", "data:x/y,"))
    text = base64.b64encode(data).decode()
    match rng.randrange(8):
        case 0:
            text = text.replace("+", "-").replace("/", "_").rstrip("=")
        case 1:
            text = "\n".join(text[i : i + 76] for i in range(0, len(text), 76))
        case 2:
            text = flipped(rng, text.encode(), 3).decode("latin-1")
        case _:
            head = "data:image/jpeg;base64,"
    return head + text


# --- inputs


def fields(rng, *, broken=True):
    """Return an input of the endpoint; with `broken`, some fields are invalid, missing or unknown."""
    out = {
        "prompt": "a beach",
        "image_url": data_uri(rng, picture(rng)),
        "seed": rng.randrange(1 << 32),
        "num_inference_steps": rng.randint(1, 12),
        "strength": rng.random(),
        "num_images": rng.choice((1, 1, 1, 2, 8)),
        "sync_mode": rng.random() < 0.7,
        "request_id": str(rng.randrange(1000)),
    }
    if not broken:
        return {**out, "image_url": data_uri_of(pictures()["jpeg"])}
    for _ in range(rng.choice((0, 0, 1, 1, 2, 4))):
        name = rng.choice([*out, "guidance_scale", "negative_prompt", "enable_safety_checks", "x\ny", "mask_url"])
        if rng.random() < 0.2:
            out.pop(name, None)
        else:
            out[name] = rng.choice(ODD)
    return out


def data_uri_of(data):
    """Return `data` as a valid data URI."""
    return "data:image/jpeg;base64," + base64.b64encode(data).decode()


def json_body(rng, value):
    """Return `value` as JSON, sometimes malformed."""
    good = json.dumps(value).encode()
    match rng.randrange(12):
        case 0:
            return rng.choice(ODD_JSON).replace(b"%s", good[1:-1])
        case 1:
            return flipped(rng, good)
        case 2:
            return good[: rng.randrange(len(good) + 1)]
        case 3:
            return json.dumps(value).encode(rng.choice(("utf-16", "utf-32", "utf-8-sig")))
        case _:
            return good


def msgpack_body(rng, value):
    """Return `value` as msgpack, often malformed."""
    value = {name: _packable(item) for name, item in value.items()}
    if rng.random() < 0.5:
        value.pop("image_url", None)
        value["image_bytes"] = picture(rng)
    good = msgspec.msgpack.encode(value)
    return good if rng.random() < 0.4 else rng.choice(ODD_MSGPACK)(rng, good, value)


# The wrong lengths are of arrays, maps and byte strings of 4 GB.
ODD_MSGPACK = (
    lambda rng, good, _: flipped(rng, good),
    lambda rng, good, _: good[: rng.randrange(len(good) + 1)],
    lambda rng, *_: rng.choice((b"\xdd\xff\xff\xff\xff", b"\xdf\xff\xff\xff\xff", b"\xc6\xff\xff\xff\xff", b"\xc1")),
    lambda rng, *_: rng.choice((b"\x91", b"\x81\xa1x")) * rng.choice((100, 5_000, 200_000)) + b"\xc0",
    lambda rng, _, value: msgspec.msgpack.encode({**value, "seed": msgspec.msgpack.Ext(-1, rng.randbytes(12))}),
    lambda rng, _, value: msgspec.msgpack.encode({1: 2, **value}),
)


def _packable(item):
    if isinstance(item, int) and not -(2**63) <= item < 2**64:
        return float(item)
    return item.encode("utf-8", "replace").decode() if isinstance(item, str) else item
