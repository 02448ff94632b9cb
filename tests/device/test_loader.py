"""Loading a model onto its device."""

import ctypes

import pytest
import torch

from pipelines.device import loader
from pipelines.engine.loop import Engine
from pipelines.errors import NoRoomError
from pipelines.messages import EngineConfig
from tests.device.test_torch_backend import out_of_cpu_memory

# Torch functions which are called while weights are read, while networks are built, and at the first run.
PLACES = {
    "weights": "torch.nn.Module.load_state_dict",
    "networks": "torch.nn.functional.pad",
    "first run": "torch.nn.functional.scaled_dot_product_attention",
}


def start(config):
    """Load and warm up, as an engine process does."""
    loaded = loader.load(config, lambda fraction, what: None)
    Engine(config, loaded.model, loaded.codec, lambda message: None).warm_up(loaded.warm_up_side)


@pytest.mark.parametrize("where", PLACES.values(), ids=PLACES.keys())
@pytest.mark.parametrize("error", [torch.OutOfMemoryError(), out_of_cpu_memory()], ids=["torch's", "an allocator's"])
def test_memory_that_runs_out_at_the_start_is_said_alike_wherever_it_does(where, error, monkeypatch, tmp_path):
    def runs_out(*args, **kwargs):
        raise error

    monkeypatch.setattr(where, runs_out)
    monkeypatch.setattr(ctypes, "CDLL", lambda name: None)  # the allocator's settings would outlast this test
    config = EngineConfig(model="demo", data_dir=str(tmp_path), device="cpu")

    with pytest.raises(NoRoomError) as said:
        start(config)

    assert "cpu" in said.value.reason
    assert "--vae tiny" in said.value.hint
