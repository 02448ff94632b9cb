"""Measurements of whole requests: latency, throughput, pictures, waits for the device, cost of a start."""

import contextlib
import functools
import random
import time

import torch

from benchmarks.gpu.bench import apart, loaded, percentiles, picture_of, rate, seconds, serving, several
from benchmarks.gpu.random_weights import in_float32, with_tiny_vae
from benchmarks.harness import device
from pipelines.device import devices, loader, streams
from pipelines.device.captures import POLICY
from pipelines.device.torch_backend import TorchBackend


def end_to_end(bench, found, model=None, *, theirs=True):
    """Measure JPEG to JPEG through the engine loop (alone, saturated, mixed, at 70 % load), and diffusers' call."""
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
    """Measure `end_to_end` with the tiny autoencoder."""
    end_to_end(bench, found, with_tiny_vae(bench), theirs=False)


def one_stream(bench, found):
    """Measure the saturated engine with one stream, to show the gain of overlapping stages."""
    stream = streams.streams_for(bench.device)[0]
    backend = loaded(bench, found, its_streams=(stream, stream))
    with serving(bench, backend) as engine:
        found["saturated"] = rate(engine, several(bench, 2 * bench.requests), 24)


def pictures(bench, found):
    """Compare our picture, eager and captured, with diffusers' in the same dtype and in float32."""
    data, request = device.picture(bench.side, bench.side), device.request(7)
    ours, theirs = picture_of(bench, bench.ours), device.Diffusers(device.config(), bench.model).pixels(request, data)
    found["to_diffusers"] = apart(ours, theirs)
    found["captured_to_eager"] = apart(picture_of(bench, bench.captured_model(rows=(1,))), ours)
    exact = in_float32(bench.model)
    with device.switched(allow_tf32=False):
        reference = device.Diffusers(device.config(), exact).pixels(request, data)
    del exact
    found["to_float32"], found["diffusers_to_float32"] = apart(ours, reference), apart(theirs, reference)
    with device.switched(allow_fp16_accumulation=True):
        found["fp16_accumulation"] = apart(picture_of(bench, bench.ours), ours)
        inputs = bench.unet_inputs(1)
        found["fp16_accumulation"]["unet_ms"] = bench.ms(functools.partial(bench.ours.functions.unet, *inputs))


def waits(bench, found):
    """Find stages that wait for the device though they must not; torch raises at each such wait."""
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


def warm_up(bench, found):
    """Measure a start: the capture of all usual sizes and batches, its memory, and the memory left for batches."""
    sizes = ((bench.side, bench.side),) if bench.dry else POLICY.sizes
    model = TorchBackend(bench.model)
    bench.note_peaks()
    found["measure_s"] = seconds(functools.partial(loader.profile_memory, model, bench.side))
    begun = time.perf_counter()
    model = bench.capture_shapes(model, sizes)
    found["capture_s"] = round(time.perf_counter() - begun, 1)
    found["graphs"] = sum(len(graphs) for graphs in model.graphs._held.values())
    found["graphs_gb"] = round(model.graphs.nbytes / 1e9, 2)
    model.share_memory(devices.free_memory(bench.device) * POLICY.stages_share)
    found["memory_budget"] = str(model.memory_budget)
    found["rows_of_1024x1024"] = {stage: model.room(stage, (1024, 1024), 64) for stage in ("encode", "steps", "decode")}
    model.graphs.evict()


@contextlib.contextmanager
def watching(bench):
    if bench.device.type == "cuda":
        torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        if bench.device.type == "cuda":
            torch.cuda.set_sync_debug_mode("default")
