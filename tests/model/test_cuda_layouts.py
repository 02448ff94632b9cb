"""What CUDA does with the model, without CUDA: its layouts and norms give the same pictures."""

import functools

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from pipelines.model.functions import make_functions
from pipelines.model.kernels import attention
from pipelines.model.kernels.cuda import group_norm
from pipelines.model.lcm import Lcm
from tests.model import cuda_on_cpu
from tests.model.cuda_on_cpu import KernelsOnCpu
from tests.model.test_lcm import generate, levels_apart, params, picture
from tests.support import tiny_models


def through_the_other_layout(x, *given, by=F.group_norm):
    """Group norm as torch has it on CUDA before 2.15."""
    return by(x.contiguous(), *given).contiguous()


@pytest.fixture
def _as_on_cuda(monkeypatch):
    """Weights are plain, as on a GPU."""
    monkeypatch.setattr(torch.backends.mkldnn, "enabled", False)


@pytest.fixture
def _torchs_norms(monkeypatch):
    monkeypatch.setattr(F, "group_norm", through_the_other_layout)


@pytest.fixture
def _own_norms(monkeypatch, tmp_path):
    """All norms by our kernels' source, run on the processor."""
    if cuda_on_cpu.COMPILER is None:
        pytest.skip("needs g++")
    kernels = KernelsOnCpu(group_norm.SOURCE.read_text(), ["FORMAT=FLOAT"], tmp_path)
    monkeypatch.setattr(group_norm, "is_used", lambda weight, groups: group_norm.takes(len(weight), groups))
    monkeypatch.setattr(group_norm, "group_norm", functools.partial(group_norm.compute, kernels))
    yield
    assert {name for name, _, _ in kernels.launched} >= {"normalise_plain", "normalise_silu"}


@pytest.mark.usefixtures("_as_on_cuda")
@pytest.mark.parametrize("norms", ["_torchs_norms", "_own_norms"])
def test_cudas_layouts_and_norms_give_the_same_pictures(norms, request):
    model, asked = tiny_models.make(), params(num_images=2, guidance_scale=2.0)
    expected = generate(Lcm(model), asked, picture())

    request.getfixturevalue(norms)
    actual = generate(Lcm(model, make_functions(model)), asked, picture())

    assert levels_apart(actual, expected) <= 1


class Operations(TorchDispatchMode):
    """Names of all operations, views and empty tensors left out."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__.strip("_")
        if not func.is_view and not name.startswith("empty"):
            self.names.append(name)
        return func(*args, **(kwargs or {}))


def test_attention_in_products_is_the_five_launches_that_the_cost_model_counts():
    given = [torch.empty(1, 1, 64, 512, dtype=torch.float16, device="meta") for _ in range(3)]

    with Operations() as operations:
        attention.attention_in_products(*given, at_once=64)

    assert operations.names == ["mul", "mm", "softmax", "mm", "copy"]
