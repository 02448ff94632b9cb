"""Convolutions with a ReLU after them in one launch on CUDA, with operators that a processor stands in for."""

import copy
import logging

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from pipelines.model.functions import make_functions
from pipelines.model.kernels.cuda import fused_relu, trials
from pipelines.model.kernels.cuda.trials import Trials
from pipelines.model.kernels.direct import Conv
from pipelines.model.lcm import Lcm
from pipelines.model.vae import TinyBlock, make_vae
from tests.model.test_cuda_layouts import Operations
from tests.model.test_lcm import generate, levels_apart, params, picture
from tests.support import tiny_models


class Cudnn:
    """cuDNN's operators as torch has them: sums and what comes after in float32, rounded once. `fault` changes that."""

    def __init__(self, fault=None):
        self.fault, self.calls = fault, 0

    def conv_relu(self, x, weight, bias, stride, padding, dilation, groups):  # noqa: PLR0917
        return self.conv_add_relu(x, weight, None, None, bias, stride, padding, dilation, groups)

    def conv_add_relu(self, x, weight, z, alpha, bias, stride, padding, dilation, groups):  # noqa: PLR0917
        assert alpha == (None if z is None else 1.0)
        assert (dilation, groups) == ([1, 1], 1)
        self.calls += 1
        out = F.conv2d(x.float(), weight.float(), None if bias is None else bias.float(), stride, padding)
        if z is not None and self.fault is not without_the_sum:
            out += z.float().nan_to_num() if self.fault is clips_the_sum else z.float()
        out = F.relu_(out).to(x.dtype).contiguous(memory_format=torch.channels_last)
        return out if self.fault is None else self.fault(out)


def clips(out):
    return out.nan_to_num_(0.0)


def wrong_in_a_corner(out):
    out[-1, -1, -1, -1] += out.max() / 8
    return out


def without_the_sum(out):
    return out


def clips_the_sum(out):
    return out


def reads_what_lay_there(out):
    return torch.full_like(out, torch.nan)


def raises(out):
    raise RuntimeError("GET was unable to find an engine to execute this computation")


def loses_the_card(out):
    raise torch.AcceleratorError("an illegal memory access was encountered")


@pytest.fixture
def cudnn(monkeypatch, tmp_path):
    """A function that gives this process cuDNN's operators, while kernels are timed; called again: another start."""

    def become(fault=None):
        made = Cudnn(fault)
        monkeypatch.setattr(torch, "cudnn_convolution_relu", made.conv_relu)
        monkeypatch.setattr(torch, "cudnn_convolution_add_relu", made.conv_add_relu)
        fused_relu._works.clear()
        fused_relu._said.clear()
        trials.use(Trials(tmp_path / trials.FILE))
        return made

    monkeypatch.setattr(fused_relu, "is_used", lambda weight: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "a card")
    monkeypatch.setattr(torch.backends.mkldnn, "enabled", False)  # weights are plain, as on a GPU
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", True)
    yield become
    fused_relu._works.clear()
    fused_relu._said.clear()
    trials.use(Trials())


def convolution(dtype=torch.float16, *, bias=True, stride=1):
    torch.manual_seed(0)
    return Conv(nn.Conv2d(8, 8, 3, padding=1, stride=stride, bias=bias, dtype=dtype), relu=True)


def pictures(dtype=torch.float16, rows=2, side=9):
    torch.manual_seed(1)
    return torch.randn(rows, 8, side, side).to(dtype).contiguous(memory_format=torch.channels_last)


def by_torch(conv, x, plus=None):
    out = F.conv2d(x, conv.weight, conv.bias, conv.stride, conv.padding)
    return F.relu(out if plus is None else out + plus)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("more", [{}, {"bias": False}, {"stride": 2}], ids=str)
@pytest.mark.parametrize("adds", [False, True])
def test_a_size_that_computes_right_is_one_launch(dtype, more, adds, cudnn):
    made, conv, x = cudnn(), convolution(dtype, **more), pictures(dtype)
    plus = by_torch(conv, x).flip(0) if adds else None
    conv(x, plus)
    tried = made.calls

    out = conv(x, plus)

    assert (made.calls, fused_relu.tried()) == (tried + 1, (1, 1))
    assert out.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(out, by_torch(conv, x, plus), rtol=0, atol=4 * torch.finfo(dtype).eps)


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        (clips, "what is not a number becomes zero"),
        (clips_the_sum, "what is not a number becomes zero"),
        (wrong_in_a_corner, "wrong by"),
        (without_the_sum, "wrong by"),
        (reads_what_lay_there, "wrong by nan"),
        (raises, "RuntimeError: GET was unable to find an engine"),
    ],
)
def test_a_kernel_that_fails_or_is_wrong_gives_way_to_torchs_and_the_log_says_why_once(fault, reason, cudnn, caplog):
    caplog.set_level(logging.INFO)
    made, conv = cudnn(fault), convolution()

    for side in (9, 7):
        x = pictures(side=side)
        plus = by_torch(conv, x).flip(0)
        assert torch.equal(conv(x, plus), by_torch(conv, x, plus))
    tried = made.calls
    conv(x, plus)

    assert (made.calls, fused_relu.tried()) == (tried, (0, 2))
    said = [record.message for record in caplog.records if "not in one launch" in record.message]
    assert len(said) == len(set(said))
    assert reason in said[0]


def test_no_number_stays_none(cudnn):
    cudnn(clips)
    conv, x = convolution(), pictures()
    conv(x)
    x[1] = torch.nan

    out = conv(x)

    assert out[0].isfinite().all()
    assert out[1].isnan().all()


def test_a_size_that_comes_when_nothing_is_timed_any_more_is_torchs(cudnn, monkeypatch):
    made, conv = cudnn(), convolution()
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", False)

    out = conv(pictures())

    assert torch.equal(out, by_torch(conv, pictures()))
    assert (made.calls, fused_relu.tried()) == (0, (0, 0))


def test_memory_that_runs_out_while_a_size_is_tried_is_no_error(cudnn, monkeypatch):
    cudnn()
    monkeypatch.setattr(torch, "full_like", runs_out)
    conv = convolution()

    assert torch.equal(conv(pictures()), by_torch(conv, pictures()))


def runs_out(*given, **more):
    raise torch.OutOfMemoryError


def test_a_kernel_that_loses_the_card_is_tried_twice_and_never_again(cudnn):
    conv = convolution()
    for _ in range(2):
        cudnn(loses_the_card)
        with pytest.raises(torch.AcceleratorError):
            conv(pictures())
    made = cudnn(loses_the_card)

    conv(pictures())

    assert made.calls == 0


def test_a_copy_in_float32_is_torchs(cudnn):
    made, conv = cudnn(), convolution()

    copy.deepcopy(conv).float()(pictures(torch.float32))

    assert made.calls == 0


@pytest.mark.parametrize(
    ("device", "deterministic", "used"), [("cuda", False, True), ("cuda", True, False), ("cpu", False, False)]
)
def test_it_is_used_on_cuda_alone_and_not_where_sums_must_keep_their_order(device, deterministic, used, monkeypatch):
    class Weight:
        device = torch.device("cpu")

    Weight.device = torch.device(device)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", deterministic)

    assert fused_relu.is_used(Weight()) is used


def test_a_tiny_autoencoders_pictures_stay_the_same(cudnn, monkeypatch):
    model, asked = tiny_models.make(vae=tiny_models.tiny_vae()), params(num_images=2)
    with monkeypatch.context() as without:
        without.setattr(fused_relu, "is_used", lambda weight: False)
        expected = generate(Lcm(model, make_functions(model)), asked, picture())
    made = cudnn()

    actual = generate(Lcm(model, make_functions(model)), asked, picture())

    works, tried = fused_relu.tried()
    assert works == tried > 4
    assert made.calls > tried
    assert levels_apart(actual, expected) <= 1


@pytest.mark.parametrize(("part", "size"), [("encoder", (3, 64, 64)), ("decoder", (4, 8, 8))])
def test_each_relu_and_the_sum_before_it_are_part_of_a_convolution(part, size, cudnn, monkeypatch):
    cudnn()
    vae = make_vae(tiny_models.tiny_vae())
    layers, x = getattr(vae, part), torch.randn(1, *size).contiguous(memory_format=torch.channels_last)
    layers(x)
    fused = []
    monkeypatch.setattr(fused_relu, "fused", lambda x, plus, **its: fused.append(plus) or shaped(x, **its))

    with Operations() as operations:
        layers(x)

    blocks = [layer for layer in layers if isinstance(layer, TinyBlock)]
    assert len(fused) == 3 * len(blocks) + (part == "decoder")  # its first convolution
    assert sum(plus is not None for plus in fused) == len(blocks) > 0
    assert not {"relu", "add"} & set(operations.names)


def shaped(x, weight, stride, padding, bias):
    """An empty result: no operation."""
    height, width = ((side + 2 * padding[0] - weight.shape[2]) // stride[0] + 1 for side in x.shape[2:])
    return torch.empty(len(x), len(weight), height, width, memory_format=torch.channels_last)
