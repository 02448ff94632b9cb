"""Tokens over HTTP, in fal's two forms."""

import jwt
import pytest

from tests.support.app_client import INPUT, RUN, serving

pytestmark = pytest.mark.anyio

KEY = {"authorization": "Key alice:a"}
WANTED = {"allowed_apps": ["lcm-sd15-i2i"], "token_expiration": 120}


def claims(token):
    return jwt.decode(token, options={"verify_signature": False})


@pytest.mark.parametrize(
    "url", ["https://rest.fal.ai/tokens/", "https://rest.alpha.fal.ai/tokens/", "http://localhost/rest/tokens"]
)
async def test_a_token_is_a_bare_json_string(tmp_path, url):
    async with serving(tmp_path, keys="alice:a") as web:
        answer = await web.call("POST", url, body=WANTED, headers=KEY)

    assert (answer.status, answer.headers["content-type"]) == (200, "application/json")
    assert isinstance(answer.json(), str)


async def test_the_newer_form_is_an_object(tmp_path):
    async with serving(tmp_path, keys="alice:a") as web:
        body = {"allowed_apps": ["fal-ai/lcm-sd15-i2i/realtime"], "duration": 60}
        token = (await web.call("POST", "https://rest.fal.ai/tokens/realtime", body=body, headers=KEY)).json()["token"]
        answer = await web.call("POST", f"{RUN}/stream?fal_jwt_token={token}", body=INPUT)

    assert answer.status == 200


@pytest.mark.parametrize(
    ("asked", "seconds"),
    [
        ({"token_expiration": 60}, 60),
        ({"duration": 300}, 300),
        ({"token_expiration": "90"}, 90),
        ({"token_expiration": 90.7}, 90),
        ({"duration": None}, 120),
        ({}, 120),
        ({"token_expiration": 10**9}, 600),
    ],
)
async def test_a_token_lives_as_long_as_asked_but_not_for_ever(tmp_path, asked, seconds):
    async with serving(tmp_path, keys="alice:a", max_token_seconds=600) as web:
        body = {"app": "lcm-sd15-i2i", **asked}
        token = (await web.call("POST", "/rest/tokens", body=body, headers=KEY)).json()

    assert claims(token)["exp"] - claims(token)["iat"] == seconds


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "allowed_apps"),
        ({"allowed_apps": []}, "allowed_apps"),
        ({"allowed_apps": "lcm"}, "allowed_apps"),
        ({"allowed_apps": [1]}, 0),
        ({"allowed_apps": ["a"] * 101}, "allowed_apps"),
        ({**WANTED, "token_expiration": 0}, "token_expiration"),
        ({**WANTED, "duration": "long"}, "duration"),
        (b"", "body"),
        (b"[]", "body"),
    ],
)
async def test_a_malformed_wish_is_422(tmp_path, body, field):
    async with serving(tmp_path) as web:
        answer = await web.call("POST", "/rest/tokens", body=body)

    assert answer.status == 422
    assert answer.json()["detail"][0]["loc"][-1] == field


@pytest.mark.parametrize("path", ["/rest/tokens", "/rest/tokens/realtime"])
@pytest.mark.parametrize("authorization", [None, "Key alice:wrong", "Bearer x"])
async def test_with_keys_a_token_needs_one(tmp_path, path, authorization):
    async with serving(tmp_path, keys="alice:a") as web:
        answer = await web.call("POST", path, body=WANTED, headers={"authorization": authorization})

    assert answer.status == 401


async def test_a_token_makes_no_tokens(tmp_path):
    async with serving(tmp_path, keys="alice:a") as web:
        token = (await web.call("POST", "/rest/tokens", body=WANTED, headers=KEY)).json()
        answer = await web.call("POST", f"/rest/tokens?fal_jwt_token={token}", body=WANTED)
        bearer = await web.call("POST", "/rest/tokens", body=WANTED, headers={"authorization": f"Bearer {token}"})

    assert (answer.status, bearer.status) == (401, 401)
