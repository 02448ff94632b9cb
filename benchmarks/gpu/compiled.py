"""Measurements of diffusers with torch.compile, as in its manual."""

import functools

import torch

from benchmarks.gpu.bench import seconds
from benchmarks.harness import device


def compiled_diffusers(bench, found):
    """Measure diffusers with UNet and decoder compiled as in its manual: the UNet alone, and the whole call."""
    pipeline = device.Diffusers(device.config(), bench.model)
    parts = pipeline.pipeline
    parts.unet.to(memory_format=torch.channels_last)
    parts.vae.to(memory_format=torch.channels_last)
    options = {"backend": "aot_eager"} if bench.dry else {"mode": "reduce-overhead"}
    plain, decode = parts.unet, parts.vae.decode
    try:
        parts.unet = torch.compile(plain, fullgraph=True, **options)
        parts.vae.decode = torch.compile(decode, fullgraph=True, **options)
        call = functools.partial(pipeline.one, device.request(1), device.picture(bench.side, bench.side))
        found["compile_s"] = seconds(call)
        found["one_ms"] = bench.ms(call, least=5)
        for rows in (1, 2):
            given, text = bench.randn(rows, 4, bench.side // 8, bench.side // 8), bench.text(rows)
            run = functools.partial(parts.unet, given, 500, encoder_hidden_states=text, return_dict=False)
            found[f"unet, {rows}, compile_s"] = seconds(run)
            found[f"unet, {rows}, ms"] = bench.ms(run)
        found["guided_it_s"] = round(1e3 / found["unet, 2, ms"], 1)
    finally:
        parts.unet, parts.vae.decode = plain, decode
