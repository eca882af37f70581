"""Muon of training/muon.py steps as torch's does."""

from __future__ import annotations

import torch
from torch import nn

from training.muon import Muon, orthogonalise


def test_steps_as_torch_does() -> None:
    torch.manual_seed(0)
    shapes = [(24, 16), (24, 16), (16, 40)]
    ours, theirs = ([nn.Parameter(torch.zeros(shape)) for shape in shapes] for _ in range(2))
    optimizers = [
        kind(params, lr=1e-2, momentum=0.95, weight_decay=0.01, adjust_lr_fn="match_rms_adamw")
        for kind, params in ((Muon, ours), (torch.optim.Muon, theirs))
    ]
    for _ in range(3):
        for a, b in zip(ours, theirs, strict=True):
            a.grad = torch.randn(a.shape)
            b.grad = a.grad.clone()
        for optimizer in optimizers:
            optimizer.step()
    for a, b in zip(ours, theirs, strict=True):
        assert (a - b).abs().mean() < 0.05 * b.abs().mean()  # torch's works in bfloat16, processors round it apart


def test_singular_values_are_near_one() -> None:
    torch.manual_seed(0)
    values = torch.linalg.svdvals(orthogonalise(torch.randn(2, 30, 20), (3.4445, -4.7750, 2.0315), 5))
    assert values.min() > 0.5 and values.max() < 1.3
