"""The contenders: `prepare(stage, side)` returns the call to be measured, its seeded inputs the same for all.

A call computes one of `unet`, `encode`, `decode` on a batch of one, or `request`: JPEG bytes → JPEG bytes. It returns
what it made, an array or a tensor, so that results can be compared: the latents' mean for `encode`, pixels for
`request`. `told` is what the contender says of itself. Everything heavy is imported when one is loaded.
"""

import functools
import itertools
from pathlib import Path

import numpy as np

from benchmarks.harness.request import PROMPT, config, generate, picture, request
from pipelines.images import codec
from pipelines.model.noise_schedule import lcm_timesteps

CALLS, STRENGTH, TIMESTEP = 4, 0.8, 499
TIMESTEPS = list(lcm_timesteps(CALLS, STRENGTH))
DTYPES = {"f32": "float32", "bf16": "bfloat16", "auto": "auto"}


def load(spec):
    """Return the contender that `spec["contender"]`, such as "ours-f32", names."""
    family, dtype = spec["contender"].split("-")
    if family == "openvino":
        from benchmarks.peers.openvino_contender import OpenVino

        return OpenVino(spec, dtype)
    return {"ours": Ours, "diffusers": Diffusers}[family](spec, DTYPES[dtype])


def inputs(stage, side, text_width=768):
    """Return the seeded inputs of a stage as float32 arrays; of a UNet call, sample and embedding."""
    noise = np.random.default_rng(side)
    latent = (1, 4, side // 8, side // 8)
    shapes = {"unet": [latent, (1, 77, text_width)], "encode": [(1, 3, side, side)], "decode": [latent]}
    made = [noise.standard_normal(shape, dtype=np.float32) for shape in shapes[stage]]
    return [np.tanh(made[0])] if stage == "encode" else made  # pictures are in −1…1


def prompts():
    """Yield prompts, each a new one, so that no contender has it in a cache."""
    return (f"{PROMPT}, number {number}" for number in itertools.count())


class Ours:
    """The engine's backend as the engine process loads it, without the loop around it."""

    def __init__(self, spec, dtype):
        from pipelines.device import loader

        parts = {"lora": "none", "safety_checker": "none", "vae": spec["taesd"] or "full"}
        model = Path(spec["weights"]) / "sd15"
        self._config = config(model, device="cpu", dtype=dtype, threads=spec["threads"], **parts)
        loaded = loader.load(self._config, lambda fraction, what: None)
        self._model, self._prompts = loaded.model, prompts()
        self.told = {"precision": loaded.dtype, "notice": loaded.notice}

    def prepare(self, stage, side):
        """Return the call to be measured."""
        import torch

        if stage == "request":
            return functools.partial(self._request, picture(side, side))
        functions, dtype = self._model.functions, self._model.model.dtype
        width = self._model.model.text_encoder.config.hidden_size
        given = [torch.from_numpy(each).to(dtype) for each in inputs(stage, side, width)]
        if stage == "unet":
            with torch.inference_mode():
                sample, embedding = given
                given = [sample, functions.shifts(TIMESTEP)[None], functions.context(embedding[0])[None]]
        run = {"unet": functions.unet, "encode": functions.vae_encode, "decode": functions.vae_decode}[stage]

        @torch.inference_mode()
        def call():
            made = run(*given)
            return (made[0] if stage == "encode" else made).float()

        return call

    def _request(self, data):
        params = request(prompt=next(self._prompts), num_inference_steps=CALLS, strength=STRENGTH)
        made = generate(self._model, params, codec.decode(data, self._config))[0]
        codec.encode(made, 95, "4:4:4")
        return made


class Diffusers:
    """`StableDiffusionImg2ImgPipeline` with `LCMScheduler`; in bfloat16 with UNet and autoencoder channels-last."""

    def __init__(self, spec, dtype):
        import torch
        from diffusers import AutoencoderTiny, LCMScheduler, StableDiffusionImg2ImgPipeline
        from diffusers.utils import logging

        logging.set_verbosity_error()  # it warns at every call that timesteps were given
        torch.set_num_threads(spec["threads"])
        self._dtype = getattr(torch, dtype)
        local = {"local_files_only": True, "dtype": self._dtype}
        parts = {"safety_checker": None, "requires_safety_checker": False}
        if spec["taesd"]:
            parts["vae"] = AutoencoderTiny.from_pretrained(spec["taesd"], **local)
        model = Path(spec["weights"]) / "sd15"
        self._pipeline = StableDiffusionImg2ImgPipeline.from_pretrained(model, **local, **parts)
        self._pipeline.scheduler = LCMScheduler.from_config(self._pipeline.scheduler.config)
        self._pipeline.set_progress_bar_config(disable=True)
        self._format = torch.contiguous_format
        if self._dtype == torch.bfloat16:
            self._format = torch.channels_last
            for part in (self._pipeline.unet, self._pipeline.vae):
                part.to(memory_format=self._format)
        self._prompts = prompts()
        self.told = {"precision": dtype, "layout": str(self._format).removeprefix("torch.")}

    def prepare(self, stage, side):
        """Return the call to be measured."""
        import torch

        if stage == "request":
            return functools.partial(self._request, picture(side, side))
        unet, vae = self._pipeline.unet, self._pipeline.vae
        width = unet.config.cross_attention_dim
        given = [torch.from_numpy(each).to(self._dtype) for each in inputs(stage, side, width)]
        given[0] = given[0].contiguous(memory_format=self._format)

        def encode(images):
            made = vae.encode(images)
            return made.latents if hasattr(made, "latents") else made.latent_dist.mean

        def denoise(sample, embedding):
            return unet(sample, TIMESTEP, encoder_hidden_states=embedding, return_dict=False)[0]

        run = {"unet": denoise, "encode": encode, "decode": lambda latents: vae.decode(latents).sample}[stage]
        return torch.inference_mode()(lambda: run(*given).float())

    def _request(self, data):
        import torch
        from PIL import Image

        given = {"prompt": next(self._prompts), "image": Image.fromarray(codec.decode(data, config()))}
        given |= {"strength": 1.0, "timesteps": TIMESTEPS}  # the timesteps have the strength in them already
        given |= {"guidance_scale": 1.0, "generator": torch.Generator().manual_seed(42), "output_type": "np"}
        made = self._pipeline(**given).images[0]
        made = (made * 255).round().astype(np.uint8)
        codec.encode(made, 95, "4:4:4")
        return made
