"""What was asked, fully resolved, and the recipe that is stored inside the video.

A `Request` has no "default": every value is the one that is used. Its dictionary form is the `request` part of the
recipe.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from soragen.size import VideoSize

RECIPE_VERSION = 1


@dataclass(frozen=True)
class Request:
    """One video to make.

    seed: 0..2**63-1. guidance_scale: 1 means no guidance; low_noise_guidance_scale: of the second transformer, for low
    noise, where a checkpoint has two, and else the same. shift: of the noise levels (1 = none).
    checkpoint: a name in weights.toml, or the path of a folder in the published layout.
    """

    prompt: str
    negative_prompt: str
    size: VideoSize
    seed: int
    num_steps: int
    guidance_scale: float
    low_noise_guidance_scale: float
    shift: float
    solver: str
    checkpoint: str

    @property
    def is_guided(self) -> bool:
        """Whether the negative prompt is read, at any step."""
        return self.guidance_scale != 1 or self.low_noise_guidance_scale != 1

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values, in the order in which people read them."""
        low = self.low_noise_guidance_scale
        return {
            "prompt": self.prompt,
            "negative_prompt": self.negative_prompt,
            "width": self.size.width,
            "height": self.size.height,
            "num_frames": self.size.num_frames,
            "fps": str(self.size.fps),
            "seed": self.seed,
            "num_steps": self.num_steps,
            "guidance_scale": self.guidance_scale,
            **({"low_noise_guidance_scale": low} if low != self.guidance_scale else {}),
            "shift": self.shift,
            "solver": self.solver,
            "checkpoint": self.checkpoint,
        }

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Request:
        """The request that `to_dict` wrote. Raises KeyError, TypeError or ValueError when `values` is not one."""
        size = VideoSize(
            int(values["width"]), int(values["height"]), int(values["num_frames"]), Fraction(values["fps"])
        )
        return cls(
            prompt=str(values["prompt"]),
            negative_prompt=str(values["negative_prompt"]),
            size=size,
            seed=int(values["seed"]),
            num_steps=int(values["num_steps"]),
            guidance_scale=float(values["guidance_scale"]),
            low_noise_guidance_scale=float(values.get("low_noise_guidance_scale", values["guidance_scale"])),
            shift=float(values["shift"]),
            solver=str(values["solver"]),
            checkpoint=str(values["checkpoint"]),
        )
