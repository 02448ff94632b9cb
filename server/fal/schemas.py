"""Input and output of the endpoint: fal's `LCMI2IInput` and `LCMOutput`.

Coercions are pydantic's lax ones, as in fal's own framework: `4.0` and `"4"` are integers; and so are those of pydantic
1, for which apps were written: 4.7 is 4 where an integer is wanted, and a number is a text. Beyond them, `null` counts
as absent for every optional field (JavaScript's msgpack writes `undefined` as nil), and unknown fields are ignored. No
error repeats what was sent: it may be a prompt or a picture.
"""

import math
import secrets
from collections.abc import Mapping
from typing import Annotated, Any

import pydantic
import pydantic_core
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from pipelines.messages import GenerationParams
from server.fal.errors import InvalidInput, error_item

# Only 77 tokens of a prompt are used; beyond this length tokenising it would be the work.
MAX_PROMPT_CHARS = 50_000

# torch's range of seeds, less room for the seed + i of further images.
MIN_SEED = -(2**63)
MAX_SEED = 2**64 - 16

Prompt = Annotated[str, Field(max_length=MAX_PROMPT_CHARS)]

_EXAMPLE_PROMPT = "masterpiece, colorful, photo of a beach in hawaii, sun"
_EXAMPLE_IMAGE = "https://storage.googleapis.com/falserverless/model_tests/lcm/beach.png"


def _truncated(value: Any) -> Any:
    return int(value) if isinstance(value, float) and math.isfinite(value) else value


def _ignored(_: Any) -> None:
    """Return None, whatever was sent: what is ignored can't be wrong."""


Integer = Annotated[int, BeforeValidator(_truncated)]
Ignored = Annotated[str | None, BeforeValidator(_ignored)]


class LcmInput(BaseModel):
    """The input, in fal's declared order."""

    model_config = ConfigDict(
        title="LCMI2IInput", extra="ignore", frozen=True, allow_inf_nan=False, coerce_numbers_to_str=True
    )

    prompt: Prompt = Field(
        description="The prompt to use for generating the image. Be as descriptive as possible for best results.",
        examples=[_EXAMPLE_PROMPT],
    )
    image_url: str = Field(description="The image to use as a base: URL or data URI.", examples=[_EXAMPLE_IMAGE])
    mask_url: Ignored = Field(None, description="Accepted for compatibility with the generic LCM app, and ignored.")
    strength: float = Field(0.8, ge=0, le=1, description="How far the result may be from the image.")
    negative_prompt: Prompt = Field(
        "", description="What the image should not show; used when guidance_scale is above 1."
    )
    seed: Integer | None = Field(
        None, ge=MIN_SEED, le=MAX_SEED, description="The same seed and the same input give the same image."
    )
    guidance_scale: float = Field(1, ge=0, le=16, description="How closely to follow the prompt (CFG scale).")
    num_inference_steps: Integer = Field(4, ge=1, le=12, description="The number of inference steps.")
    sync_mode: bool = Field(
        default=False, description="If true, the images are in the answer itself, as data URIs, and are not stored."
    )
    num_images: Integer = Field(
        1, ge=1, le=8, description="The number of images, with the same prompt and different seeds."
    )
    enable_safety_checks: bool = Field(
        default=True, description="If true, an unsafe image is replaced with a black one."
    )
    request_id: str = Field("", max_length=4096, description="An id of the caller's, which the output repeats.")

    def seeded(self) -> "LcmInput":
        """Return this input with a seed: its own, or a random one of 32 bits, which JavaScript reads exactly."""
        return self if self.seed is not None else self.model_copy(update={"seed": secrets.randbits(32)})

    def params(self) -> GenerationParams:
        """Return the engine's parameters. The seed must be set."""
        assert self.seed is not None  # noqa: S101 — `seeded` comes first
        return GenerationParams(
            prompt=self.prompt,
            seed=self.seed,
            negative_prompt=self.negative_prompt,
            strength=self.strength,
            num_inference_steps=self.num_inference_steps,
            guidance_scale=self.guidance_scale,
            num_images=self.num_images,
            enable_safety_checks=self.enable_safety_checks,
        )


class Image(BaseModel):
    """One result picture."""

    url: str = Field(description="Where the image is, or the image itself as a data URI.")
    width: int
    height: int
    content_type: str = "image/jpeg"


class LcmOutput(BaseModel):
    """The output, in fal's declared order. It documents; answers are built as plain dicts."""

    model_config = ConfigDict(title="LCMOutput")

    images: list[Image] = Field(description="The generated images.")
    timings: dict[str, float] = Field(description="Seconds per stage; `inference` is all of it.")
    seed: int = Field(description="The seed that was used.")
    num_inference_steps: int = Field(4, description="The number of inference steps.")
    request_id: str = Field("", description="The request_id of the input.")
    nsfw_content_detected: list[bool] = Field(description="Whether each image was found unsafe.")


def parse_json(body: bytes | bytearray) -> dict[str, Any]:
    """Return the JSON object in a request's body. Raises `InvalidInput`."""
    if not body:
        raise InvalidInput([error_item(("body",), "missing", "Field required")])
    value = from_json(body)
    if not isinstance(value, dict):
        raise not_an_object()
    return value


def from_json(text: bytes | bytearray) -> Any:
    """Return the value of a JSON text. Raises `InvalidInput`."""
    try:
        return pydantic_core.from_json(text)
    except ValueError as error:
        raise json_invalid(error) from None


def json_invalid(error: Exception) -> InvalidInput:
    """Return the error for text that is no JSON. Parsers name the place and the rule, never the text."""
    return InvalidInput([error_item(("body",), "json_invalid", "JSON decode error", {"error": str(error)})])


def not_an_object() -> InvalidInput:
    """Return the error for JSON or msgpack that is no object."""
    message = "Input should be a valid dictionary or object to extract fields from"
    return InvalidInput([error_item(("body",), "model_attributes_type", message)])


def parse(body: bytes) -> LcmInput:
    """Return the input in a JSON body that this server wrote. Raises `InvalidInput`."""
    return validate(parse_json(body))


def validate(fields: Mapping[str, Any]) -> LcmInput:
    """Return the input with these fields. Raises `InvalidInput` with every fault."""
    present = {name: value for name, value in fields.items() if value is not None}
    # The siblings' name for the same flag.
    if "enable_safety_checker" in present:
        present.setdefault("enable_safety_checks", present["enable_safety_checker"])
    try:
        return LcmInput.model_validate(present)
    except pydantic.ValidationError as error:
        raise invalid_input(error) from None


def invalid_input(error: pydantic.ValidationError) -> InvalidInput:
    """Return pydantic's faults in fal's shape, without the input."""
    return InvalidInput([_item(fault) for fault in error.errors(include_url=False, include_input=False)])


def _item(fault: Any) -> dict[str, Any]:
    kind, ctx = fault["type"], fault.get("ctx")
    if kind == "string_too_long":
        kind = "sequence_too_long"
    return error_item(("body", *fault["loc"]), kind, fault["msg"], ctx)
