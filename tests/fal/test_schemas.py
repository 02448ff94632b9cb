"""The input's limits, defaults and coercions, and errors that repeat nothing."""

import json
import math

import pytest

from server.fal import schemas
from server.fal.errors import InvalidInput
from server.fal.schemas import MAX_SEED, MIN_SEED, LcmInput

GOOD = {"prompt": "a beach", "image_url": "https://example.test/a.png"}


def faults(fields):
    with pytest.raises(InvalidInput) as caught:
        schemas.validate(fields)
    return caught.value.body["detail"]


def test_the_defaults_are_fals():
    data = schemas.validate(GOOD)

    assert data.model_dump() == {
        **GOOD,
        "mask_url": None,
        "strength": 0.8,
        "negative_prompt": "",
        "seed": None,
        "guidance_scale": 1,
        "num_inference_steps": 4,
        "sync_mode": False,
        "num_images": 1,
        "enable_safety_checks": True,
        "request_id": "",
    }


@pytest.mark.parametrize("mask", ["https://host/mask.png", "", b"\xff\xd8", 7, True, (), {"a": 1}])
def test_a_mask_is_ignored_whatever_it_is(mask):
    assert schemas.validate({**GOOD, "mask_url": mask}) == schemas.validate(GOOD)


def test_the_fields_are_in_fals_order():
    assert list(LcmInput.model_fields) == [
        "prompt",
        "image_url",
        "mask_url",
        "strength",
        "negative_prompt",
        "seed",
        "guidance_scale",
        "num_inference_steps",
        "sync_mode",
        "num_images",
        "enable_safety_checks",
        "request_id",
    ]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("strength", 0),
        ("strength", 1),
        ("guidance_scale", 0),
        ("guidance_scale", 16),
        ("num_inference_steps", 1),
        ("num_inference_steps", 12),
        ("num_images", 1),
        ("num_images", 8),
        ("seed", 0),
        ("seed", MIN_SEED),
        ("seed", MAX_SEED),
        ("prompt", ""),
    ],
)
def test_each_bound_is_legal(field, value):
    assert getattr(schemas.validate({**GOOD, field: value}), field) == value


@pytest.mark.parametrize(
    ("field", "value", "kind", "ctx"),
    [
        ("strength", -0.01, "greater_than_equal", {"ge": 0}),
        ("strength", 1.01, "less_than_equal", {"le": 1}),
        ("guidance_scale", -0.5, "greater_than_equal", {"ge": 0}),
        ("guidance_scale", 16.5, "less_than_equal", {"le": 16}),
        ("num_inference_steps", 0, "greater_than_equal", {"ge": 1}),
        ("num_inference_steps", 13, "less_than_equal", {"le": 12}),
        ("num_images", 0, "greater_than_equal", {"ge": 1}),
        ("num_images", 9, "less_than_equal", {"le": 8}),
        ("seed", 2**64, "less_than_equal", {"le": MAX_SEED}),
        ("seed", 10**400, "less_than_equal", {"le": MAX_SEED}),
        ("prompt", "x" * 50_001, "sequence_too_long", {"max_length": 50_000}),
    ],
)
def test_a_value_beyond_its_bound_is_refused_with_the_bound(field, value, kind, ctx):
    (fault,) = faults({**GOOD, field: value})

    assert (fault["loc"], fault["type"], fault["ctx"]) == (["body", field], kind, ctx)
    assert fault["url"] == f"https://docs.fal.ai/errors/#{kind}"


@pytest.mark.parametrize(
    ("field", "value", "kind"),
    [
        ("prompt", True, "string_type"),
        ("image_url", {"0": 255, "1": 216}, "string_type"),
        ("strength", "much", "float_parsing"),
        ("strength", math.nan, "finite_number"),
        ("strength", math.inf, "finite_number"),
        ("strength", 10**400, "float_type"),
        ("seed", "1.5", "int_parsing"),
        ("seed", 1e300, "less_than_equal"),
        ("seed", math.nan, "finite_number"),
        ("seed", math.inf, "finite_number"),
        ("num_images", 0.9, "greater_than_equal"),
        ("num_inference_steps", 13.1, "less_than_equal"),
        ("num_images", "two", "int_parsing"),
        ("num_inference_steps", [4], "int_type"),
        ("sync_mode", "perhaps", "bool_parsing"),
        ("prompt", "\ud800", "string_unicode"),
        ("prompt", b"\xff", "string_unicode"),
    ],
)
def test_a_value_of_the_wrong_kind_is_refused_at_its_field(field, value, kind):
    (fault,) = faults({**GOOD, field: value})

    assert (fault["loc"], fault["type"]) == (["body", field], kind)


@pytest.mark.parametrize(
    ("field", "value", "expected"),
    [
        ("num_images", 2.0, 2),
        ("num_images", "2", 2),
        ("num_inference_steps", "4.0", 4),
        ("seed", 42.0, 42),
        ("seed", 1234.5678, 1234),
        ("seed", -1.9, -1),
        ("num_images", 1.9, 1),
        ("num_inference_steps", 12.9, 12),
        ("prompt", 7, "7"),
        ("negative_prompt", 1.5, "1.5"),
        ("request_id", 17, "17"),
        ("strength", "0.5", 0.5),
        ("strength", 1, 1.0),
        ("sync_mode", "true", True),
        ("sync_mode", 1, True),
        ("enable_safety_checks", "no", False),
    ],
)
def test_numbers_and_flags_are_read_leniently(field, value, expected):
    assert getattr(schemas.validate({**GOOD, field: value}), field) == expected


@pytest.mark.parametrize("field", [name for name in LcmInput.model_fields if name not in GOOD])
def test_null_is_as_good_as_absent(field):
    assert schemas.validate({**GOOD, field: None}) == schemas.validate(GOOD)


@pytest.mark.parametrize(
    ("fields", "missing"),
    [
        ({"image_url": "u"}, "prompt"),
        ({"image_url": "u", "prompt": None}, "prompt"),
        ({"prompt": "p"}, "image_url"),
        ({"prompt": "p", "image_url": None}, "image_url"),
    ],
)
def test_a_required_field_is_missed(fields, missing):
    assert [(fault["loc"], fault["type"]) for fault in faults(fields)] == [(["body", missing], "missing")]


def test_unknown_fields_are_ignored():
    assert schemas.validate({**GOOD, "lora_url": "x", 7: "y", (1,): "z"}) == schemas.validate(GOOD)


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ({"enable_safety_checker": False}, False),
        ({"enable_safety_checker": False, "enable_safety_checks": True}, True),
        ({"enable_safety_checker": None}, True),
    ],
)
def test_the_siblings_name_of_the_safety_flag_counts_when_ours_is_absent(flags, expected):
    assert schemas.validate({**GOOD, **flags}).enable_safety_checks is expected


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        (b"", "missing"),
        (b"{", "json_invalid"),
        (b"\xff\xfe", "json_invalid"),
        (b"[" * 100_000, "json_invalid"),
        (b'{"seed": ' + b"1" * 5000 + b"}", "json_invalid"),
        (b"[]", "model_attributes_type"),
        (b'"text"', "model_attributes_type"),
        (b"null", "model_attributes_type"),
    ],
)
def test_a_body_that_is_no_json_object_is_refused_at_the_body(body, kind):
    with pytest.raises(InvalidInput) as caught:
        schemas.parse(body)

    (fault,) = caught.value.body["detail"]
    assert (fault["loc"], fault["type"]) == (["body"], kind)


def test_errors_never_repeat_what_was_sent():
    canary = "xyzzy-canary"
    wrong = {"prompt": {canary: canary}, "image_url": [canary], "seed": canary, "strength": canary, canary: canary}

    assert canary not in json.dumps(faults(wrong))


def test_a_random_seed_is_exact_in_javascript():
    seeds = {schemas.validate(GOOD).seeded().seed for _ in range(8)}

    assert len(seeds) > 1
    assert all(0 <= seed < 2**53 for seed in seeds)


def test_a_given_seed_is_kept():
    assert schemas.validate({**GOOD, "seed": 0}).seeded().seed == 0


def test_an_input_survives_being_stored():
    data = schemas.validate({**GOOD, "seed": MAX_SEED, "strength": 0.1}).seeded()

    assert schemas.parse(data.model_dump_json().encode()) == data
