"""Long videos keep their colours and contrast: each window is pulled a part of the way towards the first one.

A window continues the one before it, and its small error with it: over ten of them colours shift and contrast fades or
grows. The mean and standard deviation of a latent channel are what such drift moves first; giving latents those of
other latents is adaptive instance normalisation (AdaIN, Huang and Belongie, arXiv:1703.06868). docs/decisions/0012
has what it does.
"""

from __future__ import annotations

import torch
from torch import Tensor

from soragen.pipeline.plan import Plan

PULL = 0.5
"""The part of the way: 0 leaves a window as it is, 1 gives it the statistics of the first."""
MOST_SCALE = 1.25
"""A channel is never stretched by more, nor squeezed by more than its inverse: something may truly appear or go."""


def anchored_to(plan: Plan) -> slice | None:
    """The latent frames of the timeline whose statistics later windows are pulled to; None where none are.

    Those of the first window, but for the very first, in which a causal VAE holds a single frame. Not where the video
    has to arrive at given frames, which may look otherwise, nor where it is denoised from another one, or from its own
    first pass.
    """
    timeline = plan.timeline
    if len(plan.windows) < 3 or timeline.has_given_end or timeline.from_source or plan.first:
        return None
    new = plan.windows[0].new
    return slice(max(1, new.start), new.stop)


def anchor(latents: Tensor, first: Tensor, pull: float) -> Tensor:
    """`latents` [B, C, T, H, W] with the mean and deviation of each channel `pull` of the way to those of `first`.

    first: [B, C, t, H, W], of the same video. Their deviations are those over time and place.
    """
    mean, deviation = _statistics(latents)
    first_mean, first_deviation = _statistics(first)
    scale = (first_deviation / deviation.clamp(min=1e-6)).clamp(1 / MOST_SCALE, MOST_SCALE)
    return torch.lerp(latents, (latents - mean) * scale + first_mean, pull)


def _statistics(latents: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each channel [B, C, 1, 1, 1]."""
    deviation, mean = torch.std_mean(latents, dim=(2, 3, 4), correction=0, keepdim=True)
    return mean, deviation
