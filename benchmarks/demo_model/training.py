"""The loop that every part is trained with: AdamW in bfloat16 autocast, an average of the weights, resumable."""

import copy
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.demo_model.recipe import WORK

Loss = Callable[[np.random.Generator], dict[str, Tensor]]  # what to sum up, by name


@dataclass(frozen=True)
class Course:
    """How long and how fast one part learns."""

    name: str
    steps: int
    rate: float
    warmup: int = 100
    floor: float = 0.02
    average: float = 0.998
    save_s: float = 60.0

    def rate_at(self, step: int) -> float:
        """Linear warm-up, then half a cosine down to `floor` of the rate."""
        if step < self.warmup:
            return self.rate * (step + 1) / self.warmup
        done = min((step - self.warmup) / max(self.steps - self.warmup, 1), 1.0)
        return self.rate * (self.floor + (1 - self.floor) * 0.5 * (1 + np.cos(np.pi * done)))


def prepare(threads: int = 2) -> None:
    """Torch as training wants it."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)


def train(course: Course, model: nn.Module, loss: Loss, each_save: Callable[[nn.Module, int], None] | None = None) -> nn.Module:
    """Trains `model` in place until `course.steps`, resuming from its checkpoint; returns the averaged weights' copy."""
    path = WORK / f"{course.name}.pt"
    optimizer = torch.optim.AdamW(
        [p for p in model.parameters() if p.requires_grad], lr=course.rate, weight_decay=1e-3, betas=(0.9, 0.99)
    )
    average, step = copy.deepcopy(model), 0
    if path.exists():
        state = torch.load(path, weights_only=True)
        model.load_state_dict(state["model"])
        average.load_state_dict(state["average"])
        optimizer.load_state_dict(state["optimizer"])
        step = state["step"]

    def save() -> None:
        state = {"model": model.state_dict(), "average": average.state_dict(), "optimizer": optimizer.state_dict()}
        torch.save({**state, "step": step}, path.with_suffix(".new"))
        path.with_suffix(".new").replace(path)

    stop = [False]
    signal.signal(signal.SIGTERM, lambda *_: stop.__setitem__(0, True))
    saved, sums, counted = time.monotonic(), {}, 0
    while step < course.steps and not stop[0]:
        for group in optimizer.param_groups:
            group["lr"] = course.rate_at(step)
        with torch.autocast("cpu", torch.bfloat16):
            parts = loss(np.random.default_rng([step, 2024]))
        optimizer.zero_grad(set_to_none=True)
        sum(parts.values()).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        step, counted = step + 1, counted + 1
        keep = min(course.average, (step + 1) / (step + 10))
        with torch.no_grad():
            old, new = list(average.parameters()), list(model.parameters())
            torch._foreach_lerp_(old, new, 1 - keep)  # noqa: SLF001 -- what torch's own EMA uses
        for name, value in parts.items():
            sums[name] = sums.get(name, 0.0) + float(value.detach())
        if time.monotonic() - saved > course.save_s or step == course.steps:
            took = time.monotonic() - saved
            told = "  ".join(f"{name} {total / counted:.4f}" for name, total in sums.items())
            print(f"{course.name} step {step}/{course.steps}  {told}  {took / counted * 1000:.0f} ms", flush=True)
            save()
            if each_save is not None:
                each_save(average, step)
            saved, sums, counted = time.monotonic(), {}, 0
    save()
    if stop[0]:
        raise SystemExit(143)
    return average
