"""The solver of models distilled to a few steps: guess the clean latents, mix them with new noise to the next level.

It is how such models were trained (distribution matching, Yin et al., arXiv:2405.14867), and the multistep sampling of
consistency models (Song et al., arXiv:2303.01469, algorithm 1): no path is followed, so no error is carried along it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from soragen.diffusion.schedule import Schedule


class Renoise:
    """See `soragen.diffusion.solver.Solver`.

    seed: of the noise, which is drawn on the CPU. A generator's first draw is passed over: it is what the denoising of
    a video with this seed starts from.
    """

    def __init__(self, schedule: Schedule, seed: int) -> None:
        self._schedule = schedule
        self._seed = seed
        self._generator: torch.Generator | None = None

    def step(self, index: int, latents: Tensor, clean: Tensor) -> Tensor:
        following = self._schedule[index + 1]
        if following.sigma == 0:
            return following.alpha * clean
        if self._generator is None or index == 0:
            self._generator = torch.Generator("cpu").manual_seed(self._seed)
            torch.randn(clean.shape, generator=self._generator)
        noise = torch.randn(clean.shape, generator=self._generator).to(clean)
        return following.alpha * clean + following.sigma * noise
