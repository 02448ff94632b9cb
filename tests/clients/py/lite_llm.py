"""LiteLLM, which posts to `api_base` as it stands."""

import litellm
from kit import APP, INPUT, OPTIONS, say


def generate(api_base, **changes):
    """The links of two pictures."""
    call = {"model": f"fal_ai/{APP}", "api_base": api_base, "api_key": "any:thing", "num_images": 2}
    return [image.url for image in litellm.image_generation(**call, **INPUT | changes).data]


say([generate(api_base) for api_base in OPTIONS["api_bases"]])
try:
    generate(OPTIONS["api_bases"][0], strength=2)
except litellm.BadRequestError as error:
    say({"status": error.status_code, "message": str(error)})
