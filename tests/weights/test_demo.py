"""The built-in model: there at once, and honest about what it is."""

from pathlib import Path

import pytest
import torch

from pipelines.errors import CheckpointError
from pipelines.hub import client
from pipelines.messages import EngineConfig
from pipelines.weights import checkpoint, demo


@pytest.fixture(scope="module")
def model() -> checkpoint.LoadedCheckpoint:
    return load()


def load(**settings: str) -> checkpoint.LoadedCheckpoint:
    config = EngineConfig(model="demo", data_dir="/nonexistent", **settings)
    return checkpoint.load(config, torch.device("cpu"), torch.float32, lambda _fraction, _what: None)


def test_packaged_model_announces_itself(model: checkpoint.LoadedCheckpoint) -> None:
    assert model.name == "demo"
    assert "DEMO MODEL" in model.notice


def test_installation_without_the_model_is_told_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError) as caught:
        demo.folder(tmp_path / "no such folder")

    assert "no such folder" in caught.value.reason
    assert "--model" in caught.value.hint


def test_any_prompt_has_tokens(model: checkpoint.LoadedCheckpoint) -> None:
    tokenizer = model.tokenizer
    prompt = "Masterpiece: a beach — überraschend, 海, 🏖!"

    ids = tokenizer(prompt).input_ids

    assert (ids[0], ids[-1]) == (tokenizer.bos_token_id, tokenizer.eos_token_id)
    assert tokenizer.eos_token_id not in ids[1:-1]
    assert tokenizer.decode(ids, skip_special_tokens=True).replace(" ", "") == prompt.lower().replace(" ", "")


def test_vae_tiny_means_its_own() -> None:
    assert type(load(vae="tiny").vae).__name__ == "AutoencoderTiny"


@pytest.mark.parametrize(("asked", "dtype"), [("auto", torch.float32), ("bfloat16", torch.bfloat16)])
def test_it_stays_in_float32_where_it_stands_in_for_weights_in_bfloat16(asked, dtype, tmp_path, monkeypatch):
    monkeypatch.setattr(client.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    config = EngineConfig(model="auto", data_dir=str(tmp_path), device="cpu", dtype=asked)

    model = checkpoint.load(config, torch.device("cpu"), torch.bfloat16, lambda _fraction, _what: None)

    assert (model.name, model.dtype, model.unet.dtype) == ("demo", dtype, dtype)
