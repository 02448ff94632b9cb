"""What a section of settings is made of: types, the setting itself, the check of both; and sections without a base."""

import dataclasses
import sys
import typing
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta
from typing_extensions import override


class SettingsError(ValueError):
    """A setting with an impossible value; the message says which, and what is possible."""


FINITE = sys.float_info.max
Port = Annotated[int, Meta(ge=0, le=65535)]
Side = Annotated[int, Meta(ge=64, le=8192)]
Count = Annotated[int, Meta(ge=0)]
Positive = Annotated[int, Meta(ge=1)]
Seconds = Annotated[float, Meta(ge=0, le=FINITE)]
Minutes = Annotated[float, Meta(ge=0, le=525_600)]
Wait = Annotated[float, Meta(ge=0.05, le=FINITE)]  # with less no network could do it; with 0 every call would fail


def setting(default: Any, why: str) -> Any:
    """Return a section's field. `why`: what it is and the reason for its default; the text of `--help`."""
    return dataclasses.field(default=default, metadata={"help": why})


@dataclasses.dataclass(frozen=True, kw_only=True)
class Section:
    """A frozen group of settings which checks its values when it is made."""

    def __post_init__(self) -> None:
        """Check each field against its type. Raises `SettingsError`."""
        for name, rule in typing.get_type_hints(type(self), include_extras=True).items():
            value = getattr(self, name)
            try:
                msgspec.convert(value, rule)
            except msgspec.ValidationError as error:
                raise SettingsError(f"{name.replace('_', '-')}: {_fault(value, rule)}") from error


def _fault(value: object, rule: Any) -> str:
    """Say what is wrong with a value that does not fit its type, and what would fit."""
    if typing.get_origin(rule) is Literal:
        return f"{value!r} is none of {', '.join(typing.get_args(rule))}"
    bounded = next(iter(typing.get_args(rule)), rule) if type(None) in typing.get_args(rule) else rule
    [bounds] = getattr(bounded, "__metadata__", [None])
    if bounds is None or not isinstance(value, int | float):
        return f"{value!r} is not of type {getattr(bounded, '__origin__', bounded).__name__}"
    highest = None if bounds.le == FINITE else bounds.le
    return f"{value} is out of bounds; " + (f"at least {bounds.ge}" if highest is None else f"{bounds.ge} to {highest}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class RequestSettings(Section):
    """Limits on one request and its result."""

    max_body_bytes: Positive = setting(72 * 1024 * 1024, "largest request body: a 50 MiB picture in base64, and some")
    max_image_bytes: Positive = setting(50 * 1024 * 1024, "largest input picture, as fal's own toolkit has it")
    max_image_pixels: Positive = setting(50_000_000, "largest input picture in pixels: phones take 48 megapixels")
    max_side: Side = setting(
        1024,
        "longest side that is computed, a multiple of 8; larger pictures are brought down to it. The model was taught"
        " at 512: at twice that it begins to repeat itself, and a step takes more than four times as long",
    )
    min_side: Side = setting(64, "shortest side that is computed: with less there is nothing to see; smaller is 422")
    color_management: Literal["on", "off"] = setting(
        "on",
        "on: colours by the picture's own profile (Display P3, Adobe RGB, CMYK), as its owner saw them; off: profiles"
        " are ignored, as fal's endpoint does",
    )
    jpeg_quality: Annotated[int, Meta(ge=1, le=100)] = setting(
        95, "quality of output JPEGs, 1…100; above 95 only the files grow"
    )
    jpeg_subsampling: Literal["4:4:4", "4:2:2", "4:2:0"] = setting(
        "4:4:4", "chroma subsampling of output JPEGs: 4:4:4, 4:2:2 or 4:2:0"
    )

    @override
    def __post_init__(self) -> None:
        super().__post_init__()
        if self.max_side % 8:
            raise SettingsError(f"max-side: {self.max_side} is no multiple of 8")
        if self.min_side > self.max_side:
            raise SettingsError("min-side: must not be more than max-side")


@dataclasses.dataclass(frozen=True, kw_only=True)
class QueueSettings(Section):
    """How many jobs wait, and how long their results stay."""

    max_queue: Positive = setting(10_000, "requests that may wait; one more gets 429")
    result_ttl: Seconds = setting(7 * 86400.0, "seconds that queue results stay fetchable")
    tombstone_ttl: Seconds = setting(30 * 86400.0, "seconds that an expired request is answered with 410, not 404")
    jobs_quota_bytes: Count = setting(
        10 * 1024**3,
        "disk for queued inputs and results; beyond it old results go, of the key which has the most first, and its "
        "submits get 429; all submits do beyond twice as much, if no result is ten minutes old",
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class FetchSettings(Section):
    """Where image URLs and webhooks may lead, and how long that takes."""

    allow_net: str = setting(
        "",
        "networks inside that image URLs and webhooks may lead to: 192.168.1.0/24,10.0.0.7; public ones always may",
    )
    outbound_proxy: str = setting(
        "", "HTTP proxy that leads to image URLs and webhooks outside: http://host:port, http://user:password@host:port"
    )
    url_files: str = setting("", "URLs that are answered from disk: URL=FILE,URL=FILE")
    fetch_connect_timeout: Wait = setting(3.0, "seconds to connect to an image's or a webhook's server")
    fetch_timeout: Wait = setting(15.0, "seconds that fetching an image may take in all")
    max_fetches: Positive = setting(
        32,
        "pictures on their way at once, of one key no more than its key-share of them: several for each that "
        "an engine can work on meanwhile. The others wait, for as long as one fetch may take, then get 429",
    )
    fetch_redirects: Count = setting(4, "redirects followed for an image: shorteners and CDNs need two or three")


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataSettings(Section):
    """The data directory and the paths in it."""

    data_dir: Path = setting(Path("~/.local/share/fourstep"), "jobs, files, keys, certificates")
    files: str = setting(
        "",
        "where stored files lie if not in the data folder: s3://bucket/prefix, or file:///folder on a mount that"
        " servers share; needs fourstep[cluster], and S3 its variables: AWS_ENDPOINT_URL, AWS_ACCESS_KEY_ID, …",
    )

    @property
    def tls_dir(self) -> Path:
        """Folder of the local CA and its certificates."""
        return self.data_dir / "tls"

    @property
    def files_dir(self) -> Path:
        """Folder of uploads and results."""
        return self.data_dir / "files"

    @property
    def jobs_path(self) -> Path:
        """The job database."""
        return self.data_dir / "jobs.sqlite"

    @property
    def webhook_keys_path(self) -> Path:
        """The keys that sign webhooks."""
        return self.data_dir / "webhook-keys.json"


@dataclasses.dataclass(frozen=True, kw_only=True)
class LogSettings(Section):
    """What is logged to stderr, by the server and its engines."""

    log_level: Literal["debug", "info", "warning", "error"] = setting(
        "info", "debug (also probes, what was read, realtime's frames), info, warning or error; libraries: warning"
    )
    log_format: Literal["auto", "human", "json"] = setting(
        "auto", "auto (to be read; at a terminal with a progress line), human (without), json (one object a line)"
    )
