"""Runs layers of Stable Diffusion 1.5 at several sizes, for the log of oneDNN (`DNNL_VERBOSE=1`).

    python -m tests.model.kernel_reorders float32|bfloat16

Each layer is run at every size, and then, after a line `again`, at every size once more.
"""

import sys

import torch
from torch import nn

from pipelines.model.kernels import convolution, doubling, products

SIDES = (8, 16, 24, 32, 64)
CONVS = (
    (64, 64, 3, 1),
    (320, 320, 3, 1),
    (1280, 1280, 3, 1),
    (640, 320, 3, 1),
    (1920, 640, 1, 1),
    (320, 320, 3, 2),
    (320, 4, 3, 1),
)


def layers(dtype):
    for inputs, outputs, size, stride in CONVS:
        source = nn.Conv2d(inputs, outputs, size, stride, padding=size // 2, dtype=dtype)
        yield inputs, convolution.conv(source)
        if size == 3 and stride == 1 and inputs == outputs:
            yield inputs, doubling.upsampling_conv(source)
    product = products.linear(torch.ones(2560, 320, dtype=dtype), torch.ones(2560, dtype=dtype))
    yield 320, lambda x: product(x.permute(0, 2, 3, 1))


def main():
    dtype = getattr(torch, sys.argv[1])
    made = list(layers(dtype))
    for told in ("first", "again"):
        print(told, flush=True)
        for channels, layer in made:
            for side in SIDES:
                layer(torch.ones(1, channels, side, side, dtype=dtype).contiguous(memory_format=torch.channels_last))


if __name__ == "__main__":
    with torch.inference_mode():
        main()
