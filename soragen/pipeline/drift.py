"""Long videos keep their colours and contrast: what is made is pulled towards what was there first.

A window continues the one before it, and its small error with it: over ten of them colours shift and contrast fades or
grows. The mean and standard deviation of a latent channel are what such drift moves first; giving latents those of
other latents is adaptive instance normalisation (AdaIN, Huang and Belongie, arXiv:1703.06868). The pull is weakest
where a window sets out, so that nothing is seen at the join, and whole where the next one takes over.
docs/decisions/0012 has what it does.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from soragen.pipeline.plan import Plan

PULL = 1.0
"""The part of the way: 0 leaves a window as it is, 1 gives its last latent frame the statistics of the first ones."""
CONTINUED = 0.5
"""The same towards what is given and continued, of which a sentence may ask for something else."""
MOST_SCALE = 2.0
"""A channel is never stretched by more, nor squeezed by more than its inverse: something may truly appear or go."""


@dataclass(frozen=True)
class Anchor:
    """What windows are pulled to: the latent frames of the timeline that `frames` [T] names, and from which window on.

    share: of the way, 0..1. contrast: the deviation is pulled as well, and not the mean alone.
    """

    frames: Tensor
    from_window: int
    share: float
    contrast: bool
    backward: bool

    def pull(self, made: Tensor, latents: Tensor) -> Tensor:
        """What a window made [B, C, t, H, W], pulled towards the `latents` [B, C, T, H, W] of the timeline."""
        return pulled(made, latents[:, :, self.frames], self.share, contrast=self.contrast, backward=self.backward)


def find_anchor(plan: Plan, is_given: Tensor, doubts: bool) -> Anchor | None:
    """What the windows of `plan` are pulled to; None where they are not.

    is_given [T]: the latent frames of the timeline that are known from the start. doubts: whether the transformer is
    told of more noise than there is. That strengthens colours a little with each continuation, so what is made is
    pulled to the colours of what it continues, even in a single window. Otherwise a video of more than two windows is
    pulled to what the first one made. The first latent frame of a causal VAE holds a single frame, and is never meant.

    There is no anchor where the video has to arrive at given frames, which may look otherwise, nor where it is denoised
    from another one, or from its own first pass.
    """
    timeline = plan.timeline
    if timeline.has_given_end or timeline.from_source or plan.first:
        return None
    frames = is_given.clone()
    frames[0] = False
    if doubts and bool(frames.any()):
        return Anchor(frames, 0, CONTINUED, contrast=False, backward=timeline.grows_backward)
    if len(plan.windows) < 3:
        return None
    new = plan.windows[0].new
    frames[:] = False
    frames[max(1, new.start) : new.stop] = True
    return Anchor(frames, 1, PULL, contrast=True, backward=timeline.grows_backward)


def pulled(latents: Tensor, first: Tensor, pull: float, *, contrast: bool = True, backward: bool = False) -> Tensor:
    """`latents` [B, C, T, H, W] with the mean of each channel, frame by frame, on the way to that of `first`.

    How far grows evenly from frame to frame, up to `pull` in the last one, or in the first where it goes `backward`.
    contrast: the deviation of each channel goes the same way.

    first: [B, C, t, H, W], of the same video. Its mean and deviation are those over time and place.
    """
    deviation, mean = torch.std_mean(latents, dim=(3, 4), correction=0, keepdim=True)
    first_deviation, first_mean = torch.std_mean(first, dim=(2, 3, 4), correction=0, keepdim=True)
    scale = torch.ones_like(deviation)
    if contrast:
        scale = (first_deviation / deviation.clamp(min=1e-6)).clamp(1 / MOST_SCALE, MOST_SCALE)
    count = latents.shape[2]
    share = torch.arange(1, count + 1).to(latents).view(-1, 1, 1) * (pull / count)
    return torch.lerp(latents, (latents - mean) * scale + first_mean, share.flip(0) if backward else share)
