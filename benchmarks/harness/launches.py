"""What a GPU launches for a trace of operations, and how that changes with each step of the plan.

A trace (`benchmarks.harness.trace`) has torch's operations. Some are several kernels on CUDA: torch adds the bias of a
convolution in a pass of its own, and changes the layout for a group norm and back.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

PRODUCTS = {"addmm", "mm", "bmm", "linear", "matmul", "conv2d"}
GROUPS = 32  # of every group norm
WIDEST = 256  # of the heads that fused attention keeps in registers


@dataclass(frozen=True, kw_only=True)
class Form:
    """How networks are computed: a step of the plan each.

    `norm`: as in `trace.Networks`. `attention_in_products`: that of an autoencoder, where numbers have 16 bits.
    """

    norm: str = "torch"
    attention_in_products: bool = False
    fused_relu: bool = False
    captured_glue: bool = False
    noise_ahead: bool = False


class Kernel(NamedTuple):
    """One launch: its operations and bytes.

    `tiles`: (rows, columns) of the results of a product. `flash`: of fused attention, the share of its heads' padded
    width that counts. `wide`: fused attention whose heads are too wide for registers.
    `blocks`: on which the work is spread, if that is less than a chip has room for (0: it is not).
    """

    flops: float = 0
    weights: int = 0  # bytes that no cache has
    read: tuple[int, ...] = ()
    written: int = 0
    tiles: tuple[int, int] = (0, 0)
    flash: float = 0
    wide: bool = False
    blocks: int = 0


def kernels(ops, form):
    """Return the launches of a trace of operations."""
    made = []
    for number, op in enumerate(ops):
        out = op.outputs[0].nbytes
        if form.fused_relu and op.name == "relu" and ops[op.follows[0]].name in {"convolution", "add"}:
            continue  # part of TAESD's convolution
        if op.name == "convolution":
            made += convolution(op, ops, number, form)
        elif op.name == "group_norm":
            made += group_norm(op, form)
        elif op.name == "fourstep::group_norm":
            made += [Kernel(read=(out,)), Kernel(read=(out,), written=out)]  # statistics; norm, shift and SiLU
        elif op.name == "attention":
            made += attention(op, form)
        elif op.name in PRODUCTS:
            made.append(product(op))
        elif op.name == "constant_pad_nd":
            made += [Kernel(written=out), passes(op)]
        else:
            made.append(passes(op))
    return made


def passes(op):
    return Kernel(read=tuple(given.nbytes for given in op.inputs), written=op.outputs[0].nbytes)


def convolution(op, ops, number, form):
    """Return the change of layout, if the input needs one, the convolution, and torch's addition of its bias."""
    given, weight, *_ = op.inputs
    (out,) = op.outputs
    biased, _, _, transposed = op.options
    made = [] if given.channels_last else [Kernel(read=(given.nbytes,), written=given.nbytes)]
    inputs, outputs = (weight.shape[0], weight.shape[1]) if transposed else (weight.shape[1], weight.shape[0])
    taps = math.prod(weight.shape[2:]) // (4 if transposed else 1)
    pixels = out.shape[0] * math.prod(out.shape[2:])
    flops = 2 * pixels * outputs * inputs * taps
    made.append(Kernel(flops, weight.nbytes, (given.nbytes,), out.nbytes, (pixels, outputs)))
    if biased and not (form.fused_relu and before_relu(ops, number)):
        made.append(Kernel(read=(out.nbytes,), written=out.nbytes))
    return made


def before_relu(ops, number):
    """Return whether a ReLU follows an operation, with at most an addition between."""
    place, user = next(((place, user) for place, user in enumerate(ops) if number in user.follows), (0, None))
    if user is None:
        return False
    return user.name == "relu" or any(each.name == "relu" and place in each.follows for each in ops)


def group_norm(op, form):
    """Return the launches of torch's norm: change of layout (if any), statistics, their constants, the pass."""
    size, rows = op.outputs[0].nbytes, op.inputs[0].shape[0]
    moments, apply = Kernel(read=(size,), blocks=rows * GROUPS), Kernel(read=(size,), written=size)
    changes = [apply] if form.norm == "torch" and op.inputs[0].channels_last else []
    return [*changes, moments, Kernel(), apply]


def attention(op, form):
    """Return fused attention, or what `attention_in_products` launches where heads are wide."""
    query, key, _ = op.inputs
    rows, heads, tokens, width = query.shape
    keys, sizes = key.shape[2], tuple(given.nbytes for given in op.inputs)
    flops, scores = 4 * rows * heads * tokens * keys * width, rows * heads * tokens * keys * query.width
    if width <= WIDEST:
        padded = next(each for each in (32, 64, 96, 128, 192, 256) if each >= width)
        return [Kernel(flops, 0, sizes, op.outputs[0].nbytes, flash=width / padded)]
    if not form.attention_in_products:
        return [Kernel(flops, 0, sizes, op.outputs[0].nbytes, wide=True)]
    tiles = rows * heads * tokens
    out = op.outputs[0].nbytes
    return [
        Kernel(read=sizes[1:2], written=sizes[1]),
        Kernel(flops / 2, 0, sizes[:2], scores, (tiles, keys)),
        Kernel(read=(scores,), written=scores),
        Kernel(flops / 2, 0, (scores, sizes[2]), out, (tiles, width)),
        Kernel(read=(out,), written=out),
    ]


def product(op):
    """Return a matrix product, or a convolution of patches side by side."""
    left, right = op.inputs[:2] if op.name in {"linear", "conv2d"} else op.inputs[-2:]
    (out,) = op.outputs
    inner = math.prod(right.shape[1:]) if op.name == "conv2d" else left.shape[-1]
    columns = out.shape[1] if op.name == "conv2d" else out.shape[-1]
    results = math.prod(out.shape)
    return Kernel(2 * results * inner, right.nbytes, (left.nbytes,), out.nbytes, (results // columns, columns))
