"""OpenVINO: the models of diffusers and transformers converted to its own format, and compiled for the CPU.

As its documentation has it for latency: static shapes, `PERFORMANCE_HINT` LATENCY, a number of threads. Conversion
happens once, in a process of its own; it is not part of what loading takes. Weights stay in float32 on disk; the
precision of the arithmetic is float32 ("f32") or what OpenVINO chooses ("auto"). A request is the pipeline of
`StableDiffusionImg2ImgPipeline` written out over the compiled models, with diffusers' `LCMScheduler`.
"""

import functools
import sys
import time
from pathlib import Path

import numpy as np

from benchmarks.harness.request import config, picture
from benchmarks.peers.child import Refused
from benchmarks.peers.contenders import TIMESTEP, TIMESTEPS, inputs, prompts
from pipelines.images import codec

sys.modules["openvino_telemetry"] = None  # a benchmark reports to no one

PARTS = ("text", "unet", "encode", "decode")
# Kernels of these names use AVX-512 where the processor has it: no variable limits MLAS.
BEYOND_AVX2 = ("avx512", "amx", "mlas")


def convert(spec):
    """Write the parts that `spec["folder"]` lacks, for pictures of `spec["side"]`; return processor seconds by part."""
    import openvino

    took = {}
    for part in needed(spec):
        path = _path(spec, part)
        if path.exists():
            continue
        begun = time.process_time()
        module, given = _traceable(spec, part)
        shapes = [tuple(each.shape) for each in given]
        model = openvino.convert_model(module, example_input=tuple(given), input=shapes)
        openvino.save_model(model, path, compress_to_fp16=False)
        took[part] = time.process_time() - begun
        del model, module  # gigabytes, before the next
    return took


def needed(spec):
    """Return the parts that the stages of `spec` need."""
    return [part for part in PARTS if part in spec["stages"] or "request" in spec["stages"]]


def _path(spec, part):
    tiny = "tiny-" if spec["taesd"] and part in {"encode", "decode"} else ""
    return Path(spec["folder"]) / f"{tiny}{part}-{spec['side']}.xml"


def _traceable(spec, part):
    """Return a part as a module of tensors only, and example inputs."""
    import torch
    from diffusers import AutoencoderKL, AutoencoderTiny, UNet2DConditionModel
    from transformers import CLIPTextModel

    model, local = Path(spec["weights"]) / "sd15", {"local_files_only": True}
    if part == "text":
        encoder = CLIPTextModel.from_pretrained(model / "text_encoder", **local)
        return _module(encoder, lambda ids: encoder(ids)[0]), [torch.ones(1, 77, dtype=torch.int64)]
    if part == "unet":
        unet = UNet2DConditionModel.from_pretrained(model / "unet", **local)
        sample, embedding = map(torch.from_numpy, inputs("unet", spec["side"], unet.config.cross_attention_dim))
        given = [sample, torch.tensor([TIMESTEP]), embedding]
        return _module(unet, lambda *each: unet(*each, return_dict=False)[0]), given
    if spec["taesd"]:
        vae = AutoencoderTiny.from_pretrained(spec["taesd"], **local)
    else:
        vae = AutoencoderKL.from_pretrained(model / "vae", **local)

    def encode(images):
        made = vae.encode(images)
        return made.latents if spec["taesd"] else made.latent_dist.parameters  # mean and log variance

    run = {"encode": encode, "decode": lambda latents: vae.decode(latents, return_dict=False)[0]}[part]
    return _module(vae, run), [torch.from_numpy(each) for each in inputs(part, spec["side"])]


def _module(owner, run):
    """Return `run` as a module that owns the weights of `owner`."""
    import torch

    class Traceable(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.owner = owner

        def forward(self, *given):
            return run(*given)

    return Traceable().eval().requires_grad_(requires_grad=False)


class OpenVino:
    """The compiled parts that the stages of `spec` need."""

    def __init__(self, spec, precision):
        import openvino

        self._spec = spec
        hints = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": spec["threads"]}
        if precision == "f32":
            hints["INFERENCE_PRECISION_HINT"] = "f32"
        core = openvino.Core()
        self._compiled = {part: core.compile_model(_path(spec, part), "CPU", hints) for part in needed(spec)}
        self._requests = {part: compiled.create_infer_request() for part, compiled in self._compiled.items()}
        chosen = {compiled.get_property("INFERENCE_PRECISION_HINT").to_string() for compiled in self._compiled.values()}
        self.told = {"precision": "+".join(sorted(chosen)), "kernels": sorted(self._kernels(*self._compiled))}
        self.told["version"] = openvino.get_version()
        if "request" in spec["stages"]:
            self._load_pipeline()

    def prepare(self, stage, side):
        """Return the call to be measured."""
        if side != self._spec["side"]:
            raise Refused(f"converted for {self._spec['side']} alone")
        self._check_emulation(stage)
        if stage == "request":
            return functools.partial(self._request, picture(side, side))
        if stage != "unet":
            given = inputs(stage, side)
            channels = None if stage == "decode" else 4  # mean alone, without the variance
            return lambda: self._run(stage, *given)[:, :channels]
        width = self._compiled["unet"].input(2).shape[2]
        sample, embedding = inputs("unet", side, width)
        return lambda: self._run("unet", sample, np.array([TIMESTEP]), embedding)

    def _check_emulation(self, stage):
        """Raise `Refused` if the instruction set is limited, and some kernels of this stage don't heed that."""
        used = self._kernels(*(PARTS if stage == "request" else [stage]))
        beyond = sorted(name for name in used if any(word in name for word in BEYOND_AVX2))
        if self._spec["limited"] and beyond:
            raise Refused(f"OpenVINO's {', '.join(beyond)} can't be limited to AVX2")

    def _kernels(self, *parts):
        operators = [each for part in parts for each in self._compiled[part].get_runtime_model().get_ordered_ops()]
        return {each.get_rt_info()["primitiveType"].value for each in operators}

    def _run(self, part, *given):
        """Return the first output of a part; it is overwritten by the part's next run."""
        request = self._requests[part]
        request.infer(list(given), share_inputs=True)
        return request.get_output_tensor(0).data

    # --- whole requests ----------------------------------------------------------------------------------------------

    def _load_pipeline(self):
        from diffusers import LCMScheduler
        from diffusers.utils import logging
        from transformers import CLIPTokenizer

        logging.set_verbosity_error()  # it warns at every call that timesteps were given
        model, local = Path(self._spec["weights"]) / "sd15", {"local_files_only": True}
        self._tokenizer = CLIPTokenizer.from_pretrained(model / "tokenizer", **local)
        self._scheduler = LCMScheduler.from_pretrained(model / "scheduler", **local)
        self._scale = 1.0 if self._spec["taesd"] else 0.18215  # as published
        self._prompts = prompts()

    def _request(self, data):
        import torch

        generator, scheduler = torch.Generator().manual_seed(42), self._scheduler
        scheduler.set_timesteps(timesteps=TIMESTEPS)
        ids = self._tokenizer(next(self._prompts), padding="max_length", truncation=True, return_tensors="np").input_ids
        embedding = self._run("text", ids.astype(np.int64))

        pixels = codec.decode(data, config()).astype(np.float32) / 127.5 - 1
        encoded = torch.from_numpy(self._run("encode", pixels.transpose(2, 0, 1)[None]))
        latents = encoded[:, :4]
        if not self._spec["taesd"]:
            deviation = (encoded[:, 4:].clamp(-30, 20) * 0.5).exp()
            latents = latents + deviation * torch.randn(latents.shape, generator=generator)
        noise = torch.randn(latents.shape, generator=generator)
        latents = scheduler.add_noise(latents * self._scale, noise, scheduler.timesteps[:1])
        for timestep in scheduler.timesteps:
            output = self._run("unet", latents.numpy(), timestep[None].numpy(), embedding)
            latents, denoised = scheduler.step(
                torch.from_numpy(output), timestep, latents, generator=generator, return_dict=False
            )

        drawn = self._run("decode", (denoised / self._scale).numpy())[0].transpose(1, 2, 0)
        made = np.rint(np.clip(drawn / 2 + 0.5, 0, 1) * 255).astype(np.uint8)
        codec.encode(np.ascontiguousarray(made), 95, "4:4:4")
        return made
