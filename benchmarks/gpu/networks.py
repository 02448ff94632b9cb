"""Measurements of whole networks by rows, as they are and captured, and of the kernels that they consist of."""

import contextlib
import functools
import os
import sys
import tempfile

import torch
from torch.profiler import ProfilerActivity, profile

REPLAYS, TOP = 5, 40


def calls(bench, rows):
    """Return the networks' calls for so many pictures: name → (ours, diffusers' or None)."""
    ours, model = bench.networks, bench.model
    sample, shifts, context = bench.unet_inputs(rows)
    images = bench.randn(rows, 3, bench.side, bench.side).clamp(-1, 1)
    latents = bench.randn(rows, 4, bench.side // 8, bench.side // 8)
    pixels = torch.zeros(rows, bench.side, bench.side, 3, dtype=torch.uint8, device=bench.device)
    theirs = functools.partial(model.unet, sample, bench.timestep(rows), return_dict=False)
    return {
        "unet": (
            functools.partial(ours.unet, sample, shifts, context),
            functools.partial(theirs, encoder_hidden_states=bench.text(rows)),
        ),
        "decode": (functools.partial(ours.vae.decode, latents), functools.partial(model.vae.decode, latents)),
        "encode": (functools.partial(ours.vae.encode, images), functools.partial(model.vae.encode, images)),
        "safety": (functools.partial(ours.flags, pixels), None),
        "tiny decode": (functools.partial(ours.tiny.decode, latents), None),
        "tiny encode": (functools.partial(ours.tiny.encode, images), None),
    }


def rows(bench, found):
    """Measure every network by number of pictures: launched, captured, and diffusers' own. Guidance takes two rows."""
    for count in sorted(bench.batches, key=lambda each: (each not in {1, 8, 2}, each)):  # the most telling first
        for name, (ours, theirs) in calls(bench, count).items():
            row = found[f"{name}, {count}"] = {"ours_ms": bench.ms(ours)}
            row["captured_ms"] = bench.ms(bench.captured(ours))
            if theirs is not None and count in {1, 2}:
                row["diffusers_ms"] = bench.ms(theirs)
    found["guided_it_s"] = {
        name.removesuffix("_ms"): round(1e3 / took, 1) for name, took in found["unet, 2"].items() if took
    }


def kernels(bench, found):
    """List the kernels that take the most time, in five replays of each network for one picture."""
    activity = ProfilerActivity.CPU if bench.dry else ProfilerActivity.CUDA
    attribute = "self_cpu_time_total" if bench.dry else "self_device_time_total"
    for name, (run, _) in calls(bench, 1).items():
        replay = bench.captured(run)
        replay()
        with without_profiler_lines(), profile(activities=[activity]) as profiled:
            for _ in range(REPLAYS):
                replay()
            if not bench.dry:
                torch.cuda.synchronize()
        events = sorted(profiled.key_averages(), key=lambda event: -getattr(event, attribute))
        found[name] = {
            "launches": sum(event.count for event in events) // REPLAYS,
            "us": round(sum(getattr(event, attribute) for event in events) / REPLAYS, 1),
            "top": [
                f"{getattr(event, attribute) / REPLAYS:.1f} us, {event.count // REPLAYS} × {event.key[:120]}"
                for event in events[:TOP]
            ],
        }
        bench.note()


@contextlib.contextmanager
def without_profiler_lines():
    """Keep what the profiler says of itself off stderr; all other lines come there afterwards."""
    sys.stderr.flush()
    kept = os.dup(2)
    with tempfile.TemporaryFile("w+") as said:
        os.dup2(said.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(kept, 2)
            os.close(kept)
            said.seek(0)
            sys.stderr.writelines(line for line in said if "profiler_st" not in line)
