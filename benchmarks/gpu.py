"""Everything that a GPU machine must tell about fourstep, in one call of under eight minutes.

    python -m benchmarks.gpu [--out gpu.json] [--minutes 7.5]        on the GPU
    python -m benchmarks.gpu --dry                                   the same code on a CPU, tiny sizes, a fake capture

Needs torch, diffusers, transformers, msgspec, Pillow and this repository; nothing of the web side, no weights (they are
random, full-size, made on the device) and no network. Sections run in order of importance, each with what time is left;
what a section found is in the file before the next one starts, and one that fails says so and is passed over.
Milliseconds are medians, the device synchronised. Prints a table; the last line is JSON.
"""

import argparse
import contextlib
import copy
import functools
import json
import random
import statistics
import tempfile
import time
import traceback
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from benchmarks import rig
from pipelines import demo, kernels, modules, on_torch, vae
from pipelines.checkpoint import Model
from pipelines.graphs import Cuda, Graphs
from pipelines.on_torch import DeviceModel
from pipelines.unet import Unet
from tests.published import FULL, SCHEDULER, TINY


@dataclass
class Bench:
    """What the sections share. `quick`: seconds that one measurement may take."""

    device: torch.device
    dtype: torch.dtype
    dry: bool
    side: int
    batches: tuple[int, ...]
    requests: int
    quick: float
    model: Model
    ours: DeviceModel
    deadline: float

    @property
    def left(self):
        return self.deadline - time.monotonic()

    def ms(self, run, least=3):
        """Median milliseconds of `run`, warm."""
        for _ in range(2):
            run()
        rig.synchronize()
        walls, begun = [], time.perf_counter()
        while len(walls) < least or (time.perf_counter() - begun < self.quick and len(walls) < 200):
            start = time.perf_counter()
            run()
            rig.synchronize()
            walls.append(time.perf_counter() - start)
        return round(statistics.median(walls) * 1e3, 3)

    def randn(self, *shape):
        return torch.randn(*shape, device=self.device, dtype=self.dtype)


class Pretend:
    """A capture for machines that have none."""

    nbytes = 0

    def pool(self):
        return None

    def capture(self, run, inputs, pool):
        run(*inputs)
        graph = Pretend()
        graph.replay = lambda given: run(*given)
        return graph

    def destroy(self):
        pass


def random_part(make, config, device, dtype):
    """A module with random weights made where they are to lie, of a size that keeps activations finite."""
    module = make(config).to_empty(device=device).to(dtype)
    for name, tensor in module.state_dict().items():
        if tensor.dim() > 1 and tensor.is_floating_point():
            tensor.normal_(0, max(tensor[0].numel(), 1) ** -0.5)
        elif tensor.is_floating_point():
            tensor.zero_() if name.endswith("bias") else tensor.uniform_(0.9, 1.1)
    for owner in module.modules():
        if hasattr(owner, "position_ids"):
            owner.position_ids = torch.arange(owner.position_ids.shape[-1], device=device)[None]
    return module.eval().requires_grad_(requires_grad=False)


def random_model(configs, device, dtype, *, tiny=False):
    with tempfile.TemporaryDirectory() as folder:
        demo.write_tokenizer(Path(folder))
        tokenizer = modules.load_tokenizer(Path(folder))
    checker = random_part(modules.make_safety_checker, configs["safety_checker"], device, dtype)
    for thresholds in (checker.concept_embeds_weights, checker.special_care_embeds_weights):
        thresholds.fill_(2)  # nothing reaches it: random weights must not blacken pictures
    small = {"_class_name": "AutoencoderTiny", "latent_channels": 4}
    return Model(
        unet=random_part(modules.make_unet, configs["unet"], device, dtype),
        vae=random_part(modules.make_vae, small if tiny else configs["vae"], device, dtype),
        text_encoder=random_part(modules.make_text_encoder, configs["text_encoder"], device, dtype),
        tokenizer=tokenizer,
        safety_checker=checker,
        scheduler_config=SCHEDULER,
        name="random",
        notice="",
        device=device,
        dtype=dtype,
    )


def unet_inputs(bench, rows):
    latent = bench.side // 8
    network = bench.ours.network
    return (
        bench.randn(rows, 4, latent, latent),
        bench.randn(rows, sum(network.shift_widths)),
        bench.randn(rows, 77, sum(network.context_widths)),
    )


def captured(bench, run, inputs):
    """`run` as a captured call, and how it is given up."""
    device = Pretend() if bench.dry else Cuda()
    graph = device.capture(run, inputs, device.pool())
    return functools.partial(graph.replay, inputs), graph.destroy


# --- sections --------------------------------------------------------------------------------------------------------


def floors(bench):
    """What this chip does at best: a matrix product and a copy."""
    side, words = (256, 2**16) if bench.dry else (8192, 2**30)
    a, b = bench.randn(side, side), bench.randn(side, side)
    source = torch.empty(words, dtype=torch.uint8, device=bench.device)
    target = torch.empty_like(source)
    product, copied = bench.ms(lambda: a @ b), bench.ms(lambda: target.copy_(source))
    return {"matmul_tflops": round(2 * side**3 / product / 1e9, 1), "copy_gb_s": round(2 * words / copied / 1e6, 1)}


def unet(bench):
    """One UNet call by number of rows: diffusers', ours, ours captured."""
    found = {}
    for rows in bench.batches:
        inputs = unet_inputs(bench, rows)
        width = bench.model.text_encoder.config.hidden_size
        text, steps = bench.randn(rows, 77, width), torch.full((rows,), 500, device=bench.device)
        theirs = functools.partial(bench.model.unet, inputs[0], steps, encoder_hidden_states=text, return_dict=False)
        replay, destroy = captured(bench, bench.ours.network, inputs)
        found[f"rows {rows}"] = {
            "diffusers_ms": bench.ms(theirs),
            "ours_ms": bench.ms(lambda inputs=inputs: bench.ours.network(*inputs)),
            "captured_ms": bench.ms(replay),
        }
        destroy()
    return found


def stages(bench):
    """Autoencoders, text and safety checker for one row and for many; the tiny autoencoder beside the full one."""
    small = random_part(
        modules.make_vae, {"_class_name": "AutoencoderTiny", "latent_channels": 4}, bench.device, bench.dtype
    )
    autoencoders = {"vae": (bench.model.vae, bench.ours.vae), "taesd": (small, vae.of(small))}
    found = {}
    for rows in (bench.batches[0], bench.batches[-2]):
        images = bench.randn(rows, 3, bench.side, bench.side).clamp(-1, 1)
        latents = bench.randn(rows, 4, bench.side // 8, bench.side // 8)
        for name, (theirs, ours) in autoencoders.items():
            for way, run, given in (("encode", ours.encode, images), ("decode", ours.decode, latents)):
                replay, destroy = captured(bench, run, (given,))
                found[f"{name} {way}, {rows}"] = {
                    "diffusers_ms": bench.ms(functools.partial(getattr(theirs, way), given)),
                    "ours_ms": bench.ms(functools.partial(run, given)),
                    "captured_ms": bench.ms(replay),
                }
                destroy()
        pixels = torch.zeros(rows, bench.side, bench.side, 3, dtype=torch.uint8, device=bench.device)
        found[f"safety, {rows}"] = {"ours_ms": bench.ms(functools.partial(bench.ours.checker, pixels))}
    ids = torch.zeros(1, 77, dtype=torch.long, device=bench.device)
    found["text"] = {"ours_ms": bench.ms(functools.partial(bench.model.text_encoder, ids))}
    return found


def end_to_end(bench, model=None, *, theirs=True):
    """JPEG to JPEG through the engine loop: alone, saturated, mixed, at 70 % load; diffusers' call beside it."""
    found, data = {}, rig.picture(bench.side, bench.side)
    config = rig.config(max_batch=8)
    device_model = DeviceModel(model) if model else bench.ours
    begun = time.perf_counter()
    with only_this_size(bench.side):
        device_model.capture(Graphs(Pretend() if bench.dry else Cuda(), 2**40), 8, lambda fraction, what: None)
    found["capture_s"] = round(time.perf_counter() - begun, 1)
    engine = rig.Ours(config, device_model)
    try:
        requests = [(rig.request(seed), data) for seed in range(bench.requests)]
        engine.many(requests[:8], 4)
        found["alone"] = percentiles(engine.many(requests, 1)[1])
        saturated = found["saturated"] = rate(engine, requests + requests, 16)
        mixed = [(rig.request(seed, num_inference_steps=random.Random(seed).choice((1, 2, 4, 8))), data) for seed, _ in
                 enumerate(requests)]  # fmt: skip
        found["mixed steps, saturated"] = rate(engine, mixed, 16)
        found["70 % load"] = percentiles(engine.timed(requests, 0.7 * saturated["images_s"]))
        found["stages_ms"] = {
            name: round(seconds * 1e3, 2) for name, seconds in engine.one(*requests[0]).timings.items()
        }
    finally:
        engine.close()
    if theirs:
        pipeline = rig.Diffusers(config, model or bench.model)
        found["diffusers_ms"] = bench.ms(functools.partial(pipeline.one, *requests[0]), least=5)
        found["times_faster"] = round(found["diffusers_ms"] / found["alone"]["p50_ms"], 2)
    device_model.graphs.destroy()
    return found


def tiny_vae(bench):
    """The same with the tiny autoencoder."""
    model = random_model(TINY if bench.dry else FULL, bench.device, bench.dtype, tiny=True)
    return end_to_end(bench, model, theirs=False)


def pictures(bench):
    """Our picture, eager and captured, against diffusers' in the same dtype and in float32."""
    found, data, request = {}, rig.picture(bench.side, bench.side), rig.request(7)
    theirs = rig.Diffusers(rig.config(), bench.model).pixels(request, data)
    engine_pixels = functools.partial(rig.generate, bench.ours, request, rig.images.decode(data, rig.config()))
    ours = engine_pixels()
    found["psnr_to_diffusers_db"], found["levels"] = round(rig.psnr(ours, theirs), 1), rig.levels_apart(ours, theirs)
    with only_this_size(bench.side):
        model = DeviceModel(bench.model)
        model.capture(Graphs(Pretend() if bench.dry else Cuda(), 2**40), 1, lambda fraction, what: None)
    replayed = rig.generate(model, request, rig.images.decode(data, rig.config()))
    model.graphs.destroy()
    found["captured_levels"] = rig.levels_apart(replayed, ours)
    with fp16_accumulation():
        found["fp16_accumulation_psnr_db"] = round(rig.psnr(engine_pixels(), ours), 1)
        inputs = unet_inputs(bench, 1)
        found["fp16_accumulation_unet_ms"] = bench.ms(lambda: bench.ours.network(*inputs))
    return found


def attention(bench):
    """Self-attention at the finest level (heads of 40) by kernel, plain and padded to 64."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    tokens = (bench.side // 8) ** 2
    query, key, value = (bench.randn(2, 8, tokens, 40) for _ in range(3))
    wide = [F.pad(each, (0, 24)) for each in (query, key, value)]
    found = {"default_ms": bench.ms(lambda: F.scaled_dot_product_attention(query, key, value))}
    for name in ("FLASH_ATTENTION", "EFFICIENT_ATTENTION", "CUDNN_ATTENTION"):
        with contextlib.suppress(RuntimeError), sdpa_kernel(getattr(SDPBackend, name)):
            found[f"{name.lower()}_ms"] = bench.ms(lambda: F.scaled_dot_product_attention(query, key, value))
            found[f"{name.lower()}, padded_ms"] = bench.ms(
                lambda: F.scaled_dot_product_attention(*wide, scale=40**-0.5)
            )
    return found


def upsampling(bench):
    """Doubling and convolution: as two operations, and as the one transposed convolution that we use."""
    found = {}
    shapes = ((1280, 8), (1280, 16), (640, 32), (512, 64), (512, 128), (256, 256))
    for width, side in ((32, 8),) if bench.dry else shapes:
        conv = nn.Conv2d(width, width, 3, padding=1).to(bench.device, bench.dtype, memory_format=torch.channels_last)
        one, x = kernels.upsampling_conv(conv), bench.randn(1, width, side, side)
        x = x.contiguous(memory_format=torch.channels_last)
        found[f"{width} at {side}"] = {
            "two_ms": bench.ms(lambda conv=conv, x=x: conv(F.interpolate(x, scale_factor=2.0))),
            "one_ms": bench.ms(functools.partial(one, x)),
        }
    return found


def compiled(bench):
    """torch.compile: ours, ours captured after it, and diffusers'; how long compiling takes. One row."""
    inputs = unet_inputs(bench, 1)
    network = bench.ours.network
    if bench.dry:  # a compiler lays weights out itself
        kernels._packs = lambda weight: False
        network = Unet(bench.model.unet)
    begun = time.perf_counter()
    ours = torch.compile(network, dynamic=False, fullgraph=True)
    ours(*inputs)
    rig.synchronize()
    found = {"compile_s": round(time.perf_counter() - begun, 1), "ours_ms": bench.ms(lambda: ours(*inputs))}
    replay, destroy = captured(bench, ours, inputs)
    found["ours, captured_ms"] = bench.ms(replay)
    destroy()
    if bench.left > 2 * found["compile_s"]:
        found |= compiled_diffusers(bench, inputs[0])
    return found


def compiled_diffusers(bench, sample):
    theirs = copy.deepcopy(bench.model.unet).to(memory_format=torch.channels_last)
    text = bench.randn(1, 77, bench.model.text_encoder.config.hidden_size)
    run = torch.compile(theirs, mode="default" if bench.dry else "reduce-overhead", dynamic=False)
    steps = torch.full((1,), 500, device=bench.device)
    return {"diffusers_ms": bench.ms(lambda: run(sample, steps, encoder_hidden_states=text, return_dict=False))}


def memory(bench):
    """What the device held at most so far."""
    if bench.device.type != "cuda":
        return {}
    return {
        "peak_allocated_gb": round(torch.cuda.max_memory_allocated() / 1e9, 2),
        "peak_reserved_gb": round(torch.cuda.max_memory_reserved() / 1e9, 2),
    }


SECTIONS = (floors, unet, stages, end_to_end, pictures, tiny_vae, memory, attention, upsampling, compiled)


# --- helpers ---------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def only_this_size(side):
    """Captures of one size of picture: the others cost time and tell nothing new."""
    sizes, on_torch.CAPTURED_SIZES = on_torch.CAPTURED_SIZES, ((side, side),)
    try:
        yield
    finally:
        on_torch.CAPTURED_SIZES = sizes


@contextlib.contextmanager
def fp16_accumulation():
    """Sums of float16 products in float16: faster on some chips, and less exact."""
    matmul = torch.backends.cuda.matmul
    matmul.allow_fp16_accumulation = True
    try:
        yield
    finally:
        matmul.allow_fp16_accumulation = False


def percentiles(latencies):
    return {f"p{q}_ms": round(float(np.percentile(latencies, q)) * 1e3, 2) for q in (50, 95, 99)}


def rate(engine, requests, clients):
    seconds, latencies = engine.many(requests, clients)
    return {"images_s": round(len(requests) / seconds, 2), **percentiles(latencies)}


def make_bench(options):
    if options.dry:
        torch.set_num_threads(1)  # models as small as these spend their time waking threads up
    device = torch.device("cpu" if options.dry else "cuda")
    dtype = torch.float32 if options.dry else torch.float16
    model = random_model(TINY if options.dry else FULL, device, dtype)
    return Bench(
        device=device,
        dtype=dtype,
        dry=options.dry,
        side=64 if options.dry else 512,
        batches=(1, 2, 4) if options.dry else (1, 2, 4, 8, 16),
        requests=6 if options.dry else 200,
        quick=0.02 if options.dry else 1.0,
        model=model,
        ours=DeviceModel(model),
        deadline=time.monotonic() + 60 * options.minutes,
    )


def show(name, found, indent=0):
    """A section as lines for people."""
    flat = {key: value for key, value in found.items() if not isinstance(value, dict)}
    figures = "  ".join(f"{key} {value}" for key, value in flat.items())
    print(f"{' ' * indent}{name:<{24 - indent}} {figures}", flush=True)
    for key, value in found.items():
        if isinstance(value, dict):
            show(key, value, indent + 2)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("gpu.json"))
    parser.add_argument("--minutes", type=float, default=7.5)
    parser.add_argument("--dry", action="store_true", help="on a CPU, at tiny sizes")
    parser.add_argument("--only", nargs="*", default=[], help="names of sections")
    options = parser.parse_args()
    report = {"dry": options.dry, **rig.machine()}
    print(report, flush=True)
    with torch.inference_mode():
        bench = make_bench(options)
        for section in SECTIONS:
            if options.only and section.__name__ not in options.only:
                continue
            report[section.__name__] = attempt(section, bench)
            show(section.__name__, report[section.__name__])
            options.out.write_text(json.dumps(report, indent=2) + "\n")
    print(json.dumps(report))


def attempt(section, bench):
    if bench.left < 0:
        return {"skipped": "out of time"}
    begun = time.monotonic()
    try:
        found = section(bench)
    except Exception as error:  # noqa: BLE001 – the other sections are worth having all the same
        traceback.print_exc()
        found = {"failed": f"{type(error).__name__}: {error}"[:500]}
    return {"took_s": round(time.monotonic() - begun, 1), **found}


if __name__ == "__main__":
    main()
