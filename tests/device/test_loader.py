"""A model on its way to its device."""

import pytest
import torch

from pipelines.device import loader
from pipelines.errors import NoRoomError
from pipelines.messages import EngineConfig
from tests.device.test_torch_backend import out_of_cpu_memory


@pytest.mark.parametrize(
    "where", ["pipelines.weights.tensors.fill", "pipelines.model.vae.make_vae", "pipelines.device.memory.peak"]
)
@pytest.mark.parametrize("error", [torch.OutOfMemoryError(), out_of_cpu_memory()], ids=["torch's", "an allocator's"])
def test_memory_that_runs_out_at_the_start_is_said_alike_wherever_it_does(where, error, monkeypatch, tmp_path):
    def runs_out(*args, **kwargs):
        raise error

    monkeypatch.setattr(where, runs_out)
    monkeypatch.setattr(
        "pipelines.device.devices.keep_freed_memory", lambda: None
    )  # for good, and this process goes on
    config = EngineConfig(model="demo", data_dir=str(tmp_path), device="cpu")

    with pytest.raises(NoRoomError) as said:
        loader.load(config, lambda fraction, what: None)

    assert "cpu" in said.value.reason
    assert "--vae tiny" in said.value.hint
