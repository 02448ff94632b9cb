"""Measurements of the product as it ships: latency, throughput, load, guidance, streams, TAESD; diffusers beside."""

import random
import statistics
import time
from unittest import mock

import torch

from benchmarks.gpu.bench import percentiles
from benchmarks.gpu.smoke import stages_ms
from benchmarks.harness import device
from pipelines.device import streams
from pipelines.model.kernels.cuda import fused_relu

CLIENTS = (8, 24, 48)
LOADS = (70, 90)
ROUNDS = 15


def full(bench, found):
    """Measure requests one at a time, saturated, at 70 and 90 % load, with guidance, and of mixed numbers of steps."""
    with bench.engine(found) as engine:
        alone(bench, found, engine)
        best = 0.0
        for clients in CLIENTS:
            row = found[f"{clients} clients"] = bench.rate(engine, bench.several(bench.requests), clients)
            best = max(best, row["images_s"])
        for load in LOADS:
            latencies = engine.timed(bench.several(2 * bench.requests // 3), best * load / 100)
            found[f"{load} % load"] = percentiles(latencies)
            bench.note()
        guided = bench.several(bench.requests // 3, guidance_scale=7.5)
        found["guided, alone"] = percentiles(engine.many(guided, 1)[1])
        steps = random.Random(1).choices((1, 2, 4, 8), k=bench.requests)
        mixed = [bench.several(1, num_inference_steps=count)[0] for count in steps]
        found["mixed steps, 24 clients"] = bench.rate(engine, mixed, 24)


def alone(bench, found, engine):
    """Measure requests one at a time, and the stages of one."""
    engine.many(bench.several(min(16, bench.requests)), 8)  # warm
    found["alone"] = percentiles(engine.many(bench.several(bench.requests), 1)[1])
    found["stages_ms"] = stages_ms(engine, bench)
    bench.note()


def diffusers(bench, found):
    """Take turns with diffusers' own pipeline, as its manual has it."""
    with bench.engine(found) as engine:
        pipeline, request = device.Diffusers(device.config(), bench.model), bench.several(1)[0]
        for run in (engine.one, pipeline.one):
            run(*request)
        rounds = [[took(run, request) for run in (engine.one, pipeline.one)] for _ in range(3 if bench.dry else ROUNDS)]
    ours, theirs = zip(*rounds, strict=True)
    found["ours_ms"], found["diffusers_ms"] = (round(statistics.median(each) * 1e3, 2) for each in (ours, theirs))
    found["times_faster"] = round(statistics.median(b / a for a, b in rounds), 2)


def took(run, request):
    begun = time.perf_counter()
    run(*request)
    return time.perf_counter() - begun


def taesd(bench, found):
    """Measure the product with the tiny autoencoder: alone, and saturated."""
    with bench.engine(found, tiny_vae=True) as engine:
        found["fused_relu"] = "{} of {} sizes".format(*fused_relu.tried())
        alone(bench, found, engine)
        for clients in CLIENTS[:2]:
            found[f"{clients} clients"] = bench.rate(engine, bench.several(bench.requests), clients)


def one_stream(bench, found):
    """Measure the saturated product with one stream: what overlapping of stages gains."""
    saturated(bench, found, lambda one, other: (one, one))


def streams_equal(bench, found):
    """Measure the saturated product with two streams of one priority."""
    saturated(bench, found, lambda one, other: (with_priority(bench, one, 0), with_priority(bench, other, 0)))


def steps_first(bench, found):
    """Measure the saturated product with steps before pictures."""
    saturated(bench, found, lambda one, other: (with_priority(bench, one, -1), with_priority(bench, other, 0)))


def saturated(bench, found, change):
    """Measure 24 clients with other streams: `change` takes and returns those of steps and of pictures."""
    make = streams.streams_for
    with (
        mock.patch.object(streams, "streams_for", lambda where: change(*make(where))),
        bench.engine(found) as engine,
    ):
        engine.many(bench.several(min(16, bench.requests)), 8)  # warm
        found["24 clients"] = bench.rate(engine, bench.several(bench.requests), 24)
        found["alone"] = percentiles(engine.many(bench.several(bench.requests // 3), 1)[1])


def with_priority(bench, stream, priority):
    """Return a stream of this priority; a CPU has none."""
    if not bench.dry:
        stream._stream = torch.cuda.Stream(bench.device, priority=priority)
    return stream


def start(bench, found):
    """Measure a start with every size that the product captures, what it then holds, and a large picture."""
    with bench.engine(found, all_sizes=True) as engine:
        found["photo"] = percentiles(engine.many(bench.several(3, *bench.photo), 1)[1])
