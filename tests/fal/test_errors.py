"""Errors have fal's shapes."""

import pytest

from server.fal.errors import REQUEST_ERRORS, PlainError, RequestError, error_item, invalid, start_timed_out


def test_an_invalid_field_is_a_422_with_the_field_in_loc():
    error = invalid("strength", "less_than_equal", "Input should be less than or equal to 1", {"le": 1})

    assert error.status == 422
    assert error.body["detail"] == [
        {
            "loc": ["body", "strength"],
            "msg": "Input should be less than or equal to 1",
            "type": "less_than_equal",
            "url": "https://docs.fal.ai/errors/#less_than_equal",
            "ctx": {"le": 1},
        }
    ]


def test_a_422_says_that_trying_again_is_useless():
    headers = invalid("prompt", "missing", "Field required").headers

    assert headers["X-Fal-Retryable"] == "false"


@pytest.mark.parametrize(("error_type", "status"), REQUEST_ERRORS.items())
def test_a_request_error_has_its_types_status_and_header(error_type, status):
    error = RequestError(error_type, "why")

    assert (error.status, error.headers["X-Fal-Error-Type"]) == (status, error_type)
    assert error.body == {"detail": "why", "message": "why", "error_type": error_type}


def test_a_plain_error_is_a_detail():
    assert PlainError(404, "Path /x not found").body["detail"] == "Path /x not found"


def test_no_item_repeats_what_was_sent():
    assert "input" not in error_item(("body", "prompt"), "string_type", "Input should be a valid string")


def test_a_start_timeout_is_the_callers_own():
    error = start_timed_out()

    assert (error.status, error.headers["X-Fal-Request-Timeout-Type"]) == (504, "user")
