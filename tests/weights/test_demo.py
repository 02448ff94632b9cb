"""The built-in model: there at once, the same everywhere, and honest about what it is."""

from pathlib import Path

import pytest
import torch

from pipelines.hub import layout
from pipelines.messages import EngineConfig
from pipelines.weights import checkpoint, demo


@pytest.fixture
def unpackaged(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No trained model in the package."""
    monkeypatch.setattr(demo, "PACKAGED", tmp_path / "no such folder")


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The untrained stand-in."""
    target = tmp_path_factory.mktemp("demo")
    demo.make(target)
    return target


def load(data_dir: Path, **settings: str) -> checkpoint.LoadedCheckpoint:
    config = EngineConfig(model="demo", device="cpu", data_dir=str(data_dir), **settings)
    return checkpoint.load(config, torch.device("cpu"), torch.float32, lambda _fraction, _what: None)


def files(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.usefixtures("unpackaged")
def test_untrained_model_announces_itself(tmp_path: Path) -> None:
    model = load(tmp_path)

    assert model.name == "demo"
    assert "UNTRAINED" in model.notice


@pytest.mark.usefixtures("unpackaged")
def test_second_start_uses_what_the_first_made(tmp_path: Path) -> None:
    load(tmp_path)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}

    load(tmp_path)

    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


def test_every_machine_makes_the_same(made: Path, tmp_path: Path) -> None:
    demo.make(tmp_path)

    assert files(tmp_path) == files(made)


def test_making_it_leaves_the_random_numbers_alone(tmp_path: Path) -> None:
    torch.manual_seed(1)
    expected = torch.rand(1)
    torch.manual_seed(1)

    demo.make(tmp_path)

    assert torch.equal(torch.rand(1), expected)


@pytest.mark.usefixtures("unpackaged")
def test_interrupted_making_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(target: Path) -> None:
        (target / "unet").mkdir()
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(demo, "make", fail)

    with pytest.raises(OSError, match="No space"):
        demo.folder(tmp_path)

    assert files(tmp_path) == {}


@pytest.mark.usefixtures("unpackaged")
def test_engine_that_comes_second_takes_the_first_one_s(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make = demo.make

    def overtaken(target: Path) -> None:
        monkeypatch.setattr(demo, "make", make)
        demo.folder(tmp_path)  # another engine, between this one's look and its rename
        make(target)

    monkeypatch.setattr(demo, "make", overtaken)

    folder, _ = demo.folder(tmp_path)

    assert (folder / layout.INDEX).exists()
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


def test_packaged_model_wins(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "PACKAGED", made)

    folder, notice = demo.folder(tmp_path)

    assert folder == made
    assert "UNTRAINED" not in notice
    assert "DEMO MODEL" in notice
    assert files(tmp_path) == {}


def test_attention_is_at_the_lowest_level_only(made: Path) -> None:
    unet = load_made(made).unet

    down = [type(block).__name__ for block in unet.down_blocks]
    up = [type(block).__name__ for block in unet.up_blocks]
    assert down == ["DownBlock2D", "DownBlock2D", "DownBlock2D", "CrossAttnDownBlock2D"]
    assert up == ["CrossAttnUpBlock2D", "UpBlock2D", "UpBlock2D", "UpBlock2D"]


def test_checker_flags_nothing(made: Path) -> None:
    checker = load_made(made).safety_checker
    pictures = torch.randn(4, 3, 224, 224, generator=torch.Generator().manual_seed(0))

    _, flags = checker(clip_input=pictures, images=[picture.numpy() for picture in pictures])

    assert flags == [False] * 4


def test_any_prompt_has_tokens(made: Path) -> None:
    tokenizer = load_made(made).tokenizer
    prompt = "Masterpiece: a beach — überraschend, 海, 🏖!"

    ids = tokenizer(prompt).input_ids

    assert (ids[0], ids[-1]) == (tokenizer.bos_token_id, tokenizer.eos_token_id)
    assert tokenizer.eos_token_id not in ids[1:-1]
    assert tokenizer.decode(ids, skip_special_tokens=True).replace(" ", "") == prompt.lower().replace(" ", "")


def test_vae_tiny_means_its_own(made: Path) -> None:
    assert type(load_made(made, vae="tiny").vae).__name__ == "AutoencoderTiny"


def load_made(made: Path, **settings: str) -> checkpoint.LoadedCheckpoint:
    config = EngineConfig(model=str(made), device="cpu", data_dir="/nonexistent", **settings)
    return checkpoint.load(config, torch.device("cpu"), torch.float32, lambda _fraction, _what: None)
