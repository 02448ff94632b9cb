"""Every setting, its default and its reason, in sections: a package takes its section, not all of `Settings`.

Each field is a flag of `fourstep serve` and a `FOURSTEP_…` variable: `tls_port` is `--tls-port` and
`FOURSTEP_TLS_PORT`. A section inherits those whose values its package needs too. Values derived from others are
properties. Sections are frozen, and check their values when they are made.
"""

import dataclasses
import re
from typing import Annotated, Literal

from msgspec import Meta
from typing_extensions import override

from pipelines.messages import EngineConfig
from server.section import (
    Count,
    DataSettings,
    FetchSettings,
    LogSettings,
    Minutes,
    Port,
    Positive,
    QueueSettings,
    RequestSettings,
    Seconds,
    SettingsError,
    Wait,
    setting,
)

__all__ = [
    "DataSettings",
    "FetchSettings",
    "LogSettings",
    "QueueSettings",
    "RequestSettings",
    "SettingsError",
]

_DEVICE = re.compile(r"auto|all|none|cpu|mps|cuda(:\d{1,3})?")


@dataclasses.dataclass(frozen=True, kw_only=True)
class LimitSettings(RequestSettings):
    """Limits on calls, realtime sockets and connections, of all callers together."""

    max_calls: Positive = setting(256, "run and stream calls in flight at once; one more gets 429")
    max_sessions: Positive = setting(256, "open realtime sockets; one more is refused with 429")
    max_connections: Positive = setting(1024, "open connections; for one more an idle one is closed, else it gets 429")
    body_budget_bytes: Positive = setting(
        512 * 1024**2,
        "request bodies and fetched pictures in memory, all together; beyond it 429. Seven of the largest "
        "bodies, or a hundred photos; the process takes up to three times as much for them",
    )
    max_downloads: Positive = setting(
        256, "stored files being sent at once, to one key or address its key-share of them; one more gets 429"
    )
    session_idle_timeout: Wait = setting(30.0, "seconds without an input after which a realtime socket is closed")
    max_waiting_bytes: Positive = setting(
        64 * 1024**2,
        "inputs that wait on one realtime socket; for one more the oldest go. Sixty drawings of a megabyte",
    )
    realtime_path: str = setting("", "one more path for realtime sockets, beside /realtime and /ws: a client's own")

    @override
    def __post_init__(self) -> None:
        super().__post_init__()
        if self.body_budget_bytes < self.max_body_bytes:
            raise SettingsError("body-budget-bytes: must not be less than max-body-bytes")


@dataclasses.dataclass(frozen=True, kw_only=True)
class StorageSettings(DataSettings, RequestSettings):
    """How long stored files live, and how much disk they take."""

    file_ttl: Seconds = setting(30 * 86400.0, "seconds that files live whose owner did not say: uploads and results")
    files_quota_bytes: Count = setting(
        20 * 1024**3,
        "disk for stored files, in whole blocks; beyond it the oldest of the key which has the most go, then its "
        "uploads get 429",
    )
    max_stored_files: Positive = setting(
        500_000,
        "files on disk at once, whatever their size: files-quota-bytes in results of 40 KB. Each takes an inode, and "
        "0.2 KB of memory",
    )
    max_upload_bytes: Positive = setting(512 * 1024**2, "largest upload; clients send more than 90 MiB in parts")


@dataclasses.dataclass(frozen=True, kw_only=True)
class AccessSettings(DataSettings, LimitSettings, QueueSettings):
    """Who may call, and which part of the limits one key may take."""

    keys: str = setting("", "id:secret,id:secret — the quick way to set API keys; `fourstep keys` is the other")
    allow_anonymous: bool = setting(False, "serve other machines although no keys are set")  # noqa: FBT003
    allow_origin: str = setting(
        "",
        "web origins that may call a server without keys, beside loopback's: https://*.example, chrome-extension://*",
    )
    key_share: Annotated[float, Meta(ge=0.001, le=1)] = setting(
        0.5,
        "part of max-calls, max-sessions, max-connections, max-queue, max-fetches, max-downloads, body-budget-bytes and"
        " jobs-quota-bytes that one key may take, unless `fourstep keys` gave it limits of its own: a wild client"
        " leaves the rest to others. Of files-quota-bytes and max-stored-files a key may have more while there is room",
    )
    max_token_seconds: Positive = setting(
        3600,
        "seconds that a token for browsers lives at most: fal's clients ask for 120, and none can be taken back",
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class ConnectionSettings(LimitSettings):
    """Limits on each connection: sizes, rates, deadlines."""

    max_header_bytes: Annotated[int, Meta(ge=1024)] = setting(
        32 * 1024, "request line and headers: fal allows 16 KB, proxies add theirs"
    )
    header_timeout: Wait = setting(10.0, "seconds for a TLS handshake, and for a request's headers to arrive")
    body_timeout: Wait = setting(20.0, "seconds that a body may fall behind min-body-rate: a stall of a mobile link")
    min_body_rate: Positive = setting(16 * 1024, "bytes a second that a body must keep up: a slow uplink's 128 kbit/s")
    send_timeout: Wait = setting(60.0, "seconds that a client may fall behind min-send-rate; then its answer is cut")
    min_send_rate: Positive = setting(16 * 1024, "bytes a second that a client must take: a slow link's 128 kbit/s")
    send_buffer_bytes: Count = setting(
        128 * 1024,
        "what the kernel keeps for each client that has not taken it, which bounds the speed to this much in a round"
        " trip; 0 lets the kernel decide: up to 4 MB on Linux",
    )
    keep_alive: Count = setting(75, "seconds that an idle connection stays open: longer than clients reuse theirs")
    max_frame_rate: Positive = setting(
        120, "frames a second from one websocket: twice what a screen shows, fal's clients send 16"
    )
    ping_interval: Wait = setting(20.0, "seconds between websocket pings; without a pong for as long it is closed")
    drain_timeout: Count = setting(15, "seconds that running requests get to finish when the server is stopped")
    lameduck: Seconds | None = setting(
        None,
        "seconds between SIGTERM and closing the sockets, within drain-timeout: /ready is 503 and no job is begun, but"
        " calls are still answered until the balancer in front has noticed; none: 0, with a database 3"
        " (no more than drain-timeout)",
    )

    @override
    def __post_init__(self) -> None:
        super().__post_init__()
        if self.lameduck is not None and self.lameduck > self.drain_timeout:
            raise SettingsError(f"lameduck: {self.lameduck:g} s are more than drain-timeout, {self.drain_timeout} s")

    @property
    def lameduck_s(self) -> float:
        """Seconds between SIGTERM and closing the sockets."""
        return self.lameduck or 0.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class ListenSettings(DataSettings, ConnectionSettings):
    """Addresses, ports, TLS and the proxy in front."""

    host: str = setting("localhost", "address to listen on; localhost is 127.0.0.1 and ::1; all others need keys")
    port: Port = setting(8000, "plain HTTP port; 0 picks a free one")
    tls_port: Port | None = setting(None, "also serve https on this port, with the local CA; 0 picks a free one")
    tls_names: str = setting("", "further names and addresses that the local CA may sign for: box.lan,192.168.1.5")
    takeover: bool = setting(False, "also serve https on port 443, for fal's own host names")  # noqa: FBT003
    public_url: str = setting("", "base URL that clients use, when a proxy stands in front; else the request's own")
    trusted_proxies: str = setting("127.0.0.1,::1", "addresses whose X-Forwarded-For and -Proto are believed")

    @override
    def __post_init__(self) -> None:
        super().__post_init__()
        if self.public_url and not self.public_url.startswith(("http://", "https://")):
            raise SettingsError(f"public-url: {self.public_url!r} does not begin with http:// or https://")

    @property
    def addresses(self) -> tuple[str, ...]:
        """The addresses to listen on, without brackets; of `localhost` both, first the one that every machine has."""
        host = self.host.removeprefix("[").removesuffix("]")
        return ("127.0.0.1", "::1") if host.lower() == "localhost" else (host,)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelSettings(DataSettings, RequestSettings, LogSettings):
    """The model, and the devices which it runs on."""

    model: str = setting(
        "sd15", "sd15, demo, auto, a hub id, a folder in diffusers layout or a .safetensors checkpoint"
    )
    lora: str = setting("auto", "LCM-LoRA: auto, a hub id, a .safetensors file or none")
    vae: str = setting("full", "full, tiny (TAESD: softer pictures, much faster on a cpu) or a folder")
    safety_checker: str = setting("auto", "auto (the one that comes with the model), a hub id, a folder or none")
    force_safety_checks: bool = setting(False, "run the safety checker whatever the request says")  # noqa: FBT003
    device: str = setting(
        "auto",
        "auto (cuda, then mps, then cpu), all (an engine on each card, else as auto), none (only answers: other boxes"
        " have the engines), or a comma-separated list: cuda:0,cuda:1",
    )
    dtype: Literal["auto", "float16", "bfloat16", "float32"] = setting(
        "auto", "auto (float16 on cuda, mps; on the cpu bfloat16 if faster, else float32), float16, bfloat16, float32"
    )
    threads: Count = setting(0, "CPU threads of an engine on the cpu; 0 = one per core")
    max_batch: Positive = setting(8, "images that may share one step; with 1, nothing else in flight changes a bit")
    graphs: Literal["auto", "off"] = setting("auto", "auto: usual sizes are captured as CUDA graphs; off: slower")
    compile: bool = setting(False, "does nothing any more, and goes with the version after this")  # noqa: FBT003
    start_timeout: Seconds = setting(120.0, "seconds that a call waits for the model to load before it gets 504")
    idle_unload: Minutes = setting(
        0.0, "minutes without work after which an engine gives its device back; the next call loads it again; 0: never"
    )

    @override
    def __post_init__(self) -> None:
        super().__post_init__()
        named = self._named()
        if not named:
            raise SettingsError("device: names none")
        for device in named:
            if not _DEVICE.fullmatch(device):
                raise SettingsError(f"device: {device!r} is none of auto, all, none, cpu, mps, cuda, cuda:N")
        if {"all", "none"} & set(named) and len(named) > 1:
            raise SettingsError("device: all and none stand alone")

    @property
    def engine(self) -> EngineConfig:
        """Configuration of an engine process: the settings that share its fields' names."""
        values = {name: getattr(self, name) for name in EngineConfig.__struct_fields__}
        return EngineConfig(**values | {"data_dir": str(self.data_dir)})

    @property
    def devices(self) -> tuple[str, ...]:
        """The devices; one engine process runs for each."""
        return tuple(name for name in self._named() if name != "none")

    def _named(self) -> list[str]:
        return [part.strip() for part in self.device.split(",") if part.strip()]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClusterSettings(DataSettings):
    """Several servers on one database."""

    database: str = setting(
        "",
        "PostgreSQL 15 or newer that all servers share: postgresql://user@host1,host2/name; its password in ~/.pgpass,"
        " or in FOURSTEP_DATABASE; else jobs lie in data-dir",
    )
    node: str = setting("", "name of this server among those of a database; else the machine's")
    lease: Wait = setting(
        15.0, "seconds of silence after which a server's jobs go to others; it gives a sign of life five times as often"
    )
    database_patience: Wait = setting(5.0, "seconds that a call waits for a database that is away before it gets 429")
    inline_bytes: Count = setting(
        256 * 1024,
        "larger inputs and results of jobs lie beside the stored files: they would swell the database's log and"
        " standbys",
    )

    @override
    def __post_init__(self) -> None:
        super().__post_init__()
        if self.database and not self.database.startswith(("postgresql://", "postgres://")):
            raise SettingsError(
                "database: begins with no postgresql://. Hint: postgresql://user@host/name, other characters"
                " percent-encoded"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings(ListenSettings, ModelSettings, AccessSettings, StorageSettings, FetchSettings, ClusterSettings):
    """Every section: what the operator decided. A running server never changes its mind."""

    @property
    @override
    def lameduck_s(self) -> float:
        if (
            self.lameduck is None and self.database
        ):  # then there is a balancer, most likely, and its two checks take 2 s
            return min(3.0, self.drain_timeout)
        return super().lameduck_s
