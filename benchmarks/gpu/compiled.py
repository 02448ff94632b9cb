"""Measurements of torch.compile: diffusers as in its manual, and our networks."""

import functools

import torch

from benchmarks.gpu.bench import plain_weights, seconds
from benchmarks.harness import device

# In a dry run what is traced runs as it is.
OPTIONS = {"mode": "reduce-overhead"}


def diffusers(bench, found):
    """Measure diffusers with UNet and decoder compiled as in its manual: each alone, and the whole call."""
    options = {"dynamic": False, **({"backend": "eager"} if bench.dry else OPTIONS)}
    pipeline = device.Diffusers(device.config(), bench.make_model())
    parts, latent = pipeline.pipeline, bench.side // 8
    parts.unet.to(memory_format=torch.channels_last)
    parts.vae.to(memory_format=torch.channels_last)
    parts.vae.decode = torch.compile(parts.vae.decode, fullgraph=True, **options)
    first_and_rest(bench, found, "decode, 1", functools.partial(parts.vae.decode, bench.randn(1, 4, latent, latent)))
    if bench.short:  # the UNet takes half a minute
        return
    parts.unet = torch.compile(parts.unet, fullgraph=True, **options)
    for rows in (1, 2):
        run = functools.partial(parts.unet, bench.randn(rows, 4, latent, latent), bench.timestep(rows))
        run = functools.partial(run, encoder_hidden_states=bench.text(rows), return_dict=False)
        first_and_rest(bench, found, f"unet, {rows}", run)
    found["guided_it_s"] = round(1e3 / found["unet, 2"]["ms"], 1)
    first_and_rest(bench, found, "a request", functools.partial(pipeline.one, *bench.several(1)[0]))


def first_and_rest(bench, found, name, run):
    """Measure the first call, which compiles, and the others."""
    row = found[name] = {"compile_s": seconds(run)}
    row["ms"] = bench.ms(run)


def ours(bench, found):
    """Measure our networks compiled and captured beside the same captured as they are, the cheapest first."""
    with plain_weights(bench):
        for name, run, given in to_compile(bench):
            row = found[name] = {}
            compiled = torch.compile(run, backend="eager" if bench.dry else "inductor", dynamic=False, fullgraph=True)
            row["compile_s"] = seconds(functools.partial(compiled, *given))
            row["compiled_ms"] = bench.ms(bench.captured(functools.partial(compiled, *given)))
            row["plain_ms"] = bench.ms(bench.captured(functools.partial(run, *given)))
            row["apart"] = round((compiled(*given) - run(*given)).abs().max().item(), 5)


def to_compile(bench):
    """Return name, function and inputs of what is compiled."""
    networks, latent = bench.networks, bench.side // 8
    yield "decode, 1", networks.vae.decode, (bench.randn(1, 4, latent, latent),)
    if not bench.short:  # half a minute
        yield "unet, 1", networks.unet, bench.unet_inputs(1)
