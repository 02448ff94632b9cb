"""Measurements of torch.compile: our functions, alone and in the engine, and diffusers as in its manual."""

import contextlib
import functools

import torch

from benchmarks.gpu.bench import apart, loaded, percentiles, picture_of, plain_weights, rate, seconds, serving, several
from benchmarks.harness import device
from pipelines.device.compile import Compiler


def compiled(bench, found):
    """Measure our functions compiled, and compiled and captured; then the engine with them."""
    with plain_weights(bench) if bench.dry else contextlib.nullcontext():
        compile_all(bench, found, Compiler("aot_eager" if bench.dry else "inductor"))


def compile_all(bench, found, compiler):
    """Measure each function alone, then the engine with all of them."""
    latent, many = bench.side // 8, bench.batches[-2]
    functions = (
        ("unet", bench.ours.functions.unet, bench.unet_inputs),
        ("decode", bench.ours.functions.vae_decode, lambda count: (bench.randn(count, 4, latent, latent),)),
        ("encode", bench.ours.functions.vae_encode, lambda count: (bench.randn(count, 3, bench.side, bench.side),)),
    )
    for rows in ((1,), (1, many)):
        for name, function, make in functions:
            row, inputs = found.setdefault(f"{name}, {rows[-1]}", {}), make(rows[-1])
            run = compiler(function)
            row["compile_s"] = seconds(functools.partial(run, *inputs))
            if not compiler.works:
                raise RuntimeError("torch.compile does not work here")
            row["compiled_ms"] = bench.ms(functools.partial(run, *inputs))
            replay, destroy = bench.captured(run, inputs)
            row["captured_ms"] = bench.ms(replay)
            destroy()
        whole = found[f"end to end, captured for {' and '.join(map(str, rows))}"] = {}
        backend, requests = loaded(bench, whole, rows=rows, compiler=compiler), several(bench, bench.requests)
        with serving(bench, backend) as engine:
            whole["alone"] = percentiles(engine.many(requests, 1)[1])
            if many in rows:
                whole["saturated"] = rate(engine, requests + requests, 24)
    found["to_eager"] = apart(
        *(picture_of(bench, model) for model in (bench.captured_model(compiler=compiler, rows=(1,)), bench.ours))
    )


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
