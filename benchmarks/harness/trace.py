"""Trace of a model's networks without a device: which operations run, on which shapes, in which layout.

The networks are ours, at any size, on torch's meta device: weights and pictures have shapes and no values. An operation
is one call that a GPU answers with kernels; views and empty tensors are none. A group norm of torch's gives the layout
that its kernel for CUDA gives, so that the changes of layout around it are there.
"""

from dataclasses import dataclass
from typing import NamedTuple
from unittest import mock

import torch
import torch.nn.functional as F
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from pipelines.model import vae
from pipelines.model.kernels.cuda import group_norm
from pipelines.model.safety import SafetyChecker
from pipelines.model.unet import Unet
from pipelines.weights import architectures

META = torch.device("meta")
TINY_VAE = {"_class_name": "AutoencoderTiny", "latent_channels": 4}
# Operations that start no kernel, beside views.
SILENT = {"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "_unsafe_view", "detach"}


class Layout(NamedTuple):
    """Shape and strides of a tensor, in elements, and bytes of an element."""

    shape: tuple[int, ...]
    strides: tuple[int, ...]
    width: int

    @property
    def nbytes(self):
        count = 1
        for side in self.shape:
            count *= side
        return count * self.width

    @property
    def channels_last(self):
        """Whether [N, C, H, W] lies in memory as [N, H, W, C]."""
        _, channels, height, width = self.shape
        wanted = (height * width * channels, 1, width * channels, channels)
        return all(side == 1 or has == want for side, has, want in zip(self.shape, self.strides, wanted, strict=True))


@dataclass(frozen=True)
class Op:
    """One operation. `follows`: indices of the operations that made its inputs; `options`: of a convolution."""

    name: str
    inputs: tuple[Layout, ...]
    outputs: tuple[Layout, ...]
    follows: tuple[int, ...]
    options: tuple = ()


class Trace(TorchDispatchMode):
    """A context in which all operations are recorded."""

    def __init__(self):
        super().__init__()
        self.ops, self._makers, self._alive = [], {}, []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.name().removeprefix("aten::").partition(".")[0].removesuffix("_")  # in place or not
        result = func(*args, **kwargs or {})
        if name == "convolution":  # cuDNN's, whose weights are channels-last
            result = torch.empty_like(result, memory_format=torch.channels_last)
        if func.is_view or name in SILENT or func.namespace == "prim":
            self._same(args, result)
        else:
            self.record(name, (args, kwargs), result, options_of(name, args))
        return result

    def record(self, name, given, result, options=()):
        """Add an operation with what it was given and what it made."""
        inputs, outputs = tensors(given), tensors(result)
        follows = tuple(self._makers.get(storage(tensor), -1) for tensor in inputs)
        self.ops.append(Op(name, tuple(map(layout, inputs)), tuple(map(layout, outputs)), follows, options))
        for tensor in outputs:
            self._makers[storage(tensor)] = len(self.ops) - 1
        self._alive += outputs  # else another tensor could get the storage's number

    def _same(self, given, result):
        """A view shares its storage; a copy without a kernel takes over its maker."""
        for tensor in tensors(result):
            for source in tensors(given):
                self._makers.setdefault(storage(tensor), self._makers.get(storage(source), -1))
        self._alive += tensors(result)


class Whole(TorchFunctionMode):
    """Records as one operation what one call of ours is, and torch takes apart: attention, group norm.

    `kept`: group norms keep the layout of their input.
    """

    def __init__(self, recorded, *, kept):
        super().__init__()
        self._recorded, self._kept = recorded, kept

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is F.scaled_dot_product_attention:
            query, key, value = args[:3]
            rows, heads, tokens, width = *query.shape[:3], value.shape[3]
            out = query.new_empty(rows, tokens, heads, width).transpose(1, 2)
            self._recorded.record("attention", (query, key, value), out)
        elif func is F.group_norm:
            form = torch.preserve_format if self._kept else torch.contiguous_format
            out = torch.empty_like(args[0], memory_format=form)
            self._recorded.record("group_norm", args, out)
        else:
            out = func(*args, **kwargs or {})
        return out


def tensors(tree):
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)]


def storage(tensor):
    return tensor.untyped_storage()._cdata


def layout(tensor):
    return Layout(tuple(tensor.shape), tuple(tensor.stride()), tensor.element_size())


def options_of(name, args):
    """Return what a convolution's shapes do not tell: bias, strides, paddings, transposed."""
    if name != "convolution":
        return ()
    _, _, bias, strides, paddings, _, transposed, *_ = args
    return bias is not None, tuple(strides), tuple(paddings), transposed


def trace(run, *, kept=False):
    """Return the operations of `run()`; `kept`: group norms keep the layout of their input."""
    with Trace() as recorded, Whole(recorded, kept=kept):
        run()
    return recorded.ops


class Networks:
    """All networks of a model on the meta device, from configs as published.

    `norm`: torch's for CUDA before 2.15, which changes the layout ("torch"); one that keeps it ("kept"); ours ("own").
    """

    @torch.inference_mode(mode=False)
    def __init__(self, configs, dtype=torch.float16, norm="torch"):
        self._dtype, self._norm = dtype, norm
        made = {
            "unet": self._made(architectures.make_unet, configs["unet"]),
            "vae": self._made(architectures.make_vae, configs["vae"]),
            "tiny": self._made(architectures.make_vae, TINY_VAE),
        }
        with torch.no_grad():
            self._flags = SafetyChecker(self._made(architectures.make_safety_checker, configs["safety_checker"]))
            with (
                FakeTensorMode(allow_non_fake_inputs=True),  # weights are folded on the host, where meta has none
                mock.patch.object(group_norm, "is_used", return_value=norm == "own"),
            ):
                self._unet, self._vae, self._tiny = (
                    make(made[name]) for name, make in (("unet", Unet), ("vae", vae.make_vae), ("tiny", vae.make_vae))
                )
            for network in (self._unet, self._vae, self._tiny):
                as_plain_meta(network)

    def traced(self, rows, height, width):
        """Return each stage's operations for pictures of this size: name → list of `Op`."""
        with torch.inference_mode(mode=False), torch.no_grad():
            images, latents = self._empty(rows, 3, height, width), self._empty(rows, 4, height // 8, width // 8)
            shifts = self._empty(rows, sum(self._unet.shift_widths))
            context = self._empty(rows, 77, sum(self._unet.context_widths))
            pixels = torch.empty(rows, height, width, 3, dtype=torch.uint8, device=META)
            calls = {
                "unet": lambda: self._unet(latents, shifts, context),
                "encode": lambda: self._vae.encode(images),
                "decode": lambda: self._vae.decode(latents),
                "tiny encode": lambda: self._tiny.encode(images),
                "tiny decode": lambda: self._tiny.decode(latents),
                "safety": lambda: self._flags(pixels),
            }
            return {name: trace(call, kept=self._norm == "kept") for name, call in calls.items()}

    def _made(self, make, config):
        made = make(config).requires_grad_(requires_grad=False).eval()
        return nn.Module.to(made, META, self._dtype)  # diffusers' own warns of it

    def _empty(self, *shape):
        return torch.empty(*shape, dtype=self._dtype, device=META)


def as_plain_meta(network):
    """Give a module made in a `FakeTensorMode` plain weights of the meta device, which are ten times as fast."""
    for owner in network.modules():
        for name, weight in owner.named_buffers(recurse=False):
            plain = torch.empty_strided(weight.shape, weight.stride(), dtype=weight.dtype, device=META)
            setattr(owner, name, plain)
