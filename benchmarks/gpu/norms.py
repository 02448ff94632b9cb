"""The forms of group norm and SiLU that are measured: named functions of a `GroupNorm` and a picture."""

import functools

import torch
import torch.nn.functional as F

from pipelines.model.blocks import GroupNorm


def torch_norm(module, x):
    """Return torch's group norm, then SiLU, channels-last again as the next convolution needs it."""
    out = F.silu(F.group_norm(x, module.num_groups, module.weight, module.bias, module.eps))
    return out.contiguous(memory_format=torch.channels_last)


# Name → function of a `GroupNorm` that returns the form. The product's has kernels of our own where they work.
NORMS = {
    "torch": lambda module: functools.partial(torch_norm, module),
    "product": lambda module: GroupNorm(module, silu=True),
}


def reference(module, x):
    """Return group norm and SiLU in float64."""
    weight, bias = module.weight.double(), module.bias.double()
    return F.silu(F.group_norm(x.double(), module.num_groups, weight, bias, module.eps))
