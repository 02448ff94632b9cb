"""Each check sees what is wrong and names the mend; what is right is one line."""

import dataclasses
import datetime
import http.server
import math
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
import torch
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from pipelines.device import cuda_support, devices
from pipelines.hub import client
from pipelines.messages import EngineConfig
from pipelines.model.kernels import choices, instructions
from pipelines.tools import __main__, doctor
from pipelines.tools.doctor import Level
from tests.support import checkpoint_layouts

NOW = datetime.datetime(2030, 1, 1, tzinfo=datetime.UTC)


@pytest.fixture(autouse=True)
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(client.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))


CARD = "NVIDIA GeForce RTX 3060"
THERE = cuda_support.System(cards=(CARD,), driver="550.54", loaded=True)
CPU_WHEEL = cuda_support.Build(version="2.13.0+cpu")
WHEEL = cuda_support.Build(version="2.13.0", cuda="13.0", kinds=("sm_86",), words="none")
SEEN = dataclasses.replace(WHEEL, cards=(cuda_support.Card(CARD, (8, 6), 28),))
OLD = cuda_support.Card("NVIDIA GeForce GTX 1080", (6, 1), 20)


def judge(
    build: cuda_support.Build, system: cuda_support.System, monkeypatch: pytest.MonkeyPatch, **settings: str
) -> list[doctor.Finding]:
    """The findings on driver and torch of a machine with this build and these cards."""
    monkeypatch.setattr(cuda_support, "build", lambda: build)
    monkeypatch.setattr(cuda_support, "system", lambda: system)
    config = EngineConfig(**{"model": "sd15", "data_dir": ""} | settings)
    findings = doctor.examine(config, ["127.0.0.1"], 0, [])
    return [next(findings), next(findings)]


@pytest.mark.parametrize(
    ("build", "system", "subject"),
    [(WHEEL, THERE, "driver"), (CPU_WHEEL, THERE, "torch"), (dataclasses.replace(SEEN, cards=(OLD,)), THERE, "torch")],
)
@pytest.mark.parametrize(
    ("settings", "level"),
    [
        ({}, Level.FAIL),
        ({"device": "cuda:0"}, Level.FAIL),
        ({"device": "cpu"}, Level.WARN),
        ({"model": "demo"}, Level.WARN),
        ({"model": "auto"}, Level.WARN),
    ],
)
def test_card_that_can_not_be_used_fails_where_an_engine_would(
    build: cuda_support.Build,
    system: cuda_support.System,
    subject: str,
    settings: dict[str, str],
    level: Level,
    *,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fault = cuda_support.fault(build, lambda: system)
    assert fault is not None

    findings = judge(build, system, monkeypatch, **settings)

    (found,) = [finding for finding in findings if finding.level is not Level.OK]
    assert found == (level, subject, fault.reason, fault.hint)


@pytest.mark.parametrize(
    ("build", "system", "lines"),
    [
        (SEEN, THERE, [f"{CARD}, driver 550.54", "torch 2.13.0, CUDA 13.0"]),
        (CPU_WHEEL, cuda_support.System(), ["no NVIDIA device in this machine", "torch 2.13.0+cpu"]),
    ],
)
def test_driver_and_torch_are_told_in_a_line_each(
    build: cuda_support.Build, system: cuda_support.System, lines: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    findings = judge(build, system, monkeypatch)

    assert [(finding.level, finding.line) for finding in findings] == [(Level.OK, line) for line in lines]


def test_unusable_card_beside_a_usable_one_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    _, found = judge(dataclasses.replace(SEEN, cards=(*SEEN.cards, OLD)), THERE, monkeypatch)

    assert found.level is Level.WARN
    assert OLD.name in found.line


@pytest.mark.parametrize(
    ("free", "total", "level", "hint"),
    [
        (12e9, 12.6e9, Level.OK, ""),
        (7e9, 12.6e9, Level.WARN, "stop other programs"),
        (3.6e9, 4.2e9, Level.WARN, "--vae tiny"),
    ],
)
def test_card_without_room_for_a_full_batch_is_a_warning(
    free: float, total: float, level: Level, hint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cuda_support, "build", lambda: SEEN)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free, total))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "a card")

    found = doctor.device("cuda:0", EngineConfig(model="sd15", data_dir="", dtype="float32"))

    assert found.level is level
    assert hint in found.hint
    assert ("about 8 GB" in found.hint) is (level is Level.WARN)


def test_device_that_is_not_there_fails() -> None:
    finding = doctor.device("cuda:99", EngineConfig(model="demo", data_dir=""))

    assert finding.level is Level.FAIL
    assert finding.hint


@pytest.mark.parametrize(("available", "level"), [(8e9, Level.OK), (1e9, Level.WARN), (math.inf, Level.OK)])
def test_little_memory_is_a_warning(available: float, level: Level) -> None:
    assert doctor.memory(available, needs_gigabytes=6).level is level


def test_memory_that_can_be_freed_counts_as_available(tmp_path: Path) -> None:
    (tmp_path / "meminfo").write_text("MemTotal: 9000000 kB\nMemFree: 1000 kB\nMemAvailable: 8000 kB\n")

    assert devices.main_memory(tmp_path / "meminfo") == 8_192_000
    assert devices.main_memory(tmp_path / "nothing") == math.inf


@pytest.mark.parametrize(("needs", "level"), [(0.001, Level.OK), (1e9, Level.FAIL)])
def test_full_disk_fails_also_where_the_folder_is_yet_to_be_made(needs: float, level: Level, tmp_path: Path) -> None:
    assert doctor.disk("data folder", tmp_path / "not" / "yet", needs_gigabytes=needs).level is level


@pytest.mark.parametrize("place", ["file/data", "file", "/proc/data"])
def test_data_folder_that_this_user_can_not_write_fails(place: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()

    finding = doctor.disk("data folder", tmp_path / place, needs_gigabytes=0)

    assert finding.level is Level.FAIL
    assert f"{tmp_path / place} can't be written (" in finding.line
    assert "--data-dir" in finding.hint


def test_trying_to_write_leaves_nothing(tmp_path: Path) -> None:
    finding = doctor.disk("data folder", tmp_path / "not" / "yet", needs_gigabytes=0)

    assert finding.level is Level.OK
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("model", "level", "said"),
    [
        ("demo", Level.OK, "demo: built in"),
        ("sd15", Level.FAIL, "are not on this machine."),
        ("auto", Level.OK, "none: without an accelerator auto takes the built-in demo model"),
    ],
)
def test_missing_weights_name_the_command(model: str, level: Level, said: str) -> None:
    finding = doctor.weights(EngineConfig(model=model, data_dir="", device="cpu"))

    assert finding.level is level
    assert finding.line.endswith(said)
    assert ("fourstep pull" in finding.hint) == (model != "demo")


def test_weights_that_auto_fetches_for_an_accelerator_are_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "pick_device", lambda name: torch.device("meta"))

    finding = doctor.weights(EngineConfig(model="auto", data_dir="", dtype="float16"))

    assert finding.level is Level.WARN
    assert finding.line.endswith("are not on this machine. The first start fetches them.")
    assert "fourstep pull" in finding.hint


@pytest.mark.parametrize(("bytes_of_vae", "device", "said"), [(2e8, "cpu", True), (1e7, "cpu", False)])
def test_tiny_autoencoder_is_offered_on_a_processor(
    bytes_of_vae: float, device: str, tmp_path: Path, *, said: bool
) -> None:
    checkpoint_layouts.write_folder(tmp_path / "model")
    vae = tmp_path / "model" / "vae" / "diffusion_pytorch_model.safetensors"
    checkpoint_layouts.write_sparse(vae, {"decoder.conv_in.weight": (int(bytes_of_vae / 4),)})
    config = EngineConfig(model=str(tmp_path / "model"), data_dir=str(tmp_path), device=device, lora="none")

    finding = doctor.weights(config)

    assert finding.level is Level.OK
    assert ("--vae tiny" in finding.hint) is said


def test_processor_is_told_with_the_format_that_it_computes_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(instructions, "_has", {"_is_avx2_supported", "_is_amx_tile_supported"}.__contains__)
    monkeypatch.setattr(instructions, "_capabilities", dict)
    monkeypatch.setattr(choices, "fastest_run", lambda run: run.args[0].dtype.itemsize / 100)
    monkeypatch.setattr(choices, "seconds_waited", lambda: 0.0)
    models = ("sd15", "auto", "demo")  # without weights, auto is the demo model

    findings = [doctor.device("cpu", EngineConfig(model=model, data_dir=str(tmp_path))) for model in models]

    kinds = ("bfloat16", "float32", "float32")
    assert [str(finding) for finding in findings] == [f"OK    device        cpu (AVX2, AMX), {kind}" for kind in kinds]
    assert list(tmp_path.iterdir()) == []


def test_emulated_format_is_told_with_its_hint(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(instructions, "has_bfloat16", lambda: False)

    finding = doctor.device("cpu", EngineConfig(model="demo", data_dir="", dtype="bfloat16"))

    assert "emulated" in finding.hint


def test_free_port_is_well() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]

    assert doctor.listening(["127.0.0.1", "192.0.2.1"], port).level is Level.OK  # the second is not this machine's


@pytest.mark.parametrize("addresses", [["127.0.0.1"], ["::1", "127.0.0.1"]])
def test_port_of_a_stranger_fails(addresses: list[str]) -> None:
    with socket.socket() as stranger:
        stranger.bind(("127.0.0.1", 0))  # it never listens, so nobody answers there

        finding = doctor.listening(addresses, stranger.getsockname()[1])

    assert finding.level is Level.FAIL
    assert "--port" in finding.hint


@pytest.fixture
def running() -> Iterator[int]:
    """A port on which something answers as a fourstep does."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b'{"state": "READY"}')

        def log_message(self, *_: object) -> None:
            """Keep the test's output clean."""

    server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield server.server_port
    server.shutdown()
    thread.join()
    server.server_close()


def test_port_of_a_running_fourstep_is_well(running: int) -> None:
    finding = doctor.listening(["127.0.0.1"], running)

    assert finding.level is Level.OK
    assert "READY" in finding.line


def write_certificates(folder: Path, *, until: datetime.datetime) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test")])
    builder = x509.CertificateBuilder(name, name, key.public_key(), 1, NOW - datetime.timedelta(days=400), until)
    pem = builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)
    for file in ("ca.pem", "cert.pem", "cert-dns.pem"):
        (folder / file).write_bytes(pem)
    for file in ("ca-key.pem", "key.pem"):
        (folder / file).touch(mode=0o600)


def test_no_certificates_yet_is_well(tmp_path: Path) -> None:
    assert doctor.certificates(tmp_path, NOW).level is Level.OK


def test_certificates_that_can_not_be_looked_at_fail(tmp_path: Path) -> None:
    assert doctor.certificates(tmp_path / ("n" * 300), NOW).level is Level.FAIL


@pytest.mark.parametrize(("days", "level"), [(30, Level.OK), (-1, Level.FAIL)])
def test_certificates_must_be_in_date(days: int, level: Level, tmp_path: Path) -> None:
    write_certificates(tmp_path, until=NOW + datetime.timedelta(days=days))

    assert doctor.certificates(tmp_path, NOW).level is level


@pytest.mark.parametrize("name", ["ca.pem", "cert.pem", "cert-dns.pem"])
def test_damaged_certificate_is_named(name: str, tmp_path: Path) -> None:
    write_certificates(tmp_path, until=NOW + datetime.timedelta(days=30))
    (tmp_path / name).write_text("-----BEGIN CERTIFICATE-----\n")

    finding = doctor.certificates(tmp_path, NOW)

    assert (finding.level, finding.line) == (Level.WARN, f"{tmp_path / name} holds no certificate")
    assert "fourstep certs" in finding.hint


def test_key_that_others_can_read_fails(tmp_path: Path) -> None:
    write_certificates(tmp_path, until=NOW + datetime.timedelta(days=30))
    (tmp_path / "ca-key.pem").chmod(0o644)

    finding = doctor.certificates(tmp_path, NOW)

    assert finding.level is Level.FAIL
    assert "ca-key.pem" in finding.line


NAMES = ["fal.run", "queue.fal.run", "api.fal.ai"]


@pytest.mark.parametrize(
    ("lines", "level", "said"),
    [
        ("127.0.0.1 localhost\n", Level.OK, "has none of fal's 3 names"),
        ("127.0.0.1 fal.run\n127.0.0.1 queue.fal.run # api.fal.ai\n", Level.WARN, "lacks api.fal.ai:"),
        ("#127.0.0.1 fal.run\n10.0.0.7\tAPI.fal.ai.x api.fal.ai\n", Level.WARN, "lacks fal.run, queue.fal.run:"),
        ("::1 fal.run Queue.fal.run\n::1 api.fal.ai\n", Level.OK, "has all of fal's 3 names"),
        (None, Level.OK, "has none of fal's 3 names"),
        ("127.0.0.1 fal.run queue.fal.run api.fal.ai\n::1 fal.run queue.fal.run api.fal.ai\n", Level.OK, "has all"),
        ("8.8.8.8 fal.run\n10.0.0.7 queue.fal.run api.fal.ai\n", Level.WARN, "to 8.8.8.8: no address inside"),
        ("0.0.0.0 fal.run queue.fal.run api.fal.ai\n", Level.WARN, "to 0.0.0.0: no address inside"),
        (":: fal.run queue.fal.run api.fal.ai\n", Level.WARN, "to ::: no address inside"),
        ("127.0.0.1 fal.run queue.fal.run\n10.0.0.7 api.fal.ai\n", Level.WARN, "addresses: 10.0.0.7, 127.0.0.1"),
        ("127.0.0.1 fal.run queue.fal.run\nlocal api.fal.ai\n", Level.WARN, "lacks api.fal.ai:"),
    ],
)
def test_names_that_a_takeover_still_lacks_are_said(lines: str | None, level: Level, said: str, tmp_path: Path) -> None:
    path = tmp_path / "hosts"
    if lines is not None:
        path.write_text(lines)

    finding = doctor.hosts_file(path, NAMES)

    assert finding.level is level
    assert said in finding.line
    assert ("fourstep hosts" in finding.hint) == (level is Level.WARN)


@pytest.mark.parametrize(("model", "status"), [("demo", 0), ("auto", 0), ("sd15", 1)])
def test_command_fails_when_a_server_would(
    model: str, status: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = EngineConfig(model=model, data_dir=str(tmp_path), device="cpu")

    done = __main__.main(["doctor", "--config", msgspec.json.encode(config).decode(), "--port", "0"])

    lines = capsys.readouterr().out.splitlines()
    assert done == status
    assert [line.split()[1] for line in lines if line[0] != " "] == (
        ["driver", "torch", "device", "memory", "data", "weights", "port", "clock", "certificates", "hosts"]
    )
