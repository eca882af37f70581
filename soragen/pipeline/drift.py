"""Long videos keep their colours and contrast: what is made is pulled towards what was there first.

A window continues the one before it, and its small error with it: over ten of them colours shift and contrast fades or
grows. The mean and standard deviation of a latent channel are what such drift moves first; giving latents those of
other latents is adaptive instance normalisation (AdaIN, Huang and Belongie, arXiv:1703.06868). The pull is weakest
where a window sets out, so that nothing is seen at the join, and whole where the next one takes over.
docs/decisions/0012 has what it does.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from soragen.diffusion.statistics import CONTINUED, pulled
from soragen.pipeline.plan import Plan

PULL = 1.0
"""The part of the way: 0 leaves a window as it is, 1 gives its last latent frame the statistics of the first ones."""


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
