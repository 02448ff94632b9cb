"""Everything that a GPU machine must tell about fourstep, in one call of under eight minutes.

    python -m benchmarks.gpu [--out gpu.json] [--minutes 7.5]        on the GPU
    python -m benchmarks.gpu --dry                                   the same code on a CPU, tiny sizes, a fake capture

Needs torch, diffusers, transformers, msgspec, Pillow and this repository; nothing of the web side, no weights (they are
random, full-size, made on the device) and no network. Sections run in order of importance, each within its own seconds;
what a section found is in the file after each, also of one that failed or was stopped halfway. The same call again does
only what is missing in the file. Milliseconds are medians, the device synchronised. Prints a table; the last line is
JSON.
"""

import argparse
import contextlib
import functools
import json
import random
import time
import traceback
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks.harness import device
from benchmarks.harness.gpu import (
    TINY_VAE,
    OutOfTime,
    Warnings,
    at_most,
    in_float32,
    make_bench,
    percentiles,
    plain_weights,
    random_part,
    rate,
    switched,
    with_tiny_vae,
)
from pipelines.device import devices, loader, streams
from pipelines.device.compile import Compiler
from pipelines.device.torch_backend import TorchBackend
from pipelines.model import kernels, vae
from pipelines.model.blocks import GroupNorm
from pipelines.weights import architectures


def floors(bench, found):
    """What this chip does at best: a matrix product and a copy."""
    side, words = (256, 2**16) if bench.dry else (8192, 2**30)
    a, b = bench.randn(side, side), bench.randn(side, side)
    found["matmul_tflops"] = round(2 * side**3 / bench.ms(lambda: a @ b) / 1e9, 1)
    source = torch.empty(words, dtype=torch.uint8, device=bench.device)
    target = torch.empty_like(source)
    found["copy_gb_s"] = round(2 * words / bench.ms(lambda: target.copy_(source)) / 1e6, 1)


def unet(bench, found):
    """One UNet call by number of rows: diffusers', ours, ours captured; two rows are one picture with guidance."""
    for rows in bench.batches:
        row = found[f"rows {rows}"] = {}
        inputs, network = bench.unet_inputs(rows), bench.ours.network
        row["ours_ms"] = bench.ms(functools.partial(network, *inputs))
        replay, destroy = bench.captured(network, inputs)
        row["captured_ms"] = bench.ms(replay)
        destroy()
        theirs = functools.partial(bench.model.unet, inputs[0], bench.timestep(rows), return_dict=False)
        row["diffusers_ms"] = bench.ms(functools.partial(theirs, encoder_hidden_states=bench.text(rows)))
    guided = found["rows 2"]
    found["guided_it_s"] = {name.removesuffix("_ms"): round(1e3 / took, 1) for name, took in guided.items()}


def end_to_end(bench, found, model=None, *, theirs=True):
    """JPEG to JPEG through the engine loop: alone, saturated, mixed, at 70 % load; diffusers' call beside it."""
    backend, requests = loaded(bench, found, model=model), several(bench, bench.requests)
    with serving(bench, backend) as engine:
        found["alone"] = percentiles(engine.many(requests, 1)[1])
        saturated = found["saturated"] = rate(engine, requests + requests, 24)
        found["70 % load"] = percentiles(engine.timed(requests, 0.7 * saturated["images_s"]))
        steps = random.Random(1).choices((1, 2, 4, 8), k=len(requests))
        mixed = [(device.request(seed, num_inference_steps=count), requests[0][1]) for seed, count in enumerate(steps)]
        found["mixed steps, saturated"] = rate(engine, mixed, 24)
        found["stages_ms"] = {
            name: round(seconds * 1e3, 2) for name, seconds in engine.one(*requests[0]).timings.items()
        }
    if theirs:
        pipeline = device.Diffusers(device.config(), model or bench.model)
        found["diffusers_ms"] = bench.ms(functools.partial(pipeline.one, *requests[0]), least=5)
        found["times_faster"] = round(found["diffusers_ms"] / found["alone"]["p50_ms"], 2)


def tiny_vae(bench, found):
    """The same with the tiny autoencoder."""
    end_to_end(bench, found, with_tiny_vae(bench), theirs=False)


def one_lane(bench, found):
    """The saturated engine without anything beside the steps: what overlapping gains."""
    stream = streams.streams_for(bench.device)[0]
    backend = loaded(bench, found, its_streams=(stream, stream))
    with serving(bench, backend) as engine:
        found["saturated"] = rate(engine, several(bench, 2 * bench.requests), 24)


def stages(bench, found):
    """Autoencoders, text and safety checker for one row and for many; the tiny autoencoder beside the full one."""
    small = random_part(architectures.make_vae, TINY_VAE, bench.device, bench.dtype)
    autoencoders = {"vae": (bench.model.vae, bench.ours.vae), "taesd": (small, vae.make_vae(small))}
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
        found[f"safety, {rows}"] = {"ours_ms": bench.ms(functools.partial(bench.ours.checker, pixels))}
    ids = torch.zeros(1, 77, dtype=torch.long, device=bench.device)
    found["text"] = {"ours_ms": bench.ms(functools.partial(bench.model.text_encoder, ids))}


def pictures(bench, found):
    """Our picture, eager and captured, against diffusers' in the same dtype and in float32, of the same weights."""
    data, request = device.picture(bench.side, bench.side), device.request(7)
    ours, theirs = picture_of(bench, bench.ours), device.Diffusers(device.config(), bench.model).pixels(request, data)
    found["to_diffusers"] = apart(ours, theirs)
    found["captured_to_eager"] = apart(picture_of(bench, bench.captured_model(rows=(1,))), ours)
    exact = in_float32(bench.model)
    with switched(allow_tf32=False):
        reference = device.Diffusers(device.config(), exact).pixels(request, data)
    del exact
    found["to_float32"], found["diffusers_to_float32"] = apart(ours, reference), apart(theirs, reference)
    with switched(allow_fp16_accumulation=True):
        found["fp16_accumulation"] = apart(picture_of(bench, bench.ours), ours)
        inputs = bench.unet_inputs(1)
        found["fp16_accumulation"]["unet_ms"] = bench.ms(functools.partial(bench.ours.network, *inputs))


def waits(bench, found):
    """Which stages wait for the device though they must not: torch makes each such wait an error meanwhile."""
    model, request = bench.captured_model(rows=(1,)), device.request(7)
    pixels = device.images.decode(device.picture(bench.side, bench.side), device.config())
    state = {}
    launches = {
        "prepare, a new prompt": lambda: state.update(text=model.prepare(request)),
        "prepare, a known prompt": lambda: state.update(text=model.prepare(request)),
        "encode": lambda: state.update(images=model.encode([(request, state["text"], pixels, 7)])),
        "step": lambda: model.step(state["images"]),
        "decode": lambda: state.update(drawn=model.decode(state["images"])),
        "check": lambda: state.update(unsafe=model.check(state["drawn"])),
        "fetch": lambda: state.update(
            wait=model.fetch(state["drawn"], model.finite(state["images"]), state["unsafe"]),
        ),
    }
    picture_of(bench, model, prompt="another")  # buffers are pinned at their first use
    for name, launch in launches.items():
        with watching(bench):
            try:
                launch()
                found[name] = "none"
            except RuntimeError as error:
                found[name] = str(error)[:200]
        if found[name] != "none":
            launch()
    state["wait"]()


def compiled(bench, found):
    """Our functions compiled, and compiled and captured; then the engine with them, beside `end_to_end`."""
    with plain_weights(bench) if bench.dry else contextlib.nullcontext():
        compile_all(bench, found, Compiler("aot_eager" if bench.dry else "inductor"))


def compile_all(bench, found, compiler):
    """Each function by itself, then the engine with all of them."""
    latent, many = bench.side // 8, bench.batches[-2]
    functions = (
        ("unet", bench.ours.network, bench.unet_inputs),
        ("decode", bench.ours.vae_decode, lambda count: (bench.randn(count, 4, latent, latent),)),
        ("encode", bench.ours.vae_encode, lambda count: (bench.randn(count, 3, bench.side, bench.side),)),
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
    """diffusers with its UNet and decoder compiled, as its manual has it: the UNet alone, and the whole call."""
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


def warm_up(bench, found):
    """What a start costs: every usual size and batch captured; what memory that takes, and what is left to batches."""
    sizes = ((bench.side, bench.side),) if bench.dry else loader.CAPTURED_SIZES
    model = TorchBackend(bench.model)
    bench.note_peaks()
    loader.profile_memory(model, bench.side)
    found["capture_s"] = seconds(functools.partial(bench.capture_shapes, model, sizes))
    found["graphs"] = sum(len(graphs) for graphs in model.graphs._held.values())
    found["graphs_gb"] = round(model.graphs.nbytes / 1e9, 2)
    loader.set_memory_budget(model, devices.free_memory(bench.device))
    found["footprint"] = str(model.memory_budget)
    found["rows_of_1024x1024"] = {stage: model.room(stage, 2**20, 64) for stage in ("encode", "steps", "decode")}
    model.graphs.evict()


def memory(bench, found):
    """What the device held at most so far."""
    bench.note_peaks()
    found["peak_allocated_gb"], found["peak_reserved_gb"] = (round(peak / 1e9, 2) for peak in bench.peaks)


def norms(bench, found):
    """Group norm and SiLU on channels-last pictures: torch's kernel, by way of the other layout, and plain sums."""
    for width, side in ((32, 8),) if bench.dry else ((320, 64), (1280, 16), (512, 128), (256, 512), (128, 512)):
        norm = GroupNorm(nn.GroupNorm(32, width).to(bench.device, bench.dtype))
        x = bench.randn(1, width, side, side).contiguous(memory_format=torch.channels_last)
        found[f"{width} at {side}"] = {
            "torch_ms": bench.ms(lambda norm=norm, x=x: laid_out(F.silu(norm(x)))),
            "sums_ms": bench.ms(lambda norm=norm, x=x: laid_out(F.silu(norm_by_sums(norm, x)))),
        }


def attention(bench, found):
    """Self-attention at the finest level (heads of 40) by kernel, plain and padded to 64."""
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
    """Doubling and convolution: as two operations, and as the one transposed convolution that we use."""
    shapes = ((1280, 8), (1280, 16), (640, 32), (512, 64), (512, 128), (256, 256))
    for width, side in ((32, 8),) if bench.dry else shapes:
        conv = nn.Conv2d(width, width, 3, padding=1).to(bench.device, bench.dtype, memory_format=torch.channels_last)
        one, x = kernels.upsampling_conv(conv), bench.randn(1, width, side, side)
        x = x.contiguous(memory_format=torch.channels_last)
        found[f"{width} at {side}"] = {
            "two_ms": bench.ms(lambda conv=conv, x=x: conv(F.interpolate(x, scale_factor=2.0))),
            "one_ms": bench.ms(functools.partial(one, x)),
        }


# In order of importance, with the seconds that each may take.
SECTIONS = {
    floors: 15,
    unet: 60,
    end_to_end: 70,
    tiny_vae: 50,
    pictures: 40,
    waits: 20,
    stages: 50,
    compiled: 210,
    warm_up: 120,
    one_lane: 40,
    compiled_diffusers: 120,
    norms: 15,
    upsampling: 15,
    attention: 15,
    memory: 5,
}


# --- helpers ---------------------------------------------------------------------------------------------------------


def loaded(bench, found, **options):
    """A captured model, and what capturing it took."""
    begun = time.perf_counter()
    model = bench.captured_model(**options)
    found["capture_s"] = round(time.perf_counter() - begun, 1)
    return model


@contextlib.contextmanager
def serving(bench, backend):
    """The engine loop around a model, warm; its graphs are given up afterwards."""
    engine = device.Ours(device.config(max_batch=8), backend)
    try:
        engine.many(several(bench, 16), 8)
        yield engine
    finally:
        engine.close()
        backend.graphs.evict()


@contextlib.contextmanager
def watching(bench):
    if bench.device.type == "cuda":
        torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        if bench.device.type == "cuda":
            torch.cuda.set_sync_debug_mode("default")


def several(bench, count):
    """Requests of the usual size, each with a seed of its own."""
    data = device.picture(bench.side, bench.side)
    return [(device.request(seed), data) for seed in range(count)]


def picture_of(bench, model, **fields):
    """One request alone through the stages."""
    data = device.picture(bench.side, bench.side)
    return device.generate(model, device.request(7, **fields), device.images.decode(data, device.config()))


def apart(one, other):
    return {"psnr_db": round(device.psnr(one, other), 1), "levels": device.levels_apart(one, other)}


def seconds(run):
    begun = time.perf_counter()
    run()
    device.synchronize()
    return round(time.perf_counter() - begun, 1)


def laid_out(x):
    return x.contiguous(memory_format=torch.channels_last)


def norm_by_sums(norm, x):
    """Group norm of channels-last [N, C, H, W] without another layout: what a compiler would be spared."""
    rows, width, height, side = x.shape
    groups = x.permute(0, 2, 3, 1).reshape(rows, height * side, norm.groups, -1)
    variance, mean = torch.var_mean(groups.float(), dim=(1, 3), correction=0)
    scale = (variance + norm.eps).rsqrt().repeat_interleave(width // norm.groups, 1) * norm.weight
    shift = norm.bias - mean.repeat_interleave(width // norm.groups, 1) * scale
    return torch.addcmul(shift[:, :, None, None], x, scale[:, :, None, None]).to(x.dtype)


def show(name, found, indent=0):
    """A section as lines for people."""
    flat = {key: value for key, value in found.items() if not isinstance(value, dict)}
    figures = "  ".join(f"{key} {value}" for key, value in flat.items())
    print(f"{' ' * indent}{name:<{24 - indent}} {figures}", flush=True)
    for key, value in found.items():
        if isinstance(value, dict):
            show(key, value, indent + 2)


def attempt(section, bench, allowed):
    """What a section found, and how it ended."""
    if bench.left < 1:
        return {"ended": "skipped: out of time"}
    found, begun = {}, time.monotonic()
    with Warnings() as warnings:
        try:
            with at_most(min(allowed, bench.left)):
                section(bench, found)
            ended = "done"
        except (Exception, OutOfTime) as error:  # noqa: BLE001 – the other sections are worth having all the same
            traceback.print_exc()
            ended = f"{type(error).__name__}: {error}"[:500]
    if warnings.lines:
        found["warnings"] = warnings.lines
    if bench.device.type == "cuda":
        torch.cuda.empty_cache()
    return {"ended": ended, "took_s": round(time.monotonic() - begun, 1), **found}


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("gpu.json"), help="sections that are done there are kept")
    parser.add_argument("--minutes", type=float, default=7.5)
    parser.add_argument("--dry", action="store_true", help="on a CPU, at tiny sizes")
    parser.add_argument("--only", nargs="*", default=[], help="names of sections, done or not")
    options = parser.parse_args(arguments)
    machine = {"dry": options.dry, **device.machine()}
    kept = json.loads(options.out.read_text()) if options.out.exists() else {}
    report = kept if {key: kept.get(key) for key in machine} == machine else machine
    print(machine, flush=True)
    with own_stream(options), torch.inference_mode():
        bench = make_bench(dry=options.dry, minutes=options.minutes)
        for section, allowed in SECTIONS.items():
            name = section.__name__
            if name not in options.only if options.only else report.get(name, {}).get("ended") == "done":
                continue
            report[name] = attempt(section, bench, allowed)
            show(name, report[name])
            options.out.write_text(json.dumps(report, indent=2) + "\n")
    print(json.dumps(report))
    return report


def own_stream(options):
    """Nothing can be captured on the stream that everybody starts with."""
    return contextlib.nullcontext() if options.dry else torch.cuda.stream(torch.cuda.Stream())


if __name__ == "__main__":
    main()
