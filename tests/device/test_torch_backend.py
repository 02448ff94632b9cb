"""`TorchBackend`: pixels come to the host, and torch's errors are classified."""

import numpy as np
import pytest
import torch

from pipelines.device import devices
from pipelines.device.torch_backend import TorchBackend
from pipelines.engine.backend import FaultKind
from pipelines.errors import CaptureFailedError
from pipelines.messages import GenerationParams
from tests.support import tiny_models


@pytest.fixture(scope="module")
def model():
    return TorchBackend(tiny_models.make())


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
    ("error", "diagnosis"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"), FaultKind.OUT_OF_MEMORY),
        (MemoryError(), FaultKind.OUT_OF_MEMORY),
        (out_of_cpu_memory(), FaultKind.OUT_OF_MEMORY),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate`"), FaultKind.OUT_OF_MEMORY),
        (torch.AcceleratorError("CUDA error: an illegal memory access was encountered"), FaultKind.DEVICE_LOST),
        (CaptureFailedError("unet", RuntimeError("CUDA error: out of memory")), FaultKind.DEVICE_LOST),
        (RuntimeError("CUDA error: unspecified launch failure"), FaultKind.DEVICE_LOST),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), FaultKind.OTHER),
        (ValueError("anything"), FaultKind.OTHER),
    ],
)
def test_errors_are_told_apart(model, error, diagnosis):
    assert model.diagnose(error) is diagnosis


@pytest.mark.parametrize(("parameters", "given_back"), [(860_000_000, True), (4_000_000, False)])
def test_only_a_large_model_gives_memory_back_between_requests(parameters, given_back, monkeypatch):
    told, model = [], tiny_models.make()
    monkeypatch.setattr(model.unet, "parameters", lambda: [torch.empty(parameters, device="meta")])
    monkeypatch.setattr(devices, "give_back_freed_memory", lambda: told.append(1))

    TorchBackend(model).rest()

    assert bool(told) == given_back
