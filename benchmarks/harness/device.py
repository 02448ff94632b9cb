"""Tools of the device benchmarks: our engine, and diffusers on the same weights.

Needs `pipelines`, torch and diffusers; nothing of the web side.
"""

import contextlib
import multiprocessing
import statistics
import sys
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from diffusers import LCMScheduler, StableDiffusionImg2ImgPipeline
from diffusers.utils import logging as diffusers_logging
from PIL import Image
from transformers import CLIPImageProcessor

from benchmarks.harness.request import config, generate, picture, request  # noqa: F401 (`device.picture` and so on)
from pipelines.device import dtypes, loader
from pipelines.engine.backend import ImageCodec, LoadedBackend
from pipelines.images import codec as images
from pipelines.model.noise_schedule import lcm_timesteps
from pipelines.tools.bench import LocalEngine
from pipelines.weights import checkpoint

diffusers_logging.set_verbosity_error()  # it warns at every call that timesteps were given


def load(engine_config):
    """Load a model for one side; the two sides must not share modules."""
    return checkpoint.load(engine_config, *dtypes.pick(engine_config), lambda fraction, what: None)


class Took(NamedTuple):
    """Wall seconds, and processor seconds of all cores, which depend less on other programs."""

    wall: float
    cpu: float


class Side:
    """Object made by `make(*arguments)` in its own process, so that two sides share neither threads nor allocator.

    `call(name, *arguments)` runs a method of it there and returns its duration and result.
    """

    def __init__(self, make, *arguments, threads=0):
        context = multiprocessing.get_context("spawn")
        self._link, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, make, arguments, threads), daemon=True)
        self._process.start()
        theirs.close()
        self._link.recv()

    def call(self, name, *arguments):
        self._link.send((name, arguments))
        return self._link.recv()

    def close(self):
        self._link.close()
        self._process.join()


def _serve(link, make, arguments, threads):
    if threads:
        torch.set_num_threads(threads)
    side = make(*arguments)
    link.send(None)
    with contextlib.suppress(EOFError):
        while True:
            name, given = link.recv()
            synchronize()
            wall, cpu = time.perf_counter(), time.process_time()
            result = getattr(side, name)(*given)
            synchronize()
            link.send((Took(time.perf_counter() - wall, time.process_time() - cpu), result))
    side.close()


class Ours(LocalEngine):
    """Our engine, loaded as the engine process loads it: JPEG in, JPEG out."""

    def __init__(self, engine_config, model=None):
        def load():
            if model is None:
                return loader.load(engine_config, lambda fraction, what: None)
            codec = ImageCodec(engine_config)
            return LoadedBackend(model=model, codec=codec, name="", device="", dtype="", overlaps=model.overlaps)

        self._config = engine_config
        super().__init__(engine_config, load)
        self.model = self.loaded.model

    def timed(self, requests, per_second, seed=0):
        """Send all of (params, data) at random times, `per_second` on average; return each latency in seconds."""
        gaps = np.random.default_rng(seed).exponential(1 / per_second, len(requests))
        started, latencies, due = {}, [], time.perf_counter()
        for gap, given in zip(gaps, requests, strict=True):
            due += gap
            time.sleep(max(0.0, due - time.perf_counter()))
            started[self.submit(*given)] = due
        for _ in requests:
            moment, message = self.answer()
            latencies.append(moment - started[message.id])
        return latencies

    def pixels(self, params, data):
        """Return the pictures of a request without encoding: uint8 [images, H, W, 3]."""
        return generate(self.model, params, images.decode(data, self._config))


class Diffusers:
    """`StableDiffusionImg2ImgPipeline` with `LCMScheduler`, as its manual has it: a PIL picture in, one out."""

    def __init__(self, engine_config, model=None):
        model = model or load(engine_config)
        checker = model.safety_checker
        processor = None
        if checker is not None:
            side = checker.config.vision_config.image_size
            processor = CLIPImageProcessor(size=side, crop_size=side)
        self.pipeline = StableDiffusionImg2ImgPipeline(
            vae=model.vae,
            text_encoder=model.text_encoder,
            tokenizer=model.tokenizer,
            unet=model.unet,
            scheduler=LCMScheduler.from_config(model.scheduler_config),
            safety_checker=checker,
            feature_extractor=processor,
            requires_safety_checker=checker is not None,
        )
        self.pipeline.set_progress_bar_config(disable=True)

    def pixels(self, params, data):
        """Return uint8 [images, H, W, 3], made with the same number of UNet calls as ours."""
        count, picture_in = params.num_images, Image.fromarray(images.decode(data, config()))
        timesteps = list(lcm_timesteps(params.num_inference_steps, params.strength))
        generators = [torch.Generator().manual_seed(params.seed + number) for number in range(count)]
        made = self.pipeline(
            prompt=params.prompt,
            image=picture_in,
            strength=1.0,  # the timesteps have it in them already
            timesteps=timesteps,
            guidance_scale=params.guidance_scale,
            negative_prompt=params.negative_prompt if params.guidance_scale > 1 else None,
            num_images_per_prompt=count,
            generator=generators,
        ).images
        return np.stack([np.asarray(image) for image in made])

    def one(self, params, data):
        """JPEG in, JPEG out."""
        return images.encode(self.pixels(params, data)[0], 95, "4:4:4")

    def close(self):
        """Nothing to do."""


def race(rounds, **contenders):
    """Return the duration of each contender in each round; they take turns, after one warm-up each.

    A contender is a side and the method to call there.
    """
    results = {name: [] for name in contenders}
    for number in range(rounds + 1):
        for name, (side, *call) in contenders.items():
            took, _ = side.call(*call)
            print(f"round {number}  {name:<12} {took.wall:8.3f} s  {took.cpu:8.3f} s of CPU", file=sys.stderr)
            if number:
                results[name].append(took)
    return results


def synchronize():
    if torch.cuda.is_available():
        torch.cuda.synchronize()


@contextlib.contextmanager
def switched(**switches):
    """Number formats of products on CUDA, for a while: fp16 accumulation, TF32."""
    kept = {name: getattr(torch.backends.cuda.matmul, name) for name in switches}
    for name, value in switches.items():
        setattr(torch.backends.cuda.matmul, name, value)
    try:
        yield
    finally:
        for name, value in kept.items():
            setattr(torch.backends.cuda.matmul, name, value)


def median_ratio(seconds, one, other):
    """Return the median over the rounds of the ratio of two contenders' times."""
    return round(statistics.median(a / b for a, b in zip(seconds[one], seconds[other], strict=True)), 3)


def machine():
    """Describe the machine."""
    cuda = torch.cuda.is_available()
    model = next((line.split(":")[1].strip() for line in cpu_lines() if line.startswith("model name")), "CPU")
    return {
        "torch": torch.__version__,
        "device": torch.cuda.get_device_name() if cuda else f"{model}, {torch.get_num_threads()} threads",
    }


def cpu_lines():
    with contextlib.suppress(OSError):
        return Path("/proc/cpuinfo").read_text().splitlines()
    return []


def levels_apart(one, other):
    """Return the largest difference in any channel of any pixel."""
    return int(np.abs(one.astype(int) - other.astype(int)).max())


def psnr(one, other):
    """Return the peak signal-to-noise ratio in dB; infinite for equal pictures."""
    error = np.square(one.astype(np.float64) - other).mean()
    return float("inf") if error == 0 else float(10 * np.log10(255**2 / error))
