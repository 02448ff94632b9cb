"""Measurements of single parts: the hardware's limits, norms, attention, convolutions, upsampling."""

import contextlib
import functools
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks.gpu.norms import NORMS, reference
from pipelines.model.kernels import choices, doubling
from pipelines.model.kernels.attention import FUSED_WIDTH, attention_in_products
from pipelines.model.kernels.choices import Choices
from pipelines.model.kernels.cuda import fused_attention, group_norm

# Nodes of the graph that does nothing: what a graph costs for each of its kernels.
NODES = 1000
KERNELS = ("FLASH_ATTENTION", "EFFICIENT_ATTENTION", "CUDNN_ATTENTION", "MATH")


def floors(bench, found):
    """Measure the hardware's limits: a matrix product, a copy, a kernel that does nothing, launched and in a graph."""
    side, words = (256, 2**16) if bench.dry else (8192, 2**30)
    a, b = bench.randn(side, side), bench.randn(side, side)
    found["matmul_tflops"] = round(2 * side**3 / bench.ms(lambda: a @ b) / 1e9, 1)
    source = torch.empty(words, dtype=torch.uint8, device=bench.device)
    target = torch.empty_like(source)
    found["copy_gb_s"] = round(2 * words / bench.ms(lambda: target.copy_(source)) / 1e6, 1)
    nothing = torch.zeros(1, device=bench.device)

    def nodes():
        for _ in range(NODES):
            nothing.add_(1)

    found["launch_us"] = round(bench.ms(nodes) * 1e3 / NODES, 2)
    found["graph_node_us"] = round(bench.ms(bench.captured(nodes)) * 1e3 / NODES, 2)


def distinct(ops, name, key):
    """Return the operations of a name that differ in `key`, each with how often it comes."""
    found = {}
    for op in ops:
        if op.name == name:
            _, count = found.get(key(op), (op, 0))
            found[key(op)] = (op, count + 1)
    return list(found.values())


def as_laid_out(bench, layout):
    """Return random values with a tensor's shape and strides."""
    size = 1 + sum((side - 1) * stride for side, stride in zip(layout.shape, layout.strides, strict=True))
    return bench.randn(size).as_strided(layout.shape, layout.strides)


def norms(bench, found):
    """Measure group norm and SiLU on channels-last pictures by kernel, and how far each is from float64.

    `own_kernels`: whether the product's are ours; else both figures are of torch's.
    """
    found["own_kernels"] = bench.device.type == "cuda" and group_norm.works(bench.device, bench.dtype)
    shapes = distinct(bench.ops, "group_norm", lambda op: op.inputs[0].shape)
    limit = copied_bytes_us(bench)
    for op, count in sorted(shapes, key=lambda each: -each[0].inputs[0].nbytes * each[1])[: 4 if bench.dry else None]:
        _, width, height, across = op.inputs[0].shape
        row = found[f"{width} at {height}×{across}"] = {"times": count}
        # A mean that is not zero: sums of squares would lose digits.
        x = (3 + bench.randn(1, width, height, across)).contiguous(memory_format=torch.channels_last)
        module = nn.GroupNorm(bench.configs["unet"]["norm_num_groups"], width).to(bench.device, bench.dtype)
        for parameter in module.parameters():
            parameter.normal_()
        exact = reference(module, x)
        for name, make in NORMS.items():
            run = functools.partial(make(module), x)
            row[f"{name}_us"] = bench.us(run)
            row[f"{name}_of_copy"] = round(2 * x.nbytes * limit / row[f"{name}_us"], 2)
            row[f"{name}_error"] = f"{(run().double() - exact).abs().max().item():.1e}"


def copied_bytes_us(bench):
    """Return the microseconds that a byte takes in a large copy."""
    source = torch.empty(2**16 if bench.dry else 2**29, dtype=torch.uint8, device=bench.device)
    target = torch.empty_like(source)
    return bench.ms(lambda: target.copy_(source)) * 1e3 / (2 * source.nbytes)


def attention(bench, found):
    """Measure all attention of the networks by kernel, at the strides that query, key and value have there."""
    for op, count in distinct(bench.ops, "attention", lambda op: op.inputs):
        given = [as_laid_out(bench, layout) for layout in op.inputs]
        (_, heads, tokens, width), keys = op.inputs[0].shape, op.inputs[1].shape[2]
        row = found[f"{heads} heads of {width}, {tokens} to {keys}"] = {"times": count}
        run = functools.partial(F.scaled_dot_product_attention, *given)
        row["default_us"] = bench.us(run)
        row["tflops"] = round(4 * heads * tokens * keys * width / row["default_us"] / 1e6, 1)
        for name in KERNELS:
            with contextlib.suppress(RuntimeError), sdpa_kernel(getattr(SDPBackend, name)):
                row[f"{name.removesuffix('_ATTENTION').lower()}_us"] = bench.us(run)
        row["products_us"] = bench.us(functools.partial(attention_in_products, *given, at_once=tokens))
        row["chosen"] = "products" if width > FUSED_WIDTH else chosen(bench, given)


def chosen(bench, given):
    """Return the kernel that the product takes for attention of one row, found out as at its start; kept nowhere."""
    choices.use(Choices(Path(choices.FILE), machine="any", keep=False) if not bench.dry else Choices())
    fused_attention.choose([given], [1])
    choices.use(Choices())
    return fused_attention.chosen(*given[:2])


def convolutions(bench, found):
    """Measure all convolutions of the networks, with cuDNN's kernel by its rules and by timing; shares of the peak."""
    side = 256 if bench.dry else 8192
    a, b = bench.randn(side, side), bench.randn(side, side)
    peak = 2 * side**3 / bench.ms(lambda: a @ b) / 1e9
    shapes = distinct(bench.ops, "convolution", lambda op: (op.inputs[0].shape, op.inputs[1].shape, op.options))
    for op, count in shapes[: 6 if bench.dry else None]:
        given, weight, *_ = op.inputs
        biased, strides, paddings, transposed = op.options
        kind = "transposed" if transposed else f"stride {strides[0]}" if max(strides) > 1 else ""
        name = " ".join(f"{'×'.join(map(str, given.shape[1:]))} to {op.outputs[0].shape[1]} {kind}".split())
        row = found[f"{name}, {weight.shape[2]}×{weight.shape[3]}"] = {"times": count}
        x, kernel = (
            bench.randn(*layout.shape).contiguous(memory_format=torch.channels_last) for layout in (given, weight)
        )
        bias = bench.randn(op.outputs[0].shape[1]) if biased else None
        form = F.conv_transpose2d if transposed else F.conv2d
        run = functools.partial(form, x, kernel, bias, stride=strides, padding=paddings)
        for way, timed in (("rules", False), ("timed", True)):
            row[f"{way}_us"] = in_new_thread(functools.partial(with_choice, bench, run, timed=timed))
        taps = weight.shape[2] * weight.shape[3] // (4 if transposed else 1)
        tflop = 2 * op.outputs[0].nbytes / op.outputs[0].width * given.shape[1] * taps / 1e12
        row["of_peak"] = round(tflop / (row["timed_us"] / 1e6) / peak, 3)


def in_new_thread(run):
    """Run in a thread of its own: torch keeps cuDNN's kernels by thread, however they were chosen.

    Returns when the thread has ended, even if the section's time is over: what it captures would spoil the next one.
    """
    stream = torch.cuda.current_stream() if torch.cuda.is_available() else None

    def work():
        with torch.inference_mode(), torch.cuda.stream(stream):
            return run()

    with ThreadPoolExecutor(1) as thread:
        return thread.submit(work).result()


def with_choice(bench, run, *, timed):
    """Time a convolution with cuDNN's kernel chosen by timing or by rules."""
    kept, torch.backends.cudnn.benchmark = torch.backends.cudnn.benchmark, timed
    try:
        return bench.us(run)
    finally:
        torch.backends.cudnn.benchmark = kept


def upsampling(bench, found):
    """Measure upsampling and convolution as two operations, and as the one transposed convolution that we use."""
    shapes = ((1280, 8), (1280, 16), (640, 32), (512, 64), (512, 128), (256, 256))
    for width, side in ((32, 8),) if bench.dry else shapes:
        conv = nn.Conv2d(width, width, 3, padding=1).to(bench.device, bench.dtype, memory_format=torch.channels_last)
        one, x = doubling.upsampling_conv(conv), bench.randn(1, width, side, side)
        x = x.contiguous(memory_format=torch.channels_last)
        found[f"{width} at {side}"] = {
            "two_us": bench.us(lambda conv=conv, x=x: conv(F.interpolate(x, scale_factor=2.0))),
            "one_us": bench.us(functools.partial(one, x)),
        }
