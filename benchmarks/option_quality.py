"""Picture quality of faster options: PSNR and SSIM against the default, same seeds, same input.

    python -m benchmarks.option_quality [--model sd15] [--option "vae=tiny"] [--option "dtype=bfloat16"] [--seeds 8]

Each option is one or more fields of an engine's configuration: `vae=tiny,dtype=bfloat16`. `fp16_accumulation` may
be among them (CUDA). Strengths 0.3, 0.5 and 0.8, several seeds. Figures mean something only for trained weights. Needs
nothing of the web side. Prints a table; the last line is JSON.
"""

import argparse
import json
import statistics

import numpy as np
import torch

from benchmarks.harness import device
from pipelines.device import loader
from pipelines.images import codec

STRENGTHS = (0.3, 0.5, 0.8)


def ssim(one, other, window=7):
    """Return structural similarity (Wang et al. 2004) of uint8 [H, W, 3]: mean over channels, flat 7×7 windows."""
    a, b = (torch.from_numpy(each.astype(np.float64)).permute(2, 0, 1)[None] for each in (one, other))

    def mean(values):
        return torch.nn.functional.avg_pool2d(values, window, stride=1)

    mean_a, mean_b = mean(a), mean(b)
    spread_a, spread_b = mean(a * a) - mean_a**2, mean(b * b) - mean_b**2
    together = mean(a * b) - mean_a * mean_b
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    score = (2 * mean_a * mean_b + c1) * (2 * together + c2)
    return float((score / ((mean_a**2 + mean_b**2 + c1) * (spread_a + spread_b + c2))).mean())


def made(options, fields):
    """Return the pictures of all strengths and seeds with these options."""
    names = dict(field.split("=", 1) for field in fields if "=" in field)
    config = device.config(options.model, **({"device": options.device} | names))
    model = loader.load(config, lambda fraction, what: None).model
    pixels = codec.decode(device.picture(), config)
    with device.switched(**dict.fromkeys({"fp16_accumulation"} & {*fields}, True)):
        return [
            device.generate(model, device.request(seed, strength=strength), pixels)[0]
            for strength in STRENGTHS
            for seed in range(options.seeds)
        ]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="sd15")
    parser.add_argument("--option", action="append", help="default: vae=tiny")
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--device", default="auto")
    options = parser.parse_args()
    default, found = made(options, []), {}
    for option in options.option or ["vae=tiny"]:
        pairs = list(zip(made(options, option.split(",")), default, strict=True))
        found[option] = {
            "psnr_db": round(statistics.mean(device.psnr(a, b) for a, b in pairs), 2),
            "worst_psnr_db": round(min(device.psnr(a, b) for a, b in pairs), 2),
            "ssim": round(statistics.mean(ssim(a, b) for a, b in pairs), 4),
            "levels": max(device.levels_apart(a, b) for a, b in pairs),
        }
        print(f"{option:<30} " + "  ".join(f"{name} {value}" for name, value in found[option].items()))
    print(json.dumps({"model": options.model, **device.machine(), "pictures": len(default), "options": found}))


if __name__ == "__main__":
    main()
