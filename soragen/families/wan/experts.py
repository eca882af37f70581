"""Two transformers that share the denoising: one is trained for high noise, the other one for low (Wan 2.2 A14B).

Only one is in memory. It is loaded when the first step that needs it comes, and the other one goes before that.
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from weakref import WeakSet

from torch import Tensor

from soragen.diffusion.grid import Grid
from soragen.diffusion.schedule import TRAIN_TIMESTEPS, NoiseLevel
from soragen.families.wan.transformer import WanTransformer
from soragen.models.device import free_memory
from soragen.models.family import Context, Denoiser, ImageCondition

Load = Callable[[], WanTransformer]


class Experts:
    """See `soragen.models.family.ImageTransformer`.

    boundary: the share of the training timesteps from which on the expert for high noise takes the step.
    """

    def __init__(self, high_noise: Load, low_noise: Load, boundary: float) -> None:
        self.load = {True: high_noise, False: low_noise}
        self.boundary = boundary * TRAIN_TIMESTEPS
        self._resident: tuple[bool, WanTransformer] | None = None
        self._bindings: WeakSet[Binding] = WeakSet()

    @property
    def resident(self) -> bool | None:
        """Whether the expert in memory is the one for high noise; None before the first step."""
        return self._resident[0] if self._resident is not None else None

    def is_high(self, level: NoiseLevel) -> bool:
        return level.timestep >= self.boundary

    def bind(self, context: Context, grid: Grid, image: ImageCondition | None = None) -> Denoiser:
        binding = Binding(self, context, grid, image)
        self._bindings.add(binding)
        return binding

    def bring(self, level: NoiseLevel) -> WanTransformer:
        """The expert for this level, in memory. The other one is freed before it is loaded."""
        high = self.is_high(level)
        if self._resident is None or self._resident[0] != high:
            if self._resident is not None:
                device = self._resident[1].proj_out.weight.device
                self._resident = None
                for binding in self._bindings:
                    binding.bound = None
                gc.collect()
                free_memory(device)
            self._resident = high, self.load[high]()
        return self._resident[1]


class Binding:
    """A denoiser that asks at every step which expert takes it."""

    def __init__(self, experts: Experts, context: Context, grid: Grid, image: ImageCondition | None) -> None:
        self.experts = experts
        self.arguments = context, grid, image
        self.bound: Denoiser | None = None
        """Of the expert in memory, which it keeps there: the experts take it away when they change."""

    def __call__(self, latents: Tensor, level: NoiseLevel, mask: Tensor | None = None) -> Tensor:
        network = self.experts.bring(level)
        if self.bound is None:
            self.bound = network.bind(*self.arguments)
        return self.bound(latents, level, mask)
