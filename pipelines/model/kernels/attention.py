"""Attention of query, key and value.

On a processor torch's fused attention reads rows of one head again and again. Query, key and value come from one
product, where the heads of a token lie side by side; with many tokens it pays to copy each first.

On CUDA no fused kernel of torch's is made for the one head of 512 in the middle of an autoencoder: there plain products
on tensor cores take its place, in 16 bits with float32 sums. Which fused kernel computes the UNet's is timed there.
"""

from __future__ import annotations

import itertools
from functools import partial
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

from pipelines.model.kernels import choices
from pipelines.model.kernels.cuda import fused_attention

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

# Rows of queries whose scores are made at once.
_ROWS = 256
# Keys from which plain products may be faster than the fused operator.
_MANY_TOKENS = 1024
# Keys from which query, key and value are copied: at 64² pixels that gains a tenth to a fifth (AVX-512 and AMX), at 32²
# nothing.
_COPIED_TOKENS = 2048
# The widest head that fused kernels for CUDA take.
FUSED_WIDTH = 256
# Scores that are made at once on CUDA: 32 MiB, those of all pixels at 512×512.
_SCORES = 4096**2
# Tokens, heads and their width of the attention that is timed: SD 1.5's at 32² pixels.
_TIMED = (1024, 8, 80)


def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Return softmax(query · keyᵀ / √width) · value: each [N, heads, tokens, width] → [N, heads, tokens, width]."""
    if query.device.type == "cpu":
        if key.shape[2] >= _COPIED_TOKENS:
            query, key, value = query.contiguous(), key.contiguous(), value.contiguous()
        if key.shape[2] >= _MANY_TOKENS and query.dtype == torch.bfloat16 and in_products():
            return attention_in_products(query, key, value)
    elif query.device.type == "cuda":
        if query.shape[3] > FUSED_WIDTH and query.element_size() == 2:
            return attention_in_products(query, key, value, max(1, _SCORES // key.shape[2]))
        return fused_attention.attention(query, key, value)
    return F.scaled_dot_product_attention(query, key, value)


def attention_in_products(query: Tensor, key: Tensor, value: Tensor, at_once: int = _ROWS) -> Tensor:
    """Return the same by a product, a softmax and a product, for some rows of queries of one head at a time."""
    out = torch.empty_like(query)
    scaled = (key * query.shape[3] ** -0.5).transpose(2, 3)
    for picture, head in itertools.product(range(len(query)), range(query.shape[1])):
        for first in range(0, query.shape[2], at_once):
            rows = slice(first, first + at_once)
            scores = torch.mm(query[picture, head, rows], scaled[picture, head])
            out[picture, head, rows] = torch.mm(torch.softmax(scores, dim=-1), value[picture, head])
    return out


def in_products() -> bool:
    """Return whether bfloat16 attention over many tokens is faster in plain products here."""
    tokens, heads, width = _TIMED

    def run(form: Callable[..., Tensor]) -> Callable[[], Tensor]:
        return partial(form, *[torch.ones(1, heads, tokens, width, dtype=torch.bfloat16)] * 3)

    forms = {
        "fused": partial(run, F.scaled_dot_product_attention),
        "products": partial(run, attention_in_products),
    }
    return choices.current().choose("attention bfloat16", forms, rule="fused") == "products"
