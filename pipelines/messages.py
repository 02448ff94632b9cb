"""Messages between the server and an engine process. With `frames`, all that the server imports of `pipelines`.

An engine is one process per device, started by the server and connected to it by one Unix stream socket.

    server → engine    Configure, then any number of Work and Cancel, at last Drain
    engine → server    Loading*, then Ready or SetupFailed; Beat all along;
                       per Work: Started, Log*, Preview*, and exactly one of Generated, Failed or Cancelled;
                       before them Decoded if its picture is large; or Large alone, which gives the request back

An engine's messages about one request come in this order; messages about different requests interleave freely.
"""

import enum
from typing import Literal, TypeAlias, get_args

import msgspec

# Seconds that an engine may be silent, unless its last `Beat` asked for more.
PATIENCE_S = 30.0

# Exit status of an engine whose device had too little memory at the start: try again (<sysexits.h>, TEMPFAIL).
EXIT_NO_ROOM = 75

# Exit status of an engine whose device can't capture CUDA graphs: try again without (`EngineConfig.graphs`).
EXIT_CAPTURE_FAILED = 76

# Bytes above which a picture's file is large without a look at its header: to read that of 8 MiB can hold an engine's
# threads for a tenth of a second. Few pictures of a model's size have more.
QUICK_BYTES = 2 * 1024 * 1024

# Exit status of an engine that has waited for its weights, which are on disk now: start it again.
EXIT_WEIGHTS_FOUND = 77

# Seconds between two looks for weights that are not on disk: a few small files are read, and no network is asked.
WEIGHTS_LOOK_S = 5.0

# Seconds of waiting that raise a request by one class: after 15 s, LOW is as urgent as a new REALTIME.
AGEING_S = 5.0


class Priority(enum.IntEnum):
    """Class of a request when the device is full. Lower runs earlier; waiting raises a request, so none starves."""

    REALTIME = 0
    RUN = 1
    NORMAL = 2
    LOW = 3

    def level(self, waited_s: float) -> int:
        """Return the class that it counts as after waiting: 0 is the most urgent."""
        return max(0, self - int(waited_s / AGEING_S))

    @staticmethod
    def between_tenants(level: int) -> int:
        """Return the class by which requests of different tenants are ordered: REALTIME and RUN are one."""
        return max(level, Priority.RUN)


def fair_limit(limit: int, held: int, tenants: int) -> int:
    """Return how many units may be in use when a tenant which holds `held` of them gets another.

    `limit`, or twice as many while the tenant holds less than an equal part: `limit` divided by `tenants`.
    """
    return 2 * limit if held < limit // tenants else limit


class GenerationParams(msgspec.Struct, frozen=True, kw_only=True):
    """Parameters of one request. Image *i* of a request uses `seed + i`."""

    prompt: str
    seed: int
    negative_prompt: str = ""
    strength: float = 0.8
    num_inference_steps: int = 4
    guidance_scale: float = 1.0
    num_images: int = 1
    enable_safety_checks: bool = True


class Picture(msgspec.Struct, frozen=True):
    """One output image: JPEG bytes, size in pixels, and whether it is black because the safety checker flagged it."""

    data: bytes
    width: int
    height: int
    nsfw: bool


class EngineConfig(msgspec.Struct, frozen=True, kw_only=True):
    """Configuration of an engine process, from the server's settings (`fourstep serve --help`)."""

    model: str
    lora: str = "auto"
    vae: str = "full"
    safety_checker: str = "auto"
    force_safety_checks: bool = False
    device: str = "auto"
    dtype: str = "auto"
    data_dir: str
    threads: int = 0
    max_batch: int = 8
    graphs: Literal["auto", "off"] = "auto"
    max_image_pixels: int = 50_000_000
    max_image_bytes: int = 50 * 1024 * 1024
    max_side: int = 1024
    min_side: int = 64
    color_management: Literal["on", "off"] = "on"
    jpeg_quality: int = 95
    jpeg_subsampling: Literal["4:4:4", "4:2:2", "4:2:0"] = "4:4:4"
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_format: Literal["auto", "human", "json"] = "auto"


# --- server → engine ---------------------------------------------------------------------------------------------


class Configure(msgspec.Struct, frozen=True, tag=True):
    """Load this model and become ready. The first message."""

    config: EngineConfig


class Work(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """One request. `image`: the encoded input picture as received. `tenant`: the caller that fairness counts it for.

    `large`: a decoder process decodes the picture, because its file is over `QUICK_BYTES` or an engine has said that it
    takes long (`Large`). `alone`: no other that takes much memory is decoded meanwhile, so this one may.
    """

    id: str
    params: GenerationParams
    image: bytes
    priority: Priority = Priority.RUN
    tenant: str = ""
    previews: bool = False
    large: bool = False
    alone: bool = False


class Cancel(msgspec.Struct, frozen=True, tag=True):
    """Stop this request at its next step. Unknown and finished ids are ignored."""

    id: str


class Drain(msgspec.Struct, frozen=True, tag=True):
    """Finish what was submitted, then exit with status 0."""


# --- engine → server ---------------------------------------------------------------------------------------------


class Loading(msgspec.Struct, frozen=True, tag=True):
    """Progress of loading: `fraction` in 0…1, and `what` is being done, human-readable."""

    fraction: float
    what: str


class Ready(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """The engine takes work.

    `capacity`: the number of requests to assign to it at once, those on the device and the next few being decoded.
    `decoders`: the number of large pictures that it may decode at once; their requests come on top of `capacity`.
    `processors`: those that it may use, half of which all engines of this machine may keep busy with large pictures.
    `torch`: its version, "" without. `notice`: what the operator must know of this model, "" for nothing.
    """

    model: str
    device: str
    dtype: str
    torch: str = ""
    capacity: int
    decoders: int
    processors: int
    notice: str = ""


class SetupFailed(msgspec.Struct, frozen=True, tag=True):
    """The model can't be loaded; starting again changes nothing until the operator does what `hint` says.

    `waits`: what is missing are files. The engine looks for them every `WEIGHTS_LOOK_S` seconds, sends this again when
    the reason has changed, and exits with `EXIT_WEIGHTS_FOUND` when all are there, whole.
    """

    reason: str
    hint: str
    waits: bool = False


class Beat(msgspec.Struct, frozen=True, tag=True):
    """Sign that the engine's loop is alive: sent before a stage, and once a second when idle.

    Sent at most four times a second, unless it asks for more time. `allow_s`: seconds that this stage may be silent
    before the engine counts as hung, if more than `PATIENCE_S`. `running`: ids of the requests on the device.
    """

    stage: str
    allow_s: float
    running: tuple[str, ...]


class Large(msgspec.Struct, frozen=True, tag=True):
    """The request is given back: its picture takes long to decode. Send it again, `large`, when a decoder is free.

    `alone`: decoding takes so much memory that no other such picture may be decoded on the machine at the same time.
    A request that was sent as `large` is given back only for that.
    """

    id: str
    alone: bool


class Decoded(msgspec.Struct, frozen=True, tag=True):
    """The request's large picture has been decoded: from now on the request is one of those in `Ready.capacity`."""

    id: str


class Started(msgspec.Struct, frozen=True, tag=True):
    """The request has been admitted to the device."""

    id: str


class Log(msgspec.Struct, frozen=True, tag=True):
    """A log line for the request's owner. Counts and names of stages only; never prompt text."""

    id: str
    message: str
    level: Literal["DEBUG", "INFO", "WARN", "ERROR"] = "INFO"


class Preview(msgspec.Struct, frozen=True, tag=True):
    """The first image of a request with `previews` set, after denoising step `step` of `steps`."""

    id: str
    step: int
    steps: int
    picture: Picture


class Generated(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """The request is finished. `timings`: seconds; `inference` is the total, and there is one key per stage."""

    id: str
    pictures: tuple[Picture, ...]
    timings: dict[str, float]


# Fal's model error types, answered 422 with loc ["body", "image_url"].
InputFault: TypeAlias = Literal[
    "image_load_error", "unsupported_image_format", "image_too_small", "image_too_large", "file_too_large"
]
EngineFault: TypeAlias = Literal["out_of_memory", "bad_output", "engine_error"]
FailureKind: TypeAlias = InputFault | EngineFault

INPUT_FAULTS: frozenset[str] = frozenset(get_args(InputFault))


class Failed(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """The request has failed.

    `message` is for its owner and has nothing of the prompt. `ctx` is as in fal's errors (`max_size`, `min_width`,
    `supported_formats`, …).
    """

    id: str
    kind: FailureKind
    message: str
    ctx: dict[str, int | float | str | list[str]] = msgspec.field(default_factory=dict)


class Cancelled(msgspec.Struct, frozen=True, tag=True):
    """The request was stopped by a `Cancel`."""

    id: str


# What an engine says last about a request.
LastMessage: TypeAlias = Large | Generated | Failed | Cancelled

ToEngine: TypeAlias = Configure | Work | Cancel | Drain
FromEngine: TypeAlias = Loading | Ready | SetupFailed | Beat | Decoded | Started | Log | Preview | LastMessage
