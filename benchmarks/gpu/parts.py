"""Measurements of single parts: hardware limits, UNet, autoencoders, norms, attention, upsampling, peak memory."""

import contextlib
import functools

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks.gpu.random_weights import TINY_VAE, random_part
from pipelines.model import vae
from pipelines.model.blocks import GroupNorm
from pipelines.model.kernels import doubling
from pipelines.weights import architectures


def floors(bench, found):
    """Measure the hardware's limits: a matrix product and a copy."""
    side, words = (256, 2**16) if bench.dry else (8192, 2**30)
    a, b = bench.randn(side, side), bench.randn(side, side)
    found["matmul_tflops"] = round(2 * side**3 / bench.ms(lambda: a @ b) / 1e9, 1)
    source = torch.empty(words, dtype=torch.uint8, device=bench.device)
    target = torch.empty_like(source)
    found["copy_gb_s"] = round(2 * words / bench.ms(lambda: target.copy_(source)) / 1e6, 1)


def unet(bench, found):
    """Measure one UNet call by number of rows: diffusers', ours, ours captured. Guidance takes two rows."""
    for rows in bench.batches:
        row = found[f"rows {rows}"] = {}
        inputs, network = bench.unet_inputs(rows), bench.ours.functions.unet
        row["ours_ms"] = bench.ms(functools.partial(network, *inputs))
        replay, destroy = bench.captured(network, inputs)
        row["captured_ms"] = bench.ms(replay)
        destroy()
        theirs = functools.partial(bench.model.unet, inputs[0], bench.timestep(rows), return_dict=False)
        row["diffusers_ms"] = bench.ms(functools.partial(theirs, encoder_hidden_states=bench.text(rows)))
    guided = found["rows 2"]
    found["guided_it_s"] = {name.removesuffix("_ms"): round(1e3 / took, 1) for name, took in guided.items()}


def stages(bench, found):
    """Measure both autoencoders, text encoder and safety checker, for one row and for many."""
    small = random_part(architectures.make_vae, TINY_VAE, bench.device, bench.dtype)
    autoencoders = {"vae": (bench.model.vae, vae.make_vae(bench.model.vae)), "taesd": (small, vae.make_vae(small))}
    for rows in (bench.batches[0], bench.batches[-2]):
        images = bench.randn(rows, 3, bench.side, bench.side).clamp(-1, 1)
        latents = bench.randn(rows, 4, bench.side // 8, bench.side // 8)
        for name, (theirs, ours) in autoencoders.items():
            for way, run, given in (("encode", ours.encode, images), ("decode", ours.decode, latents)):
                row = found[f"{name} {way}, {rows}"] = {"ours_ms": bench.ms(functools.partial(run, given))}
                replay, destroy = bench.captured(run, (given,))
                row["captured_ms"] = bench.ms(replay)
                destroy()
                row["diffusers_ms"] = bench.ms(functools.partial(getattr(theirs, way), given))
        pixels = torch.zeros(rows, bench.side, bench.side, 3, dtype=torch.uint8, device=bench.device)
        found[f"safety, {rows}"] = {"ours_ms": bench.ms(functools.partial(bench.ours.functions.flags, pixels))}
    ids = torch.zeros(1, 77, dtype=torch.long, device=bench.device)
    found["text"] = {"ours_ms": bench.ms(functools.partial(bench.model.text_encoder, ids))}


def norms(bench, found):
    """Measure group norm and SiLU on channels-last pictures: torch's kernel, via the other layout, and plain sums."""
    for width, side in ((32, 8),) if bench.dry else ((320, 64), (1280, 16), (512, 128), (256, 512), (128, 512)):
        norm = GroupNorm(nn.GroupNorm(32, width).to(bench.device, bench.dtype))
        x = bench.randn(1, width, side, side).contiguous(memory_format=torch.channels_last)
        found[f"{width} at {side}"] = {
            "torch_ms": bench.ms(lambda norm=norm, x=x: laid_out(F.silu(norm(x)))),
            "sums_ms": bench.ms(lambda norm=norm, x=x: laid_out(F.silu(norm_by_sums(norm, x)))),
        }


def norm_by_sums(norm, x):
    """Return the group norm of channels-last [N, C, H, W], computed without a change of layout."""
    rows, width, height, side = x.shape
    groups = x.permute(0, 2, 3, 1).reshape(rows, height * side, norm.groups, -1)
    variance, mean = torch.var_mean(groups.float(), dim=(1, 3), correction=0)
    scale = (variance + norm.eps).rsqrt().repeat_interleave(width // norm.groups, 1) * norm.weight
    shift = norm.bias - mean.repeat_interleave(width // norm.groups, 1) * scale
    return torch.addcmul(shift[:, :, None, None], x, scale[:, :, None, None]).to(x.dtype)


def laid_out(x):
    return x.contiguous(memory_format=torch.channels_last)


def attention(bench, found):
    """Measure self-attention at the highest resolution (heads of 40) by kernel, plain and padded to 64."""
    tokens = (bench.side // 8) ** 2
    query, key, value = (bench.randn(2, 8, tokens, 40) for _ in range(3))
    wide = [F.pad(each, (0, 24)) for each in (query, key, value)]
    found["default_ms"] = bench.ms(lambda: F.scaled_dot_product_attention(query, key, value))
    for name in ("FLASH_ATTENTION", "EFFICIENT_ATTENTION", "CUDNN_ATTENTION"):
        with contextlib.suppress(RuntimeError), sdpa_kernel(getattr(SDPBackend, name)):
            found[f"{name.lower()}_ms"] = bench.ms(lambda: F.scaled_dot_product_attention(query, key, value))
            found[f"{name.lower()}, padded_ms"] = bench.ms(
                lambda: F.scaled_dot_product_attention(*wide, scale=40**-0.5)
            )


def upsampling(bench, found):
    """Measure upsampling and convolution as two operations, and as the one transposed convolution that we use."""
    shapes = ((1280, 8), (1280, 16), (640, 32), (512, 64), (512, 128), (256, 256))
    for width, side in ((32, 8),) if bench.dry else shapes:
        conv = nn.Conv2d(width, width, 3, padding=1).to(bench.device, bench.dtype, memory_format=torch.channels_last)
        one, x = doubling.upsampling_conv(conv), bench.randn(1, width, side, side)
        x = x.contiguous(memory_format=torch.channels_last)
        found[f"{width} at {side}"] = {
            "two_ms": bench.ms(lambda conv=conv, x=x: conv(F.interpolate(x, scale_factor=2.0))),
            "one_ms": bench.ms(functools.partial(one, x)),
        }


def memory(bench, found):
    """Record the peak memory of the device so far."""
    bench.note_peaks()
    found["peak_allocated_gb"], found["peak_reserved_gb"] = (round(peak / 1e9, 2) for peak in bench.peaks)
