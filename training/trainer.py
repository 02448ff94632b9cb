"""Training loop of all networks: AdamW, or Muon for matrices; bfloat16 autocast, averaged weights, resumable.

One process with one thread per core; gradients are averaged over the processes once a step. On a shared machine,
several threads of one operation would wait for the one that is not scheduled. An interrupted run continues from its
last checkpoint, which is at most `save_s` seconds old.
"""

import copy
import os
import socket
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.multiprocessing import spawn

from training.config import CORES, WORK
from training.muon import Muon

Loss = Callable[[np.random.Generator], dict[str, Tensor]]  # the losses to sum, by name


@dataclass(frozen=True)
class Course:
    """Settings of one training run.

    The learning rate rises linearly for `warmup` steps to `rate`, then falls along half a cosine to `floor` of it.
    `average`: decay of the weights' moving average. `save_s`: seconds between checkpoints. `muon`: train matrices,
    except embeddings, with Muon.
    """

    name: str
    steps: int
    rate: float
    warmup: int = 100
    floor: float = 0.02
    average: float = 0.998
    save_s: float = 60.0
    muon: bool = False

    def rate_at(self, step: int) -> float:
        if step < self.warmup:
            return self.rate * (step + 1) / self.warmup
        done = min((step - self.warmup) / max(self.steps - self.warmup, 1), 1.0)
        return self.rate * (self.floor + (1 - self.floor) * 0.5 * (1 + float(np.cos(np.pi * done))))


def on_all_cores(work: Callable[[], None]) -> None:
    """Run `work`, a function of a module, once per core, as one group of processes."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    spawn(_member, (work, port), nprocs=CORES, join=True)


def rank() -> int:
    """Return this process's number in the group. Process 0 writes and reports."""
    return dist.get_rank()


def world() -> int:
    return dist.get_world_size()


def _member(rank: int, work: Callable[[], None], port: int) -> None:
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    torch.manual_seed(0)
    dist.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=CORES)
    work()
    dist.destroy_process_group()


def train(
    course: Course, model: nn.Module, loss: Loss, report: Callable[[nn.Module, int], None] | None = None
) -> nn.Module:
    """Train `model` until `course.steps`, from its checkpoint if there is one. Return a copy with averaged weights.

    `loss` gets one random generator per step and process. `report` gets the average and the step at each checkpoint.
    """
    path, first = WORK / f"{course.name}.pt", dist.get_rank() == 0
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizers = _optimizers(course, model)
    average, step = copy.deepcopy(model), 0
    if path.exists():
        state = torch.load(path, weights_only=True)
        model.load_state_dict(state["model"])
        average.load_state_dict(state["average"])
        for optimizer, kept in zip(optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(kept)
        step = state["step"]
    dist.barrier()
    meter = _Meter()
    while step < course.steps:
        for group in (group for optimizer in optimizers for group in optimizer.param_groups):
            group["lr"] = course.rate_at(step)
        with torch.autocast("cpu", torch.bfloat16):
            parts = loss(np.random.default_rng([step, dist.get_rank(), 2024]))
        model.zero_grad(set_to_none=True)
        sum(parts.values()).backward()
        _share(parameters)
        nn.utils.clip_grad_norm_(parameters, 1.0)
        for optimizer in optimizers:
            optimizer.step()
        step += 1
        with torch.no_grad():
            keep = min(course.average, step / (step + 9))
            torch._foreach_lerp_(list(average.parameters()), list(model.parameters()), 1 - keep)
        meter.add(parts)
        if first and (meter.seconds > course.save_s or step == course.steps):
            print(f"{course.name} {step}/{course.steps}  {meter.tell()}", flush=True)
            _save(path, step, model, average, optimizers)
            if report is not None:
                report(average, step)
            meter = _Meter()
    dist.barrier()
    return average


def _share(parameters: Iterable[nn.Parameter]) -> None:
    """Replace gradients by their mean over the processes."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    flat = torch.cat([g.reshape(-1) for g in gradients])
    dist.all_reduce(flat)
    flat /= dist.get_world_size()
    for gradient, mean in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
        gradient.copy_(mean.view_as(gradient))


def _optimizers(course: Course, model: nn.Module) -> list[torch.optim.Optimizer]:
    embeddings = {module.weight for module in model.modules() if isinstance(module, nn.Embedding)}
    learning = [p for p in model.parameters() if p.requires_grad]
    matrices = [p for p in learning if course.muon and p.ndim > 1 and p not in embeddings]
    others = [p for p in learning if not course.muon or p.ndim < 2 or p in embeddings]
    adam = torch.optim.AdamW(others, lr=course.rate, weight_decay=1e-3, betas=(0.9, 0.99), foreach=True)
    return [adam, Muon(matrices, course.rate)] if matrices else [adam]


def _save(path: Path, step: int, model: nn.Module, average: nn.Module, optimizers: list[torch.optim.Optimizer]) -> None:
    draft = path.with_suffix(".new")
    state = {"step": step, "model": model.state_dict(), "average": average.state_dict()}
    torch.save(state | {"optimizers": [optimizer.state_dict() for optimizer in optimizers]}, draft)
    draft.replace(path)


class _Meter:
    """Mean of the losses since the last report, and the time per step."""

    def __init__(self) -> None:
        self.began, self.steps, self.sums = time.monotonic(), 0, {}

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.began

    def add(self, parts: dict[str, Tensor]) -> None:
        self.steps += 1
        for name, value in parts.items():
            self.sums[name] = self.sums.get(name, 0.0) + float(value.detach())

    def tell(self) -> str:
        means = "  ".join(f"{name} {total / self.steps:.4f}" for name, total in self.sums.items())
        return f"{means}  {self.seconds / self.steps * 1000:.0f} ms a step"
