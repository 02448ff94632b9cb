"""An input's fields out of bodies and frames, whatever else is in them."""

import functools
import json
import tracemalloc

import msgspec
import pytest

from server.fal import decoding, schemas
from server.fal.errors import InvalidInput

pack = msgspec.msgpack.encode
MANY = 1_000_000


@pytest.fixture(params=["at once", "skimmed"])
def json_path(request):
    """Both ways of reading JSON."""
    if request.param == "skimmed":
        return functools.partial(decoding.decode_json, small_bytes=0, few=0)
    return decoding.decode_json


def fault_of(read, document):
    with pytest.raises(InvalidInput) as caught:
        schemas.validate(read(document))
    return [(item["loc"], item["type"]) for item in caught.value.body["detail"]]


@pytest.mark.parametrize(
    "given",
    [
        {"prompt": "a, b", "image_url": "https://x.test/ä.png", "seed": 2**63, "strength": 0.25},
        {"prompt": 'quo"ted \\ \n 😀', "negative_prompt": "", "sync_mode": True, "mask_url": None},
        {"num_images": "4", "request_id": "r1", "enable_safety_checker": False, "guidance_scale": 1e0},
    ],
)
def test_the_fields_that_we_know_are_read_and_the_others_are_not(json_path, given):
    document = {"other": [{"prompt": "inner"}, {}], **given, "prompts": "x", "": {}}

    assert json_path(json.dumps(document, indent=1).encode()) == given
    assert decoding.decode_msgpack(pack(document)) == given


def test_of_a_field_that_comes_twice_the_last_counts(json_path):
    assert json_path(rb'{"prompt": [1], "seed": 1, "\u0070rompt": "last"}') == {"prompt": "last", "seed": 1}


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        (b" {", "json_invalid"),
        (b'{"other": [1,]}', "json_invalid"),
        (b'{"prompt": "\xff"}', "json_invalid"),
        (b'{"prompt": "a"} b', "json_invalid"),
        (b"[" * 100_000, "json_invalid"),
        (b'{"seed": ' + b"1" * 5000 + b"}", "json_invalid"),
        (b"[[1], {}]", "model_attributes_type"),
        (b"[{}, {]", "json_invalid"),
        (b"null", "model_attributes_type"),
    ],
)
def test_what_is_no_json_object_is_refused_at_the_body(json_path, body, kind):
    assert fault_of(json_path, body) == [(["body"], kind)]


@pytest.mark.parametrize(
    ("frame", "kind"),
    [
        (b"", "msgpack_invalid"),
        (b"\xc1", "msgpack_invalid"),
        (b"\x80\x80", "msgpack_invalid"),
        (b"\x92\x80", "msgpack_invalid"),
        (b"\x91" * 5000, "msgpack_invalid"),
        (b"\x81\xa6prompt\xa1\xff", "msgpack_invalid"),
        (pack([{}]), "model_attributes_type"),
        (pack("text"), "model_attributes_type"),
        (pack(None), "model_attributes_type"),
    ],
)
def test_what_is_no_msgpack_object_is_refused_at_the_body(frame, kind):
    assert fault_of(decoding.decode_msgpack, frame) == [(["body"], kind)]


def test_an_array_or_object_in_the_place_of_a_value_has_its_own_fault(json_path):
    document = {"prompt": [1], "image_url": {"a": 1}, "seed": [], "strength": {}, "sync_mode": [[]]}
    expected = [
        (["body", "prompt"], "string_type"),
        (["body", "image_url"], "string_type"),
        (["body", "strength"], "float_type"),
        (["body", "seed"], "int_type"),
        (["body", "sync_mode"], "bool_type"),
    ]

    assert fault_of(json_path, json.dumps(document).encode()) == expected
    assert fault_of(decoding.decode_msgpack, pack(document)) == expected


def test_bytes_come_as_bytes():
    assert decoding.decode_msgpack(pack({"image_bytes": b"\xff\xd8"})) == {"image_bytes": b"\xff\xd8"}


@pytest.mark.parametrize("name", ["other", "prompt"])
@pytest.mark.parametrize(
    ("read", "document"),
    [
        (decoding.decode_json, b'{"NAME": [{}' + b",{}" * MANY + b"]}"),
        (decoding.decode_json, b'{"NAME": 1' + b"".join(b',"%d":0' % number for number in range(MANY // 5)) + b"}"),
        (decoding.decode_json, b'{"NAME": [' + b",".join([b"[" * 90 + b"]" * 90] * 9_000) + b"]}"),
        (decoding.decode_msgpack, b"\x81\xa4NAME\xdd" + MANY.to_bytes(4, "big") + b"\x80" * MANY),
        (
            decoding.decode_msgpack,
            b"\xdf\x00\x01\x86\xa0" + b"".join(pack(f"{n:06}") + b"\x80" for n in range(100_000)),
        ),
    ],
    ids=["json values", "json names", "json brackets", "msgpack values", "msgpack names"],
)
def test_no_document_takes_more_memory_than_it_is_long(read, document, name):
    document = document.replace(b"\xa4NAME", pack(name)).replace(b"NAME", name.encode())
    tracemalloc.start()
    try:
        read(document)
    except InvalidInput:
        pass
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()

    assert peak < len(document)
