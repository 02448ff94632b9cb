"""What is said of slow settings."""

import pytest
import torch

from pipelines.device import advice, cuda_support
from pipelines.hub import sd15
from pipelines.messages import EngineConfig
from pipelines.model.kernels import instructions
from pipelines.weights import architectures
from tests.support import tiny_models

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.mark.parametrize(("device", "heavy"), [(CPU, True), (CUDA, False)])
def test_full_autoencoder_is_heavy_on_a_processor(device, heavy):
    model = tiny_models.make(vae=architectures.make_vae(sd15.VAE), device=device)

    assert advice.has_heavy_vae(model) is heavy


@pytest.mark.parametrize("vae", [tiny_models.vae, tiny_models.tiny_vae])
def test_small_autoencoder_is_not_heavy(vae):
    assert not advice.has_heavy_vae(tiny_models.make(vae=vae()))


@pytest.mark.parametrize(
    ("device", "dtype", "has", "said"),
    [
        (CPU, torch.bfloat16, False, True),
        (CPU, torch.bfloat16, True, False),
        (CPU, torch.float32, False, False),
        (CUDA, torch.bfloat16, False, False),
    ],
)
def test_emulated_bfloat16_is_warned_of(device, dtype, has, said, *, monkeypatch):
    monkeypatch.setattr(instructions, "has_bfloat16", lambda: has)

    assert ("emulated" in advice.emulated(device, dtype)) is said


@pytest.mark.parametrize(
    ("device", "config", "dtype", "said"),
    [
        (torch.device("mps"), {}, torch.float32, True),
        (torch.device("mps"), {}, torch.float16, False),
        (torch.device("mps"), {"model": "demo"}, torch.float32, False),
        (torch.device("mps"), {"dtype": "float32"}, torch.float32, False),
        (CPU, {}, torch.float32, False),
    ],
)
def test_float32_where_16_bits_are_wrong_is_told(device, config, dtype, said):
    warning = advice.wrong_numbers(EngineConfig(**{"model": "sd15", "data_dir": ""} | config), device, dtype)

    assert ("wrong numbers in float16, so float32 is used" in warning) is said


def test_a_card_whose_16_bits_are_wrong_is_named(monkeypatch):
    card = cuda_support.Card("NVIDIA GeForce GTX 1660", (7, 5), 22)
    monkeypatch.setattr(cuda_support, "build", lambda: cuda_support.Build(version="", cuda="13.0", cards=(card,)))

    warning = advice.wrong_numbers(EngineConfig(model="demo", data_dir=""), CUDA, torch.float32)

    assert warning.startswith("cuda (NVIDIA GeForce GTX 1660) computes wrong numbers")
