"""What a UNet call of a size would take if time went by floating-point operations."""

import json

import torch
from torch.utils.flop_counter import FlopCounterMode

from pipelines.weights import architectures

TOKENS = 77


def unet_flops(folder, side):
    """Return the operations of one UNet call at side × side pixels: diffusers' network, without values."""
    config = json.loads((folder / "sd15" / "unet" / "config.json").read_text())
    unet = architectures.make_unet(config)
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        context = torch.empty(1, TOKENS, config["cross_attention_dim"])
        unet(torch.empty(1, config["in_channels"], side // 8, side // 8), torch.empty(()), context)
    return counter.get_total_flops()
