"""What must work at all: numbers, the product's start and requests, no waits, the right pictures."""

import contextlib
import functools

import torch
import torch.nn.functional as F

from benchmarks.gpu.bench import apart
from benchmarks.gpu.random_weights import in_float32
from benchmarks.harness import device


def numbers(bench, found):
    """Compare a convolution and a product of the model's sizes in 16 bits with float32: GTX 16xx give infinities."""
    if bench.device.type == "cuda":
        found["capability"] = "{}.{}".format(*torch.cuda.get_device_capability())
        found["cuda"], found["cudnn"] = torch.version.cuda, torch.backends.cudnn.version()
        found["built_for"] = " ".join(torch.cuda.get_arch_list())
    width, side = (32, 8) if bench.dry else (320, 64)
    x, kernel = bench.randn(1, width, side, side), bench.randn(width, width, 3, 3) / (3 * width**0.5)
    pixels = x.flatten(2)[0].T
    for name, run, given in (
        ("convolution", functools.partial(F.conv2d, padding=1), (x, kernel)),
        ("product", torch.matmul, (pixels, pixels.T / width**0.5)),
    ):
        exact = run(*(each.float() for each in given))
        error = (run(*given).float() - exact).abs().max() / exact.abs().max()
        found[name] = round(error.item(), 6)
        if not found[name] < 0.01:
            raise ValueError(f"a {name} in {bench.dtype} is wrong by {found[name]} of its largest result")


def demo(bench, found):
    """Load the built-in model as the product does, and compare its picture with that of the CPU."""
    made = []
    for where in (str(bench.device), "cpu"):
        row = found[where] = {}
        with bench.engine(row, model="demo", device=where) as engine:
            (picture,) = engine.one(*bench.several(1, 128, 128)[0]).pictures
            made.append(device.images.decode(picture.data, device.config()))
            row |= {"device": engine.loaded.device, "dtype": engine.loaded.dtype}
    found["apart"] = apart(*made)
    if found["apart"]["psnr_db"] < 30:
        raise ValueError("the device's picture is not the CPU's")


def engine(bench, found):
    """Start the product with full-size weights; make some pictures one after the other, then at once."""
    with bench.engine(found) as made:
        count = 2 if bench.dry else 8
        found["alone"] = bench.rate(made, bench.several(count), 1)
        found["together"] = bench.rate(made, bench.several(count), count)
        found["stages_ms"] = stages_ms(made, bench)


def stages_ms(engine, bench):
    timings = engine.one(*bench.several(1)[0]).timings
    return {name: round(seconds * 1e3, 2) for name, seconds in timings.items()}


def waits(bench, found):
    """Find stages that wait for the device though they must not; torch raises at each such wait."""
    with bench.engine({}) as made:
        model, request, state = made.model, device.request(7), {}
        bench.picture(model, prompt="another")  # buffers are pinned at their first use
        pixels = device.images.decode(device.picture(bench.side, bench.side), device.config())
        for name, launch in launches(model, request, pixels, state).items():
            with watching(bench):
                try:
                    launch()
                    found[name] = "none"
                except RuntimeError as error:
                    found[name] = str(error)[:200]
            if found[name] != "none":
                launch()
        state["wait"]()
        state.clear()


def launches(model, request, pixels, state):
    """Return the stages of a request in order, as functions that only launch."""
    return {
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


def pictures(bench, found):
    """Compare our picture, eager and as the product makes it, with diffusers' in the same dtype and in float32."""
    data, request = device.picture(bench.side, bench.side), device.request(7)
    ours, theirs = bench.picture(bench.ours), device.Diffusers(device.config(), bench.model).pixels(request, data)
    found["to_diffusers"] = apart(ours, theirs)
    with bench.engine({}) as made:
        found["product_to_eager"] = apart(made.pixels(request, data), ours)
    exact = in_float32(bench.model)
    with device.switched(allow_tf32=False):
        reference = device.Diffusers(device.config(), exact).pixels(request, data)
    del exact
    found["to_float32"], found["diffusers_to_float32"] = apart(ours, reference), apart(theirs, reference)
    with device.switched(allow_fp16_accumulation=True):
        found["fp16_accumulation"] = apart(bench.picture(bench.ours), ours)
        inputs = bench.unet_inputs(1)
        found["fp16_accumulation"]["unet_ms"] = bench.ms(functools.partial(bench.networks.unet, *inputs))


@contextlib.contextmanager
def watching(bench):
    if bench.device.type == "cuda":
        torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        if bench.device.type == "cuda":
            torch.cuda.set_sync_debug_mode("default")
