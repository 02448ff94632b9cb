"""The forms of convolutions, products and attention: each computes what torch's own operator does, at any size."""

import math
import os
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F

from pipelines.model.kernels import attention, convolution, doubling, winograd
from pipelines.model.kernels.direct import PackedConv, WindowProduct
from pipelines.model.kernels.products import PixelProduct, packs

X86 = packs(torch.ones(1))
AVX2 = {"ONEDNN_MAX_CPU_ISA": "AVX2", "MKL_ENABLE_INSTRUCTIONS": "AVX2", "ATEN_CPU_CAPABILITY": "avx2"}
SIZES = [(1, 1), (3, 8), (17, 9), (33, 64)]

x86 = pytest.mark.skipif(not X86, reason="oneDNN's operators are for x86")


@pytest.fixture
def conv():
    """A 3×3 convolution whose outputs for inputs of unit variance are of about that too."""
    source = torch.nn.Conv2d(64, 48, 3, padding=1)
    source.weight.normal_(std=(9 * 64) ** -0.5)
    return source


def exact(conv, x):
    return F.conv2d(x.double(), conv.weight.double(), conv.bias.double(), conv.stride, conv.padding)


def root_mean_square(error):
    return error.pow(2).mean().sqrt().item()


@pytest.mark.parametrize("options", [{}, {"keep": False}, {"at_once": 3}], ids=str)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_tiles_give_the_convolution(options, size, conv, noise):
    x, plus = noise(2, 64, *size), noise(2, 48, *size)

    actual = winograd.WinogradConv(conv, relu=True, **options)(x, plus)

    error = actual - F.relu(exact(conv, x) + plus)
    assert error.abs().max() <= 2e-4
    assert root_mean_square(error) <= 1e-5


@x86
def test_tiles_by_packed_products_are_the_same(conv, noise):
    x = noise(1, 64, 9, 12)

    actual = winograd.WinogradConv(conv, packed=True)(x)

    torch.testing.assert_close(actual, exact(conv, x).float(), rtol=0, atol=2e-4)


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("keep", [True, False])
def test_tiles_of_a_doubled_picture(size, keep, conv, noise):
    x = noise(2, 64, *size)

    actual = winograd.WinogradConv(conv, winograd.DOUBLED, keep=keep)(x)

    error = actual - exact(conv, F.interpolate(x, scale_factor=2.0))
    assert error.abs().max() <= 2e-4
    assert root_mean_square(error) <= 1e-5


def test_doubling_needs_fewer_products():
    assert [len(tiles.kernel) for tiles in (winograd.PLAIN, winograd.DOUBLED)] == [36, 25]


def test_a_kernel_that_is_not_kept_takes_no_memory(conv):
    held = winograd.WinogradConv(conv, keep=False)

    assert [tensor.data_ptr() for tensor in held.buffers()] == [conv.weight.data_ptr(), conv.bias.data_ptr()]


@x86
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_windows_give_the_convolution(stride, size, noise):
    source, x = torch.nn.Conv2d(5, 7, 3, stride=stride, padding=1), noise(1, 5, *size)
    plus, made, rows = noise(*source(x).shape), WindowProduct(source, relu=True, at_once=10_000), []
    made.product.register_forward_hook(lambda layer, given, out: rows.append(len(given[0])))

    for pictures in (x, x.repeat(2, 1, 1, 1)):
        actual = made(pictures, plus)
        torch.testing.assert_close(actual, F.relu(source(pictures) + plus), rtol=1e-5, atol=1e-5)
    assert max(rows) < 512 + 64  # whatever the number of pictures


@x86
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_windows_of_a_doubled_picture(size, conv, noise):
    x = noise(2, 64, *size)

    actual = doubling.DoublingProduct(conv)(x)

    torch.testing.assert_close(actual, conv(F.interpolate(x, scale_factor=2.0)), rtol=1e-5, atol=1e-5)


def test_single_pixels_are_a_product(noise):
    source, x, plus = torch.nn.Conv2d(5, 7, 1), noise(2, 5, 3, 4), noise(2, 7, 3, 4)

    made = convolution.conv(source, relu=True)

    assert isinstance(made, PixelProduct)
    torch.testing.assert_close(made(x, plus), F.relu(source(x) + plus), rtol=1e-5, atol=1e-5)


@x86
def test_few_tiles_are_computed_directly(noise):
    source = torch.nn.Conv2d(128, 128, 3, padding=1)
    made = convolution.conv(source)
    assert isinstance(made, convolution.BySize)
    used = []
    for name, form in (("direct", made.direct), ("tiled", made.tiled)):
        form.register_forward_hook(lambda *_, name=name: used.append(name))

    made(noise(1, 128, 28, 32))  # 7 × 8 tiles
    made(noise(1, 128, 32, 32))
    made(noise(2, 128, 16, 32))

    assert used == ["direct", "tiled", "tiled"]


@x86
def test_a_layer_with_few_pixels_and_many_channels_has_no_transformed_kernel():
    assert not isinstance(convolution.conv(torch.nn.Conv2d(640, 1280, 3, padding=1)), convolution.BySize)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_only_float32_is_computed_in_tiles(dtype):
    source = torch.nn.Conv2d(128, 128, 3, padding=1, dtype=dtype)

    made = convolution.conv(source)

    assert isinstance(made, convolution.BySize) == (dtype == torch.float32 and X86)
    if dtype == torch.bfloat16 and X86 and "AVX512" in torch.backends.cpu.get_cpu_capability():
        assert isinstance(made, PackedConv)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_attention_in_products_is_attention(dtype):
    query, key, value = torch.randn(3, 2, 2, 300, 40).to(dtype).unbind()

    actual = attention.attention_in_products(query, key, value)

    expected = F.scaled_dot_product_attention(query.double(), key.double(), value.double())
    torch.testing.assert_close(actual.double(), expected, rtol=0, atol=1e-5 if dtype == torch.float32 else 1e-2)


@pytest.mark.parametrize("at_once", [300, 128, 1])
def test_attention_of_one_wide_head_is_attention_in_any_number_of_rows(at_once):
    # As an autoencoder has them: views of one product.
    query, key, value = torch.randn(2, 300, 3, 1, 512).bfloat16().permute(2, 0, 3, 1, 4).unbind()

    actual = attention.attention_in_products(query, key, value, at_once)

    expected = F.scaled_dot_product_attention(query.double(), key.double(), value.double())
    torch.testing.assert_close(actual.double(), expected, rtol=0, atol=2e-2)


class OnCuda:
    """What attention asks of a tensor there."""

    device = torch.device("cuda")

    def __init__(self, tokens, width, dtype):
        self.shape, self.dtype = (1, 1, tokens, width), dtype

    def element_size(self):
        return self.dtype.itemsize


@pytest.mark.parametrize(
    ("tokens", "width", "dtype", "rows"),
    [
        (4096, 512, torch.float16, 4096),
        (16384, 512, torch.bfloat16, 1024),
        (2**25, 512, torch.float16, 1),
        (4096, 512, torch.float32, None),
        (4096, 160, torch.float16, None),
    ],
    ids=str,
)
def test_cuda_has_products_for_heads_that_no_fused_kernel_takes(tokens, width, dtype, rows, monkeypatch):
    monkeypatch.setattr(attention, "attention_in_products", lambda *given: given[3])
    monkeypatch.setattr(F, "scaled_dot_product_attention", lambda *given: None)
    x = OnCuda(tokens, width, dtype)

    assert attention.attend(x, x, x) == rows


@pytest.mark.parametrize(
    ("device", "keys", "copied"), [("cpu", 2048, True), ("cpu", 2047, False), ("meta", 2048, False)]
)
def test_only_a_processor_copies_heads_and_only_of_many_tokens(device, keys, copied, monkeypatch):
    seen = []
    monkeypatch.setattr(F, "scaled_dot_product_attention", lambda *given: seen.extend(given))
    query, key, value = torch.empty(1, keys, 3, 2, 8, device=device).permute(2, 0, 3, 1, 4).unbind()

    attention.attend(query, key, value)

    assert [each.is_contiguous() for each in seen] == [copied] * 3


@pytest.mark.parametrize("answer", ["fused", "products"])
def test_long_attention_in_bfloat16_is_what_was_faster(answer, monkeypatch):
    asked = []

    class Answers:
        def choose(self, question, forms, *, rule):
            asked.append((question, sorted(forms), rule))
            return answer

    ran = []
    monkeypatch.setattr(attention.choices, "current", Answers)
    monkeypatch.setattr(attention, "attention_in_products", lambda *given: ran.append(given) or given[0])
    x = torch.zeros(1, 1, 1024, 8, dtype=torch.bfloat16)

    for each in (x, x[:, :, :1000], x.float()):
        attention.attend(each, each, each)

    assert asked == [("attention bfloat16", ["fused", "products"], "fused")]
    assert len(ran) == (answer == "products")


@x86
@pytest.mark.parametrize(
    ("environment", "dtype"),
    [
        ({}, "float32"),
        pytest.param({}, "bfloat16", marks=pytest.mark.long),
        pytest.param(AVX2, "float32", marks=pytest.mark.long),
    ],
    ids=["float32", "bfloat16", "avx2"],
)
def test_no_weights_are_converted_at_a_second_call(environment, dtype):
    if dtype == "bfloat16" and "AVX512" not in torch.backends.cpu.get_cpu_capability():
        pytest.skip("without AVX-512 bfloat16 weights are not packed")
    done = subprocess.run(
        [sys.executable, "-m", "tests.model.kernel_reorders", dtype],
        env={**os.environ, **environment, "DNNL_VERBOSE": "1"},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        timeout=300,
    )

    first, again = done.stdout.split("\nagain\n")
    assert first.count(",exec,cpu,") > 20
    slow = [line for line in again.splitlines() if "simple:any" in line or ",ref:any" in line]
    converted = [line for line in again.splitlines() if ",exec,cpu,reorder," in line]
    # torch converts weights under a megabyte with AVX2. In bfloat16 oneDNN goes from one of its own blocked layouts to
    # another at some sizes, in half a millisecond; it must never begin with large plain weights.
    plain = [line for line in converted if values(line) > 2**18 and "src:bf16::blocked:A" not in line]
    assert (slow, plain) == ([], [])


def values(line):
    """Return how many numbers a line of oneDNN's log is about."""
    return math.prod(int(side) for side in line.split(",")[-2].split("x"))
