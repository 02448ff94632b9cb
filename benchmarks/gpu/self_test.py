"""Sections that fail on purpose: their earlier findings must be kept, and other sections must not be affected."""

import contextlib
import time

import torch

from benchmarks.gpu.bench import plain_weights
from pipelines.model.kernels import products


def fails(bench, found):
    """Raise an exception."""
    found["before"] = 1
    raise ValueError("no")


def hangs(bench, found):
    """Exceed the time limit in code that catches exceptions, as compilers do."""
    found["before"] = 2
    with contextlib.suppress(Exception):
        time.sleep(60)
    found["after"] = 2


def plain_for_a_while(bench, found):
    """Record whether weights are packed before, within and after a `plain_weights` ended by an exception."""
    packed, first = [products.packs(torch.ones(2, 2))], bench.ours
    with contextlib.suppress(ZeroDivisionError), plain_weights(bench):
        packed.append(products.packs(torch.ones(2, 2)))
        plain = bench.ours
        raise ZeroDivisionError
    packed.append(products.packs(torch.ones(2, 2)))
    found["packed"] = packed
    found["made_anew"] = len({first, plain, bench.ours})
