"""Comparison with plain diffusers in time and pictures: same weights, same number of UNet calls, in turns.

    python -m benchmarks.parity [--model demo | FOLDER] [--rounds 5] [--side 512] [--clients 8] [--threads 0]

Both take JPEG bytes to JPEG bytes with the safety checker, each in a process of its own; ours goes through the engine
loop. The ratio is the median of the rounds' ratios, so that a busy machine slows both. FOLDER may be the `sd15` that
`benchmarks.harness.fake_weights` writes. Needs nothing of the web side. Prints a table; the last line is JSON.
"""

import argparse
import json
import statistics

import numpy as np

from benchmarks.harness import device


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="demo")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--side", type=int, default=512)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--clients", type=int, default=8, help="0: one client only")
    parser.add_argument("--max-batch", type=int, default=8)
    parser.add_argument("--threads", type=int, default=0, help="0: as torch has it")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="auto")
    options = parser.parse_args()
    print(json.dumps(measure(options)))


def measure(options):
    config = device.config(
        options.model, lora="none", device=options.device, dtype=options.dtype, max_batch=options.max_batch
    )
    theirs = device.Side(device.Diffusers, config, threads=options.threads)
    ours = device.Side(device.Ours, config, threads=options.threads)
    params, data = device.request(num_inference_steps=options.steps), device.picture(options.side, options.side)
    contenders = {"diffusers": (theirs, "one", params, data), "ours": (ours, "one", params, data)}
    if options.clients:
        crowd = [(device.request(seed, num_inference_steps=options.steps), data) for seed in range(options.clients)]
        contenders["ours, crowd"] = (ours, "many", crowd, options.clients)
    results = device.race(options.rounds, **contenders)
    walls, cpus = (
        {name: [getattr(one, kind) for one in took] for name, took in results.items()} for kind in device.Took._fields
    )
    report = {**device.machine(), "model": options.model, "side": options.side, "steps": options.steps}
    report |= {f"{name}_s": round(statistics.median(seconds), 4) for name, seconds in walls.items()}
    report["latency_ratio"] = device.median_ratio(walls, "ours", "diffusers")
    report["cpu_ratio"] = device.median_ratio(cpus, "ours", "diffusers")
    if options.clients:
        each = {**walls, "ours, each of a crowd": [wall / options.clients for wall in walls["ours, crowd"]]}
        report["crowd_over_diffusers"] = device.median_ratio(each, "diffusers", "ours, each of a crowd")
        report["crowd_over_one_client"] = device.median_ratio(each, "ours", "ours, each of a crowd")
    (_, expected), (_, actual) = theirs.call("pixels", params, data), ours.call("pixels", params, data)
    report |= {
        "levels_apart": device.levels_apart(actual, expected),
        "psnr_db": round(device.psnr(actual, expected), 1),
        "picture_spread": round(float(np.std(expected)), 1),
    }
    ours.close()
    theirs.close()
    for name, value in report.items():
        print(f"{name:<24} {value}")
    return report


if __name__ == "__main__":
    main()
