"""The ids of the one app."""

import pytest

from server.fal.endpoints import LCM_SD15_I2I, Target, resolve
from server.fal.errors import PlainError


@pytest.mark.parametrize("app", ["fal-ai/lcm-sd15-i2i", "110602490/lcm-sd15-i2i", "110602490-lcm-sd15-i2i"])
@pytest.mark.parametrize(("rest", "path"), [("", ""), ("/", ""), ("/stream", "stream"), ("/a/b/", "a/b")])
def test_every_spelling_of_the_id_is_the_same_app(app, rest, path):
    assert resolve(app + rest) == Target(LCM_SD15_I2I, path)


@pytest.mark.parametrize(
    "path", ["", "/", "lcm-sd15-i2i", "fal-ai", "fal-ai/other", "someone/lcm-sd15-i2i", "110602490-other", "1-2-3/x"]
)
def test_other_apps_are_not_found(path):
    with pytest.raises(PlainError, match="Application") as caught:
        resolve(path)

    assert caught.value.status == 404
