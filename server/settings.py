"""Every setting, its default and its reason: the one door to the environment.

Each field is a flag of `fourstep serve` and a `FOURSTEP_…` variable (flag wins): `tls_port` is `--tls-port` and
`FOURSTEP_TLS_PORT`. A `FOURSTEP_…` variable that names no setting is an error, so that a typing mistake can't pass for
a setting. Values derived from others are properties.
"""

import dataclasses
import math
import os
import re
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipelines.messages import EngineConfig

PREFIX = "FOURSTEP_"


class SettingsError(ValueError):
    """A setting that can't be: the message says which, and what would do."""


def _setting(
    default: Any, why: str, *, within: tuple[float, float] = (0, math.inf), one_of: tuple[str, ...] = ()
) -> Any:
    """A field. Numbers must lie `within` its bounds, text be `one_of` a list where there is one."""
    return dataclasses.field(default=default, metadata={"help": why, "within": within, "one_of": one_of})


_PORT = (0, 65535)
_AT_LEAST_ONE = (1, math.inf)
_A_WAIT = (0.05, math.inf)  # seconds; with less no network could do it, and with 0 every call would fail
_DEVICE = re.compile(r"auto|cpu|mps|cuda(:\d{1,3})?")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """What the operator decided. Frozen: a running server never changes its mind."""

    # where it listens
    host: str = _setting("127.0.0.1", "address to listen on; anything but loopback needs keys")
    port: int = _setting(8000, "plain HTTP port; 0 picks a free one", within=_PORT)
    tls_port: int | None = _setting(
        None, "also serve https on this port, with the local CA; 0 picks a free one", within=_PORT
    )
    tls_names: str = _setting(
        "", "further DNS names and IP addresses that the local CA may sign for: box.lan,192.168.1.5"
    )
    takeover: bool = _setting(False, "also serve https on port 443, for fal's own host names")  # noqa: FBT003
    public_url: str = _setting(
        "", "base URL that clients use, when a proxy stands in front; without it the request's own"
    )
    trusted_proxies: str = _setting(
        "127.0.0.1,::1", "addresses whose X-Forwarded-For and X-Forwarded-Proto are believed"
    )

    # the model
    model: str = _setting(
        "sd15", "sd15, demo, auto, a hub id, a folder in diffusers layout or a .safetensors checkpoint"
    )
    lora: str = _setting("auto", "LCM-LoRA: auto, a hub id, a .safetensors file or none")
    vae: str = _setting("full", "full, tiny (TAESD) or a folder")
    safety_checker: str = _setting("auto", "auto (the one that comes with the model), a hub id, a folder or none")
    force_safety_checks: bool = _setting(False, "run the safety checker whatever the request says")  # noqa: FBT003
    device: str = _setting("auto", "auto (cuda, then mps, then cpu), or a comma-separated list: cuda:0,cuda:1")
    dtype: str = _setting(
        "auto",
        "auto (float16 on cuda, else float32), float16, bfloat16 or float32",
        one_of=("auto", "float16", "bfloat16", "float32"),
    )
    threads: int = _setting(0, "CPU threads of an engine on the cpu; 0 = one per core")
    max_batch: int = _setting(
        8, "images that may share one step; with 1, nothing else in flight changes a bit", within=_AT_LEAST_ONE
    )
    compile: bool = _setting(
        False,  # noqa: FBT003
        "on cuda, torch.compile the usual sizes: minutes at the first start; off until a GPU has shown its gain",
    )
    start_timeout: float = _setting(120.0, "seconds that a call waits for the model to load before it gets 504")

    # where things lie
    data_dir: Path = _setting(Path("~/.local/share/fourstep"), "jobs, files, keys, certificates")

    # keys
    keys: str = _setting("", "id:secret,id:secret — the quick way to set API keys; `fourstep keys` is the other")
    allow_anonymous: bool = _setting(False, "serve other machines although no keys are set")  # noqa: FBT003
    allow_origin: str = _setting(
        "", "web origins that may call a server without keys, beside loopback's: https://app.example"
    )

    key_share: float = _setting(
        0.5,
        "part of max-calls, max-sessions, max-queue, max-fetches and body-budget-bytes that one key may take, unless"
        " `fourstep keys` gave it limits of its own: a client that runs wild leaves the rest to the others",
        within=(0.001, 1),
    )

    max_token_seconds: int = _setting(
        3600,
        "seconds that a token for browsers lives at most: fal's clients ask for 120, and nobody can take one back",
        within=_AT_LEAST_ONE,
    )

    # limits on connections
    max_connections: int = _setting(
        1024, "open connections; for one more an idle one is closed, else its request gets 429", within=_AT_LEAST_ONE
    )
    max_header_bytes: int = _setting(
        32 * 1024, "request line and headers: fal allows 16 KB, proxies add theirs", within=(1024, math.inf)
    )
    header_timeout: float = _setting(
        10.0, "seconds for a TLS handshake, and for a request's headers to arrive", within=_A_WAIT
    )
    body_timeout: float = _setting(
        20.0, "seconds that a body may fall behind min-body-rate: a stall of a mobile link", within=_A_WAIT
    )
    min_body_rate: int = _setting(
        16 * 1024, "bytes a second that a body must keep up: a slow uplink's 128 kbit/s", within=_AT_LEAST_ONE
    )
    send_timeout: float = _setting(60.0, "seconds that a client may leave an answer unread", within=_A_WAIT)
    keep_alive: int = _setting(75, "seconds that an idle connection stays open: longer than clients reuse theirs")
    max_frame_rate: int = _setting(
        120,
        "frames a second from one websocket: twice what a screen shows, fal's clients send 16",
        within=_AT_LEAST_ONE,
    )
    ping_interval: float = _setting(
        20.0, "seconds between websocket pings; without a pong for as long it is closed", within=_A_WAIT
    )
    drain_timeout: int = _setting(15, "seconds that running requests get to finish when the server is stopped")

    # limits on calls
    max_calls: int = _setting(256, "run and stream calls in hand at once; one more gets 429", within=_AT_LEAST_ONE)
    max_sessions: int = _setting(256, "open realtime sockets; one more is refused with 429", within=_AT_LEAST_ONE)
    body_budget_bytes: int = _setting(
        512 * 1024**2,
        "request bodies and fetched pictures in hand, all together; beyond it 429. Seven of the largest bodies, or a"
        " hundred photos; the process takes up to three times as much for them",
        within=_AT_LEAST_ONE,
    )
    session_idle_timeout: float = _setting(
        30.0, "seconds without an input after which a realtime socket is closed", within=_A_WAIT
    )
    max_waiting_bytes: int = _setting(
        64 * 1024**2,
        "inputs that wait on one realtime socket; for one more the oldest go. Sixty drawings of a megabyte",
        within=_AT_LEAST_ONE,
    )
    realtime_path: str = _setting("", "one more path for realtime sockets, beside /realtime and /ws: a client's own")

    # the queue
    max_queue: int = _setting(10_000, "requests that may wait; one more gets 429", within=_AT_LEAST_ONE)
    result_ttl: float = _setting(7 * 86400.0, "seconds that queue results stay fetchable")
    tombstone_ttl: float = _setting(30 * 86400.0, "seconds that an expired request is answered with 410, not 404")
    jobs_quota_bytes: int = _setting(
        10 * 1024**3, "disk for queued inputs and results; beyond it the oldest results go, then submits get 429"
    )

    # stored files
    file_ttl: float = _setting(30 * 86400.0, "seconds that files live whose owner did not say: uploads and results")
    files_quota_bytes: int = _setting(
        20 * 1024**3, "disk for stored files; beyond it the oldest go, then uploads get 429"
    )
    max_upload_bytes: int = _setting(
        512 * 1024**2, "largest upload; clients send more than 90 MiB in parts", within=_AT_LEAST_ONE
    )

    # what it fetches for callers
    allow_net: str = _setting(
        "", "networks inside that image URLs and webhooks may lead to: 192.168.1.0/24,10.0.0.7; public ones always may"
    )
    url_files: str = _setting("", "URLs that are answered from disk: URL=FILE,URL=FILE")
    fetch_connect_timeout: float = _setting(
        3.0, "seconds to connect to an image's or a webhook's server", within=_A_WAIT
    )
    fetch_timeout: float = _setting(15.0, "seconds that fetching an image may take in all", within=_A_WAIT)
    max_fetches: int = _setting(
        32,
        "pictures on their way at once, of one key no more than its key-share of them: several for each that an engine"
        " can work on meanwhile. The others wait, for as long as one fetch may take, then get 429",
        within=_AT_LEAST_ONE,
    )
    fetch_redirects: int = _setting(4, "redirects followed for an image: shorteners and CDNs need two or three")

    # limits on one request
    max_body_bytes: int = _setting(
        72 * 1024 * 1024, "largest request body: a 50 MiB picture in base64, and some", within=_AT_LEAST_ONE
    )
    max_image_bytes: int = _setting(
        50 * 1024 * 1024, "largest input picture, as fal's own toolkit has it", within=_AT_LEAST_ONE
    )
    max_image_pixels: int = _setting(
        50_000_000, "largest input picture in pixels: phones take 48 megapixels", within=_AT_LEAST_ONE
    )
    max_side: int = _setting(
        1024,
        "longest side that is computed, a multiple of 8; larger pictures are brought down to it. The model was taught"
        " at 512: at twice that it begins to repeat itself, and a step takes more than four times as long",
        within=(64, 8192),
    )
    min_side: int = _setting(
        64,
        "shortest side that is computed: with less the model has nothing to look at; smaller is 422",
        within=(64, 8192),
    )
    jpeg_quality: int = _setting(95, "quality of output JPEGs, 1…100; above 95 only the files grow", within=(1, 100))
    jpeg_subsampling: str = _setting(
        "4:4:4", "chroma subsampling of output JPEGs: 4:4:4, 4:2:2 or 4:2:0", one_of=("4:4:4", "4:2:2", "4:2:0")
    )

    def __post_init__(self) -> None:
        """Raises `SettingsError` for a value that can't be."""
        for name, field in FIELDS.items():
            value, (low, high), one_of = getattr(self, name), field.metadata["within"], field.metadata["one_of"]
            flag = name.replace("_", "-")
            if isinstance(value, int | float) and (math.isinf(value) or not low <= value <= high):
                bounds = f"at least {low}" if high == math.inf else f"{low} to {high}"
                raise SettingsError(f"{flag}: {value} is out of bounds; {bounds}")
            if one_of and value not in one_of:
                raise SettingsError(f"{flag}: {value!r} is none of {', '.join(one_of)}")
        if not self.devices:
            raise SettingsError("device: names none")
        for device in self.devices:
            if not _DEVICE.fullmatch(device):
                raise SettingsError(f"device: {device!r} is none of auto, cpu, mps, cuda, cuda:N")
        if self.public_url and not self.public_url.startswith(("http://", "https://")):
            raise SettingsError(f"public-url: {self.public_url!r} does not begin with http:// or https://")
        self._check_sizes()

    def _check_sizes(self) -> None:
        if self.max_side % 8:
            raise SettingsError(f"max-side: {self.max_side} is no multiple of 8")
        if self.min_side > self.max_side:
            raise SettingsError("min-side: must not be more than max-side")
        if self.body_budget_bytes < self.max_body_bytes:
            raise SettingsError("body-budget-bytes: must not be less than max-body-bytes")

    @property
    def tls_dir(self) -> Path:
        """Where the local CA and its certificates lie."""
        return self.data_dir / "tls"

    @property
    def files_dir(self) -> Path:
        """Where uploads and results lie."""
        return self.data_dir / "files"

    @property
    def jobs_path(self) -> Path:
        """The job database."""
        return self.data_dir / "jobs.sqlite"

    @property
    def webhook_keys_path(self) -> Path:
        """The keys that sign webhooks."""
        return self.data_dir / "webhook-keys.json"

    @property
    def engine(self) -> EngineConfig:
        """What an engine process is told: the settings that share its fields' names."""
        return EngineConfig(
            **{
                name: getattr(self, name)
                for name in EngineConfig.__struct_fields__
                if name in FIELDS and name != "data_dir"
            },
            data_dir=str(self.data_dir),
        )

    @property
    def devices(self) -> tuple[str, ...]:
        """One engine process runs for each."""
        return tuple(part.strip() for part in self.device.split(",") if part.strip())


FIELDS: dict[str, dataclasses.Field[Any]] = {field.name: field for field in dataclasses.fields(Settings)}

# The first setting of each group that `--help` shows, and the group's title.
SECTIONS = {
    "host": "where it listens",
    "model": "the model",
    "data_dir": "where things lie",
    "keys": "who may call",
    "max_connections": "limits on connections",
    "max_calls": "limits on calls",
    "max_queue": "the queue",
    "file_ttl": "stored files",
    "allow_net": "what it fetches for callers",
    "max_body_bytes": "limits on one request, and its result",
}
_TYPES = typing.get_type_hints(Settings)


def load(flags: Mapping[str, Any] | None = None, environ: Mapping[str, str] | None = None) -> Settings:
    """Settings from flags (those not None), else the environment, else defaults.

    Raises `SettingsError` for a value of the wrong type and for a `FOURSTEP_…` variable that names no setting.
    """
    source = os.environ if environ is None else environ
    values: dict[str, Any] = {}
    for variable, text in source.items():
        if not variable.startswith(PREFIX):
            continue
        name = variable.removeprefix(PREFIX).lower()
        if name not in FIELDS:
            raise SettingsError(f"{variable} names no setting; `fourstep serve --help` lists them")
        values[name] = parse(name, text)
    values.update({name: value for name, value in (flags or {}).items() if value is not None})
    settings = Settings(**values)
    return dataclasses.replace(settings, data_dir=settings.data_dir.expanduser().absolute())


def child_environment(**changes: str) -> dict[str, str]:
    """This process's environment for a child process, with `changes`; our own variables are told by flags instead."""
    return {name: text for name, text in os.environ.items() if not name.startswith(PREFIX)} | changes


def parse(name: str, text: str) -> Any:
    """The value that `text` writes for the setting `name`."""
    kind = _TYPES[name]
    optional = type(None) in typing.get_args(kind)
    if optional and text.strip().lower() in {"", "none"}:
        return None
    base = next(part for part in typing.get_args(kind) or (kind,) if part is not type(None))
    try:
        if base is bool:
            return _parse_bool(text)
        return base(text)
    except ValueError as error:
        wanted = {bool: "neither yes nor no", int: "no whole number", float: "no number"}[base]
        raise SettingsError(f"{name.replace('_', '-')}: {text!r} is {wanted}") from error


def _parse_bool(text: str) -> bool:
    word = text.strip().lower()
    if word in {"1", "true", "yes", "on"}:
        return True
    if word in {"0", "false", "no", "off", ""}:
        return False
    raise ValueError(text)
