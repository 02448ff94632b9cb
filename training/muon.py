"""Muon optimizer (Jordan et al. 2024): momentum updates, each matrix made nearly orthogonal before it is applied.

It learns more per step than AdamW where steps are few and expensive. AdamW trains the parameters that are no matrices.
"""

import torch
import torch.distributed as dist
from torch import Tensor, nn

_COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # of the quintic that brings singular values near 1 in five iterations
_SCALE = 0.2  # makes the step as long as AdamW's, so that both use one learning rate (Liu et al. 2025)


class Muon(torch.optim.Optimizer):
    """Optimizer for weights of two or more dimensions; a convolution's are flattened to [out, rest].

    Each process of the group computes the updates of its share of the matrices; gradients are the same in all.
    """

    def __init__(self, parameters: list[nn.Parameter], lr: float, momentum: float = 0.95) -> None:
        super().__init__(parameters, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]
        for group in self.param_groups:
            parameters = [p for p in group["params"] if p.grad is not None]
            updates = [torch.zeros_like(p, memory_format=torch.contiguous_format) for p in parameters]
            for index, (parameter, update) in enumerate(zip(parameters, updates, strict=True)):
                momentum = self.state[parameter].setdefault("momentum", torch.zeros_like(parameter))
                momentum.lerp_(parameter.grad, 1 - group["momentum"])
                if index % dist.get_world_size() == dist.get_rank():
                    matrix = parameter.grad.lerp(momentum, group["momentum"]).reshape(len(parameter), -1)
                    update.copy_(orthogonal(matrix).view_as(update)).mul_(_SCALE * max(matrix.shape) ** 0.5)
            flat = torch.cat([each.view(-1) for each in updates])
            dist.all_reduce(flat)
            for parameter, update in zip(parameters, flat.split([p.numel() for p in parameters]), strict=True):
                parameter.sub_(update.view_as(parameter), alpha=group["lr"])


def orthogonal(matrix: Tensor) -> Tensor:
    """Return about the nearest orthogonal matrix: singular values between about 0.7 and 1.2."""
    a, b, c = _COEFFICIENTS
    x = matrix.bfloat16()
    x = x / (x.norm() + 1e-7)
    if tall := x.shape[0] > x.shape[1]:
        x = x.T
    for _ in range(5):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return (x.T if tall else x).to(matrix.dtype)
