"""A card with the memory of one and no numbers: torch's allocator by its rules, a full-size model by its costs.

The rules, of `c10/cuda/CUDACachingAllocator.cpp`:

    A capture allocates from a pool of its own. The pool keeps what it ever held until the last graph in it is gone.
    What is cached elsewhere is of no use to a pool, and the other way round.
    A call which needs more than a pool has finds gaps there too small: half of what it takes is new.
    An allocation that fails gives cached memory back and is tried again, except in a capture: there it is an error,
    after which the allocator is of no use.

The costs are those of a trace of the full-size networks in float16: every tensor that an operator returns, and the
copies which CUDA's group norm and convolutions make of the other layout, replayed on the rules for blocks.
"""

import functools
from dataclasses import replace

import numpy as np
import torch

from pipelines.device.captures import Captures, captured_model
from pipelines.device.cuda_graphs import Graphs, fill
from pipelines.device.streams import HostStream
from pipelines.device.torch_backend import TorchBackend
from pipelines.engine.backend import Stage
from pipelines.messages import EngineConfig, GenerationParams
from pipelines.model.functions import make_functions
from tests.support import tiny_models

GIB = 2**30

# What driver, desktop and other programs take.
OTHERS = 0.9e9
# Bytes a pixel: in use at most, and held by a new pool.
COSTS = {"steps": (260, 305), "encode": (1286, 1570), "decode": (1536, 2240), "safety": (33, 52)}
TINY_COSTS = COSTS | {"encode": (390, 430), "decode": (384, 510)}
WEIGHTS, TINY_WEIGHTS = 2.74e9, 1.97e9  # the latter with TAESD and no safety checker
OF_DRIVER = 8e6  # for a graph
IN_USE_TO_HELD = 1.15  # outside of pools, once caches have been given back


class CapturedCall:
    """As a CUDA graph: can be used until it is destroyed."""

    def __init__(self, card, run, inputs, pool, reserved):
        self._card, self._run, self._inputs, self.pool = card, run, inputs, pool
        self.reserved, self.beside, self.replays = reserved, int(OF_DRIVER), 0

    def replay(self, inputs):
        for held, given in zip(self._inputs, inputs, strict=True):
            fill(held[: len(given)], given)
        self.replays += 1
        self._card.replaying = True
        try:
            return self._run(*self._inputs)
        finally:
            self._card.replaying = False

    def destroy(self):
        self.pool["graphs"].remove(self)
        if not self.pool["graphs"]:
            self._card.pools.remove(self.pool)


class Card:
    """A card of `gib` GiB. `surprise`: what a pool takes to what was measured."""

    def __init__(self, gib, weights=WEIGHTS, costs=COSTS, surprise=1.0):
        self.room, self.costs, self.surprise = gib * GIB - OTHERS - weights, costs, surprise
        self.pools, self.others = [], 0.0
        self._pool, self._fresh, self.replaying, self.broken = None, 0, False, False

    @property
    def held(self):
        """Bytes of all pools and what the driver keeps for their graphs."""
        return sum(pool["reserved"] + len(pool["graphs"]) * OF_DRIVER for pool in self.pools)

    def use(self, stage, pixels):
        """A call of this number of pixels, times rows: captured, replayed or neither."""
        assert not self.broken
        in_use, held = (cost * pixels for cost in self.costs[stage])
        self._fresh = held
        if self._pool is None and not self.replaying and IN_USE_TO_HELD * in_use > self.free():
            raise torch.OutOfMemoryError(f"{stage} for {pixels} pixels")

    # --- as Capture --------------------------------------------------------------------------------------------------

    def pool(self):
        self.pools.append({"reserved": 0, "graphs": []})
        return self.pools[-1]

    def warm_up(self, run, inputs):
        self._fresh = 0
        run(*inputs)
        return self._fresh

    def capture(self, run, inputs, pool):
        self._pool = pool
        run(*inputs)
        self._pool = None
        held = self._fresh * self.surprise
        growth = max(held - pool["reserved"], held / 2 if pool["reserved"] else 0) if held > pool["reserved"] else 0
        if growth > self.free():
            self.broken = True
            raise RuntimeError("captures_underway.empty() INTERNAL ASSERT FAILED")
        pool["reserved"] += growth
        pool["graphs"].append(CapturedCall(self, run, inputs, pool, int(growth)))
        return pool["graphs"][-1]

    def free(self):
        return self.room - self.held - self.others


tiny_checkpoint = functools.cache(tiny_models.make)


def functions_on(card, checkpoint):
    """The functions of a model which only take memory. With TAESD's costs there is no safety checker."""

    def unet(sample, shifts, context):
        rows, _, height, width = sample.shape
        card.use("steps", rows * 64 * height * width)
        return sample + 0

    def encode(images):
        rows, _, height, width = images.shape
        card.use("encode", rows * height * width)
        return torch.zeros(rows, 4, height // 8, width // 8), None

    def decode(latents):
        rows, _, height, width = latents.shape
        card.use("decode", rows * 64 * height * width)
        return torch.zeros(rows, 3, 8 * height, 8 * width)

    def flags(pixels):
        rows, height, width, _ = pixels.shape
        card.use("safety", rows * height * width)
        return torch.zeros(rows, dtype=torch.bool)

    return replace(
        make_functions(checkpoint),
        unet=unet,
        vae_encode=encode,
        vae_decode=decode,
        flags=flags if card.costs is COSTS else None,
    )


def started(card, max_batch=8, clock=lambda: 0.0, **config):
    """A model of the card's costs, captured as at the start of an engine."""
    checkpoint = tiny_checkpoint()
    streams = HostStream(lambda: None), HostStream(lambda: None)
    model = TorchBackend(checkpoint, functions_on(card, checkpoint), streams)
    for stage, (in_use, _) in card.costs.items():
        counted = Stage.DECODE if stage == "safety" else stage
        model.memory_budget.note(counted, 1000, 1, 1000 * in_use)
    graphs = Graphs(card)
    model = captured_model(model, graphs)
    config = EngineConfig(model="", data_dir="", max_batch=max_batch, **config)
    held = {Stage(stage): cost for stage, (_, cost) in card.costs.items()}
    model.captures = Captures(model, graphs, config, held, free=card.free, clock=clock)
    model.captures.start(lambda fraction, what: None)
    return model


def request(model, size, count=1, steps=2):
    """Make pictures of a size as the loop does, giving memory up where it must. Returns whether there was room."""
    params = GenerationParams(prompt="a", seed=1, num_inference_steps=steps)
    items = [(params, model.prepare(params), np.zeros((*size, 3), np.uint8), 1) for _ in range(count)]

    def attempt(run):
        while True:
            try:
                return run()
            except torch.OutOfMemoryError:
                if not model.relieve():
                    raise

    try:
        trajectories = attempt(lambda: model.encode(items))
        for _ in range(steps):
            attempt(lambda: model.step(trajectories))
        attempt(lambda: model.check(model.decode(trajectories)))
    except torch.OutOfMemoryError:
        return False
    return True
