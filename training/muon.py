"""torch's Muon (Jordan et al. 2024), with matrices of one shape orthogonalised together, in whichever numbers are fast.

torch's own does it one by one in bfloat16. On a processor that emulates those that takes longer than the rest of a
training step. Processes that train together share the matrices out.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from typing import cast

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from training.precision import autocast


def orthogonalise(matrices: Tensor, coefficients: tuple[float, float, float], num_steps: int) -> Tensor:
    """[n, rows, columns] with the singular values of each brought near 1 by Newton-Schulz steps, in float32."""
    if matrices.shape[1] > matrices.shape[2]:
        return orthogonalise(matrices.mT, coefficients, num_steps).mT
    a, b, c = coefficients
    x = matrices / matrices.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    with autocast(matrices.device.type):
        for _ in range(num_steps):
            gram = x @ x.mT
            x = a * x + (b * gram + c * gram @ gram) @ x
    return x.float()


def orthogonalise_together(matrices: Tensor, coefficients: tuple[float, float, float], num_steps: int) -> Tensor:
    """The same, of matrices that all processes have alike: each does its part of them, and all get the whole."""
    if not dist.is_initialized():
        return orthogonalise(matrices, coefficients, num_steps)
    part = slice(dist.get_rank(), None, dist.get_world_size())
    turned = torch.zeros_like(matrices)
    turned[part] = orthogonalise(matrices[part], coefficients, num_steps)
    dist.all_reduce(turned)
    return turned


class Muon(torch.optim.Muon):
    """Steps as torch's with Nesterov momentum and `adjust_lr_fn="match_rms_adamw"` does; the state is its, too."""

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        loss = closure() if closure is not None else None
        for group in self.param_groups:
            alike: dict[torch.Size, list[Tensor]] = defaultdict(list)
            for p in group["params"]:
                if p.grad is not None:
                    alike[p.shape].append(p)
            for shape, params in alike.items():
                updates = []
                for p in params:
                    momentum = self.state[p].setdefault("momentum_buffer", torch.zeros_like(p))
                    grad = cast("Tensor", p.grad)
                    momentum.lerp_(grad, 1 - group["momentum"])
                    updates.append(grad.lerp(momentum, group["momentum"]))
                turned = orthogonalise_together(torch.stack(updates), group["ns_coefficients"], group["ns_steps"])
                rate = group["lr"] * 0.2 * max(shape) ** 0.5
                for p, update in zip(params, turned, strict=True):
                    p.mul_(1 - group["lr"] * group["weight_decay"]).add_(update, alpha=-rate)
        return loss


class Conv(nn.Linear):
    """A convolution of 3x3 whose weight is a matrix [out, in * 9], as Muon takes it."""

    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__(9 * before, after)
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight.unflatten(1, (-1, 3, 3)), self.bias, self.stride, 1)
