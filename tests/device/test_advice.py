"""What is said of slow settings on a processor."""

import pytest
import torch

from pipelines.device import advice
from pipelines.hub import sd15
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
