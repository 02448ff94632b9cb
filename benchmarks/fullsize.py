"""Full-size Stable Diffusion 1.5 through the HTTP API, beside plain diffusers on the same weights and the same device.

    python -m benchmarks.fullsize [--weights FOLDER] [--requests 1] [--device auto] [--dtype auto]

FOLDER is what `benchmarks.harness.fake_weights` writes; without one, random weights are made in a temporary folder (6
GB). Ours merges the rank-64 LCM-LoRA at load; diffusers runs the base alone, as it can't load a LoRA without PEFT (a
merged LoRA costs nothing per step). Both make 4 UNet calls at 512×512 without guidance, encode and decode with the
full VAE, and run the safety checker. Load time is from the start of the process until it could take a request. Memory
is the device process's: the peak, and what it holds for itself (anonymous; mapped files can be dropped at any time); in
the JSON also when it is loaded, and when it has had nothing to do for some seconds.
One after the other, never both in memory; on a machine that is busy with other things, compare processor seconds.
Prints a table; the last line is JSON.
"""

import argparse
import base64
import contextlib
import http.client
import io
import json
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.parse
from pathlib import Path

from benchmarks.harness.process import memory, processor_seconds
from server.cli.launcher import running

ROOT = Path(__file__).parents[1]
PICTURE = ROOT / "server" / "static" / "beach.jpg"
PROMPT = "masterpiece, colorful, photo of a beach in hawaii, sun"
STRENGTH = 0.8
CALLS = 4
REST_S = 4.0  # an engine without work gives memory back


def measure_ours(folder, options):
    with tempfile.TemporaryDirectory() as data_dir:
        flags = ["--model", folder / "sd15", "--lora", folder / "lcm-lora" / "pytorch_lora_weights.safetensors"]
        flags += ["--device", options.device, "--dtype", options.dtype]
        log = Path(data_dir) / "log"
        begun = time.perf_counter()
        with log.open("wb") as sink, running(Path(data_dir), *map(str, flags), log=sink, ready=False) as server:
            server.wait_ready(timeout=1800)
            load = time.perf_counter() - begun
            [engine] = server.get("/health")["engines"]
            loaded = {f"loaded_{name}": size for name, size in memory(engine["pid"]).items()}
            loaded["load_processor_s"] = processor_seconds(engine["pid"])
            picture = base64.b64encode(PICTURE.read_bytes()).decode()
            body = {"prompt": PROMPT, "image_url": f"data:image/jpeg;base64,{picture}", "seed": 42, "sync_mode": True}
            body |= {"strength": STRENGTH, "num_inference_steps": CALLS, "enable_safety_checks": True}
            answers = []
            spent = measure(
                lambda: answers.append(post(server.url, "/run/fal-ai/lcm-sd15-i2i", body)), options, engine["pid"]
            )
            [image] = answers[-1]["images"]
            assert (image["width"], image["height"]) == (512, 512), image
            found = {"load_s": load, **loaded, **spent, "stages_s": answers[-1]["timings"], **memory(engine["pid"])}
            time.sleep(REST_S)
            return {**found, **{f"rested_{name}": size for name, size in memory(engine["pid"]).items()}}


def measure(request, options, pid):
    """Return wall and processor seconds of each request in process `pid`; processor 0 where there is no /proc."""
    walls, processor = [], []
    for _ in range(options.requests):
        begun, spent = time.perf_counter(), processor_seconds(pid)
        request()
        walls.append(time.perf_counter() - begun)
        processor.append(processor_seconds(pid) - spent)
    return {"request_s": walls, "processor_s": processor}


def post(url, path, body):
    connection = http.client.HTTPConnection(urllib.parse.urlsplit(url).netloc, timeout=1800)
    with contextlib.closing(connection):
        connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
        answer = connection.getresponse()
        text = answer.read()
    assert answer.status == 200, text[:500]
    return json.loads(text)


def measure_diffusers(folder, options):
    command = [
        sys.executable,
        "-m",
        "benchmarks.fullsize",
        "--weights",
        str(folder.resolve()),
        "--requests",
        str(options.requests),
        "--child",
    ]
    command += ["--device", options.device, "--dtype", options.dtype]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def run_diffusers(folder, options):
    """Run requests as a script with diffusers would: JPEG in, JPEG out."""
    begun = time.perf_counter()
    import torch
    from diffusers import LCMScheduler, StableDiffusionImg2ImgPipeline
    from PIL import Image

    from pipelines.device.devices import pick_device
    from pipelines.device.dtypes import pick_dtype

    device = pick_device(options.device)
    dtype = pick_dtype(options.dtype, device)
    pipeline = StableDiffusionImg2ImgPipeline.from_pretrained(folder / "sd15", dtype=dtype, local_files_only=True)
    pipeline.scheduler = LCMScheduler.from_config(pipeline.scheduler.config)
    pipeline.set_progress_bar_config(disable=True)
    pipeline = pipeline.to(device)
    load = time.perf_counter() - begun
    calls = []
    pipeline.unet.register_forward_hook(lambda *_: calls.append(1))

    def request():
        image = Image.open(io.BytesIO(PICTURE.read_bytes())).convert("RGB")
        # Its img2img runs int(steps × strength) of the requested steps.
        made = pipeline(
            PROMPT,
            image,
            strength=STRENGTH,
            num_inference_steps=round(CALLS / STRENGTH),
            guidance_scale=1.0,
            generator=torch.Generator().manual_seed(42),
        )
        made.images[0].save(io.BytesIO(), "JPEG", quality=95, subsampling=0)

    spent = measure(request, options, "self")
    assert len(calls) == CALLS * options.requests, calls
    print(json.dumps({"load_s": load, **spent, **memory("self")}))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--weights", type=Path, help="what benchmarks.harness.fake_weights wrote")
    parser.add_argument("--requests", type=int, default=1)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        run_diffusers(options.weights, options)
        return
    with contextlib.ExitStack() as stack:
        folder = options.weights
        if folder is None:
            from benchmarks.harness import fake_weights

            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            fake_weights.write(folder)
        rows = {}
        for name, measure in (("fourstep", measure_ours), ("diffusers", measure_diffusers)):
            row = rows[name] = measure(folder, options)
            wall, processor = (statistics.median(row[key]) for key in ("request_s", "processor_s"))
            figures = f"load {row['load_s']:6.1f} s   request {wall:7.2f} s (processor {processor:.2f} s)"
            print(f"{name:<10} {figures}   peak {row.get('peak_gb', 0):5.2f} GB   own {row.get('own_gb', 0):5.2f} GB")
            stages = "   ".join(f"{stage} {seconds:.2f}" for stage, seconds in row.get("stages_s", {}).items())
            print(f"{'':<10} {stages}", flush=True)
    ratios = {
        f"{what}_ratio": round(statistics.median(rows["fourstep"][key]) / statistics.median(rows["diffusers"][key]), 3)
        for what, key in (("request", "request_s"), ("processor", "processor_s"))
        if all(rows["diffusers"][key])
    }
    print(json.dumps({**rows, **ratios, "requests": options.requests}))


if __name__ == "__main__":
    main()
