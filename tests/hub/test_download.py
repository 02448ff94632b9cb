"""Fetching takes what is needed and nothing else, goes on where it stopped, and verifies everything."""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from huggingface_hub.utils import close_session
from safetensors.torch import save_file

from pipelines.device import dtypes
from pipelines.errors import CheckpointError, NotOnDiskError, UnreachableError
from pipelines.hub import client, download, layout, sd15
from pipelines.messages import EngineConfig
from pipelines.weights import checkpoint
from tests.support import checkpoint_layouts, fake_hub

ACCELERATOR = torch.device("meta")  # no CPU, and nothing runs on it
UNET = "unet/diffusion_pytorch_model.safetensors"
FULL_PRECISION = [
    "model_index.json",
    "feature_extractor/preprocessor_config.json",
    "safety_checker/config.json",
    "safety_checker/model.safetensors",
    "scheduler/scheduler_config.json",
    "text_encoder/config.json",
    "text_encoder/model.safetensors",
    "tokenizer/merges.txt",
    "tokenizer/special_tokens_map.json",
    "tokenizer/tokenizer_config.json",
    "tokenizer/vocab.json",
    "unet/config.json",
    UNET,
    "vae/config.json",
    "vae/diffusion_pytorch_model.safetensors",
]
CLUTTER = [
    "README.md",
    "v1-5-pruned-emaonly.ckpt",
    "v1-5-pruned-emaonly.safetensors",
    "v1-5-pruned.safetensors",
    "v1-inference.yaml",
    "safety_checker/pytorch_model.bin",
    "text_encoder/pytorch_model.fp16.bin",
    "unet/diffusion_pytorch_model.bin",
    "unet/diffusion_pytorch_model.non_ema.safetensors",
    "vae/diffusion_pytorch_model.fp16.bin",
]


@pytest.fixture(scope="session")
def repos(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The base repository with all that lies in it beside what is needed, and the LCM-LoRA's."""
    base = tmp_path_factory.mktemp("base")
    weights = checkpoint_layouts.write_folder(base, variants=("", "fp16"))
    for name in CLUTTER:
        (base / name).write_bytes(b"not needed")
    lora = tmp_path_factory.mktemp("lora")
    save_file(
        checkpoint_layouts.kohya(checkpoint_layouts.lora_factors(weights["unet"], rank=4), alpha=8.0),
        lora / layout.LORA,
    )
    return {sd15.BASE: base, sd15.LCM_LORA: lora}


@pytest.fixture
def served(repos: dict[str, Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[fake_hub.Hub]:
    """A hub with these repositories, and an empty cache."""
    with fake_hub.serving(dict(repos)) as server:
        monkeypatch.setenv("NO_PROXY", "*")
        monkeypatch.setattr(client.constants, "ENDPOINT", server.url)
        template = server.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(client.constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(client.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
        yield server
        close_session()


class Ledger:
    """A report that keeps what it is told."""

    def begin(self, total: int, held: int, files: int) -> None:
        self.total, self.held, self.files, self.came, self.ended = total, held, files, 0, False

    def advance(self, count: int) -> None:
        self.came += count

    def end(self) -> None:
        self.ended = True


def fetch(*, half: bool = False, **settings: Any) -> Ledger:
    ledger = Ledger()
    config = EngineConfig(data_dir="/nonexistent", **({"model": "sd15"} | settings))
    download.fetch(config, half=half, report=ledger, pauses=(0.0, 0.0))
    return ledger


def load(**settings: Any) -> checkpoint.LoadedCheckpoint:
    config = EngineConfig(data_dir="/nonexistent", **({"model": "sd15", "device": "cpu"} | settings))
    device, dtype = dtypes.pick(config)
    dtype = torch.float32 if config.dtype == "auto" else dtype  # whatever this processor has
    return checkpoint.load(config, device, dtype, lambda _fraction, _what: None)


def test_full_precision_takes_one_copy_of_each_part_and_nothing_else(served: fake_hub.Hub) -> None:
    fetch()

    assert sorted(served.fetched()) == sorted([*FULL_PRECISION, layout.LORA])


def test_half_precision_takes_the_fp16_variants(served: fake_hub.Hub) -> None:
    fetch(half=True)

    half = [name.replace("model.safetensors", "model.fp16.safetensors") for name in FULL_PRECISION]
    assert sorted(served.fetched()) == sorted([*half, layout.LORA])


def test_what_was_pulled_loads_with_the_hub_gone(served: fake_hub.Hub) -> None:
    fetch()
    served.down = True
    asked = len(served.requests)

    model = load()

    assert (model.name, len(served.requests)) == ("sd15", asked)


def test_says_beforehand_how_much_it_is(served: fake_hub.Hub, repos: dict[str, Path]) -> None:
    ledger = fetch()

    files = [repos[sd15.BASE] / name for name in FULL_PRECISION] + [repos[sd15.LCM_LORA] / layout.LORA]
    assert (ledger.total, ledger.files) == (sum(file.stat().st_size for file in files), 16)
    assert ledger.held + ledger.came == ledger.total
    assert ledger.ended


def test_second_pull_fetches_nothing(served: fake_hub.Hub) -> None:
    fetch()
    sent = served.sent

    ledger = fetch()

    assert (ledger.held, ledger.came, served.sent) == (ledger.total, 0, sent)


def test_broken_connection_is_taken_up_where_it_broke(served: fake_hub.Hub) -> None:
    served.break_after = [100_000, 200_000]

    fetch(lora="none")

    assert served.ranges(UNET) == [0, 100_000, 300_000]


def test_interrupted_pull_goes_on_from_its_bytes(served: fake_hub.Hub) -> None:
    served.break_after = [100_000, 0, 0]
    with pytest.raises(UnreachableError):
        fetch(lora="none")
    served.requests.clear()

    ledger = fetch(lora="none")

    assert served.ranges(UNET) == [100_000]
    assert ledger.held >= 100_000
    assert ledger.held + ledger.came == ledger.total


@pytest.mark.parametrize("bytes_sent", [[1000] * 9, [0] * 9, [1000, 999] * 9])
def test_answers_that_end_early_and_bring_nothing_new_end_the_pull(served: fake_hub.Hub, bytes_sent: list[int]) -> None:
    served.short = bytes_sent

    with pytest.raises(UnreachableError, match="end early"):
        fetch(lora="none")


def test_answer_that_ends_early_is_made_up_for_by_the_next(served: fake_hub.Hub) -> None:
    served.short = [1]

    ledger = fetch(lora="none")

    assert ledger.held + ledger.came == ledger.total


def test_interrupted_pull_is_no_checkpoint_yet(served: fake_hub.Hub) -> None:
    served.break_after = [100_000, 0, 0]
    with pytest.raises(UnreachableError):
        fetch()

    with pytest.raises(NotOnDiskError):
        load()


def test_interrupted_update_leaves_the_old_checkpoint_in_use(
    served: fake_hub.Hub, repos: dict[str, Path], tmp_path: Path
) -> None:
    fetch()
    newer = Path(shutil.copytree(repos[sd15.BASE], tmp_path / "newer"))
    (newer / UNET).write_bytes((newer / UNET).read_bytes()[:-1] + b"!")
    served.repos[sd15.BASE], served.commit = newer, "f" * 40
    served.break_after = [100_000, 0, 0]
    with pytest.raises(UnreachableError):
        fetch()

    assert load().name == "sd15"


def test_file_that_comes_damaged_is_thrown_away(served: fake_hub.Hub) -> None:
    served.damage = {"diffusion_pytorch_model.safetensors"}

    with pytest.raises(CheckpointError, match="checksum"):
        fetch(lora="none")

    served.damage = set()
    assert fetch(lora="none").ended


def test_file_that_was_damaged_on_disk_is_fetched_again(served: fake_hub.Hub, tmp_path: Path) -> None:
    fetch(lora="none")
    [unet] = (tmp_path / "hub").glob(f"*/snapshots/*/{UNET}")
    content = unet.read_bytes()
    unet.resolve().write_bytes(content[:-1] + b"!")
    served.requests.clear()

    fetch(lora="none")

    assert served.fetched() == [UNET]
    assert unet.read_bytes() == content


def test_small_files_are_verified_too(served: fake_hub.Hub) -> None:
    served.damage = {"vocab.json"}

    with pytest.raises(CheckpointError, match=r"vocab\.json"):
        fetch(lora="none")


def test_single_file_needs_only_tokenizer_checker_and_lora(served: fake_hub.Hub, tmp_path: Path) -> None:
    (tmp_path / "mine.safetensors").write_bytes((2).to_bytes(8, "little") + b"{}")

    fetch(model=str(tmp_path / "mine.safetensors"))

    expected = [name for name in FULL_PRECISION if name.startswith(("tokenizer/", "safety_checker/"))]
    assert sorted(served.fetched()) == sorted([*expected, layout.LORA])


def test_vae_and_checker_that_are_not_wanted_are_not_fetched(served: fake_hub.Hub, repos: dict[str, Path]) -> None:
    served.repos[sd15.TINY_VAE] = repos[sd15.BASE] / "vae"

    fetch(vae="tiny", safety_checker="none")

    weights = [name for name in served.fetched() if name.endswith(".safetensors")]
    expected = [UNET, "text_encoder/model.safetensors", "diffusion_pytorch_model.safetensors", layout.LORA]
    assert sorted(weights) == sorted(expected)


def test_repository_of_pickles_is_refused_before_it_is_fetched(served: fake_hub.Hub, tmp_path: Path) -> None:
    (tmp_path / "old" / "unet").mkdir(parents=True)
    (tmp_path / "old" / "scheduler").mkdir()
    for name in ("unet/config.json", "unet/diffusion_pytorch_model.bin", layout.SCHEDULER):
        (tmp_path / "old" / name).write_text("{}")
    served.repos["someone/old"] = tmp_path / "old"

    with pytest.raises(CheckpointError, match="pickles"):
        fetch(model="someone/old")

    assert served.fetched() == []


def test_repository_that_is_not_there_is_named(served: fake_hub.Hub) -> None:
    with pytest.raises(CheckpointError, match="no public repository someone/else"):
        fetch(model="someone/else")


def test_hub_that_is_down_is_unreachable(served: fake_hub.Hub) -> None:
    served.down = True

    with pytest.raises(UnreachableError, match="can't be reached"):
        fetch()


def test_offline_nothing_is_asked(served: fake_hub.Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client.constants, "HF_HUB_OFFLINE", True)

    with pytest.raises(UnreachableError, match="HF_HUB_OFFLINE"):
        fetch()

    assert served.requests == []


def test_disk_that_is_too_small_is_noticed_before_fetching(served: fake_hub.Hub) -> None:
    config = EngineConfig(model="sd15", data_dir="/nonexistent")

    with pytest.raises(CheckpointError, match="free") as caught:
        download.fetch(config, half=False, report=Ledger(), reserve=10**18)

    assert "HF_HOME" in caught.value.hint
    assert UNET not in served.fetched()


def test_hub_learns_nothing_about_this_machine(served: fake_hub.Hub) -> None:
    fetch(lora="none")

    agents = {headers.get("User-Agent", headers.get("user-agent")) for _, headers in served.requests}
    assert not [agent for agent in agents if "torch" in agent or "session" in agent]
    assert {path.split("/")[1] for path, _ in served.requests} == {"api", "blobs", sd15.BASE.split("/")[0]}
    assert not [path for path, _ in served.requests if path.startswith("/api/") and not path.startswith("/api/models/")]


def test_auto_beside_an_accelerator_fetches_and_says_how_much(served: fake_hub.Hub) -> None:
    told: list[str] = []

    config = EngineConfig(model="auto", data_dir="/nonexistent")
    model = checkpoint.load(config, ACCELERATOR, torch.float32, lambda _, what: told.append(what))

    assert (model.name, model.notice) == ("sd15", "")
    assert [what for what in told if what.startswith("fetching ") and "16 files" in what]


def test_auto_beside_an_accelerator_without_the_hub_serves_the_demo_and_says_so(
    served: fake_hub.Hub, tmp_path: Path
) -> None:
    served.down = True

    config = EngineConfig(model="auto", data_dir=str(tmp_path))
    model = checkpoint.load(config, ACCELERATOR, torch.float32, lambda _fraction, _what: None)

    assert model.name == "demo"
    assert "can't be reached" in model.notice
    assert model.notice.startswith("DEMO MODEL")


@pytest.mark.slow
def test_killed_pull_goes_on_at_the_next_call_of_the_command(
    served: fake_hub.Hub, tmp_path: Path, repos: dict[str, Path]
) -> None:
    settings = EngineConfig(model="sd15", data_dir=str(tmp_path), device="cpu", dtype="float32")
    config = msgspec.json.encode(settings).decode()
    command = [sys.executable, "-P", "-m", "pipelines.tools", "pull", "--config", config]
    environment = {**os.environ, "HF_ENDPOINT": served.url, "HF_HOME": str(tmp_path / "home"), "NO_PROXY": "*"}
    environment.pop("HF_HUB_CACHE", None)
    size = (repos[sd15.BASE] / UNET).stat().st_size
    served.stall_after = size // 2
    with subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as first:
        assert served.stalled.wait(60)
        partial = wait_for_bytes(tmp_path / "home")
        first.kill()
    served.stall_after = None
    held = partial.stat().st_size

    second = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=60)

    assert second.returncode == 0, second.stderr
    assert served.ranges(UNET) == [0, held]
    assert "are here already" in second.stderr
    assert "no network is needed" in second.stdout
    assert not partial.exists()


def wait_for_bytes(root: Path) -> Path:
    """The file below `root` that is being fetched, once some of it is there."""
    for _ in range(1000):
        for path in root.rglob("*.incomplete"):
            if path.stat().st_size:
                return path
        time.sleep(0.02)
    raise AssertionError("the bytes never arrived")


@pytest.mark.parametrize("model", ["demo", "instant"])
def test_built_in_models_need_no_fetching(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    from pipelines.tools import __main__

    status = __main__.main(["pull", "--config", msgspec.json.encode(EngineConfig(model=model, data_dir="")).decode()])

    assert status == 0
    assert "nothing to fetch" in capsys.readouterr().out


def test_command_that_fails_says_why_and_what_to_do(served: fake_hub.Hub, capsys: pytest.CaptureFixture[str]) -> None:
    from pipelines.tools import __main__

    served.down = True

    status = __main__.main(["pull", "--config", msgspec.json.encode(EngineConfig(model="sd15", data_dir="")).decode()])

    assert status == 1
    assert "Check the network" in capsys.readouterr().err
