"""The loop's model on a device: pixels come to the host, and torch's errors are told apart."""

import numpy as np
import pytest
import torch

from pipelines import on_torch
from pipelines.errors import NoRoomError
from pipelines.on_torch import DeviceModel
from pipelines.stages import Diagnosis
from pipelines.types import EngineConfig, GenerationParams
from tests import models


@pytest.fixture(scope="module")
def model():
    return DeviceModel(models.make())


def test_pixels_come_to_the_host(model):
    params = GenerationParams(prompt="a", seed=1)
    trajectories = model.encode([(params, model.prepare(params), np.zeros((64, 72, 3), np.uint8), 1)])

    drawn = model.decode(trajectories)
    pixels, finite, unsafe = model.fetch(drawn, model.finite(trajectories), model.check(drawn))()
    assert (type(pixels), pixels.shape, pixels.dtype) == (np.ndarray, (1, 64, 72, 3), np.uint8)
    assert pixels.flags.writeable  # unsafe ones are blackened in place
    assert (finite, unsafe) == ([True], [False])


def out_of_cpu_memory():
    with pytest.raises(RuntimeError) as raised:
        torch.empty(10**15)
    return raised.value


@pytest.mark.parametrize(
    "where", ["pipelines.weights.fill", "pipelines.lcm.vae.of", "pipelines.on_torch.footprint.peak"]
)
@pytest.mark.parametrize("error", [torch.OutOfMemoryError(), out_of_cpu_memory()], ids=str)
def test_memory_that_runs_out_at_the_start_is_said_alike_wherever_it_does(where, error, monkeypatch, tmp_path):
    def runs_out(*args, **kwargs):
        raise error

    monkeypatch.setattr(where, runs_out)
    monkeypatch.setattr("pipelines.devices.keep_freed_memory", lambda: None)  # for good, and this process goes on
    config = EngineConfig(model="demo", data_dir=str(tmp_path), device="cpu")

    with pytest.raises(NoRoomError) as said:
        on_torch.load(config, lambda fraction, what: None)

    assert "cpu" in said.value.reason
    assert "--vae tiny" in said.value.mend


@pytest.mark.parametrize(
    ("error", "diagnosis"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"), Diagnosis.OUT_OF_MEMORY),
        (MemoryError(), Diagnosis.OUT_OF_MEMORY),
        (out_of_cpu_memory(), Diagnosis.OUT_OF_MEMORY),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate`"), Diagnosis.OUT_OF_MEMORY),
        (torch.AcceleratorError("CUDA error: an illegal memory access was encountered"), Diagnosis.DEVICE_LOST),
        (RuntimeError("CUDA error: unspecified launch failure"), Diagnosis.DEVICE_LOST),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), Diagnosis.OTHER),
        (ValueError("anything"), Diagnosis.OTHER),
    ],
)
def test_errors_are_told_apart(model, error, diagnosis):
    assert model.diagnose(error) is diagnosis
