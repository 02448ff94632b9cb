"""Full-size Stable Diffusion 1.5 with random weights, in the published layouts, for machines that have no real ones.

    python -m benchmarks.harness.fake_weights FOLDER [--fp16] [--no-full] [--single-file]

writes FOLDER/sd15 (diffusers layout: UNet, VAE, CLIP text model, safety checker; 5.5 GB in float32, 2.7 GB more with
--fp16 variants), FOLDER/lcm-lora/pytorch_lora_weights.safetensors (rank 64, kohya keys, 135 MB) and, with
--single-file, FOLDER/single/v1-5-fake.safetensors (the original layout, 4.3 GB) with its tokenizer beside it.
Same names, shapes and sizes as the real files, so what is measured with them (load time, memory, speed) holds; the
pictures mean nothing, and the tokenizer's vocabulary is the demo model's. Prints a table; the last line is JSON.
"""

import argparse
import json
import shutil
import time
from pathlib import Path

import torch
from safetensors.torch import save_file

from tests.support import checkpoint_layouts
from tests.support.published_configs import FULL

LORA_RANK = 64
LORA_ALPHA = 8.0


def write(folder, *, variants=("",), single_file=False):
    """Write everything below `folder`; return the paths by what they are."""
    weights = checkpoint_layouts.write_folder(folder / "sd15", FULL, variants=variants)
    weights.pop("safety_checker")
    paths = {"folder": folder / "sd15", "lora": folder / "lcm-lora" / "pytorch_lora_weights.safetensors"}
    paths["lora"].parent.mkdir(exist_ok=True)
    factors = checkpoint_layouts.lora_factors(weights["unet"], rank=LORA_RANK, scale=0.01)
    save_file(checkpoint_layouts.kohya(factors, alpha=LORA_ALPHA), paths["lora"])
    if single_file:
        paths["single file"] = folder / "single" / "v1-5-fake.safetensors"
        paths["single file"].parent.mkdir(exist_ok=True)
        checkpoint_layouts.write_single_file(paths["single file"], weights)
        shutil.copytree(folder / "sd15" / "tokenizer", paths["single file"].parent / "tokenizer", dirs_exist_ok=True)
    return paths


def size(path):
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    return sum(file.stat().st_size for file in files)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--fp16", action="store_true", help="fp16 variants too")
    parser.add_argument("--no-full", action="store_true", help="without the float32 files: only the fp16 variants")
    parser.add_argument("--single-file", action="store_true", help="also one file in the original layout")
    options = parser.parse_args()
    variants = [
        name for name, wanted in (("", not options.no_full), ("fp16", options.fp16 or options.no_full)) if wanted
    ]
    start = time.perf_counter()
    with torch.inference_mode():
        paths = write(options.folder, variants=variants, single_file=options.single_file)
    for name, path in paths.items():
        print(f"{name:<12} {size(path) / 1e9:6.2f} GB  {path}")
    found = {name: {"path": str(path), "bytes": size(path)} for name, path in paths.items()}
    print(json.dumps({"seconds": round(time.perf_counter() - start, 1), **found}))


if __name__ == "__main__":
    main()
