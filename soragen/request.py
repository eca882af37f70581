"""What was asked, fully resolved, and the recipe that is stored inside the video.

A `Request` has no "default": every value is the one that is used. Its dictionary form is the `request` part of the
recipe.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, cast

from soragen.size import FITS, Fit, VideoSize

RECIPE_VERSION = 1

QUANTIZED = ("int8", "fp8")
"""How weights of 8 bits may be stored."""
STRENGTH = 0.75
"""Of a restyle, unless another one is asked for."""
HELD_UNTIL = 0.8
"""The strength of a restyle up to which the forms of its video are held."""
ATTENTIONS = {"sdpa": True, "flash3": True, "sage": False}
"""Name to whether it is exact: equal to the others but for the order in which it adds."""


@dataclass(frozen=True)
class Source:
    """A file that was given. Its name and hash are in the recipe; where it lies on this machine is nobody's business.

    num_frames: how many it has, at the frame rate of the request.
    """

    path: Path
    sha256: str
    num_frames: int


@dataclass(frozen=True)
class Edit:
    """What a verb makes of given files, in the order in which it names them.

    verb: "extend", "loop", "animate", "connect" or "restyle"; "continue" for a shot that goes on from the one before,
    and is a file of its own. backward: of extend. strength: of restyle, 0..1.
    fit: of pictures, and of clips after the first.
    """

    verb: str
    sources: tuple[Source, ...] = ()
    backward: bool = False
    strength: float = 1.0
    fit: Fit = "crop"

    def to_dict(self) -> dict[str, Any]:
        return {
            "verb": self.verb,
            "sources": [
                {"name": source.path.name, "sha256": source.sha256, "num_frames": source.num_frames}
                for source in self.sources
            ],
            **({"backward": True} if self.backward else {}),
            **({"strength": self.strength} if self.verb == "restyle" else {}),
            **({"fit": self.fit} if self.fit != "crop" else {}),
        }

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Edit:
        """The edit that `to_dict` wrote; the paths of its sources are bare names. Raises as `Request.from_dict`."""
        values = dict(values)
        if values.get("fit", "crop") not in FITS:
            raise ValueError(f"fit {values['fit']!r}")
        sources = tuple(
            Source(Path(str(source["name"])), str(source["sha256"]), int(source["num_frames"]))
            for source in values["sources"]
        )
        return cls(
            verb=str(values["verb"]),
            sources=sources,
            backward=values.get("backward") is True,
            strength=float(values.get("strength", 1.0)),
            fit=cast("Fit", values.get("fit", "crop")),
        )


@dataclass(frozen=True)
class LoraFile:
    """A file of changes to the transformer. Its name and hash are in the recipe, as those of a `Source` are.

    scale: how much of them is added. target: "high" or "low" noise, of a checkpoint with two transformers; "" is all.
    partial: whether it is taken where only a part of it fits.
    """

    path: Path
    sha256: str
    scale: float = 1.0
    target: str = ""
    partial: bool = False

    @property
    def spelled(self) -> str:
        """As the user would type it, without the folder."""
        scale = "" if self.scale == 1 else f":{self.scale:g}"
        return f"{self.path.name}{scale}{'@' if self.target else ''}{self.target}"

    def to_dict(self) -> dict[str, Any]:
        return {
            "name": self.path.name,
            "sha256": self.sha256,
            "scale": self.scale,
            **({"target": self.target} if self.target else {}),
            **({"partial": True} if self.partial else {}),
        }

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> LoraFile:
        """The file that `to_dict` wrote; its path is a bare name."""
        return cls(
            path=Path(Path(str(values["name"])).name),
            sha256=str(values["sha256"]),
            scale=float(values["scale"]),
            target=str(values.get("target", "")),
            partial=values.get("partial") is True,
        )


@dataclass(frozen=True)
class Request:
    """One video to make. size: of the file, the frames of sources that stand in it included.

    seed: 0..2**63-1. guidance_scale: 1 means no guidance; low_noise_guidance_scale: of the second transformer, for low
    noise, where a checkpoint has two, and else the same. shift: of the noise levels (1 = none).
    checkpoint: a name in weights.toml, or the path of a folder in the published layout.
    edit: what is done with given files; None for a video from the prompt alone.
    loras: what is added to the weights of the transformer.
    quantize: one of `QUANTIZED`, for the blocks of the transformer and of the text encoder; None is as they are stored.
    attention: one of `ATTENTIONS`.
    direct: the whole size and duration are rendered at once, whatever the checkpoint was trained on.
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
    edit: Edit | None = None
    loras: tuple[LoraFile, ...] = ()
    direct: bool = False
    quantize: str | None = None
    attention: str = "sdpa"

    @property
    def is_guided(self) -> bool:
        """Whether the negative prompt leads away from something, at any step."""
        same = self.prompt == self.negative_prompt  # then there is nothing to lead away from
        return not same and (self.guidance_scale != 1 or self.low_noise_guidance_scale != 1)

    @property
    def held(self) -> float:
        """How much of what the model misses of a video that is restyled is kept, 0..1; see `diffusion.guidance.held`.

        All of it, but where so little is to be left of the video that its forms are to go as well.
        """
        if self.edit is None or self.edit.verb != "restyle" or self.edit.strength == 0:
            return 0.0
        return min(1.0, (1 - self.edit.strength) / (1 - HELD_UNTIL))

    @property
    def needs_negative(self) -> bool:
        """Whether the negative prompt is read."""
        return self.is_guided or self.held > 0

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
            **({"edit": self.edit.to_dict()} if self.edit is not None else {}),
            **({"loras": [lora.to_dict() for lora in self.loras]} if self.loras else {}),
            **({"direct": True} if self.direct else {}),
            **({"quantize": self.quantize} if self.quantize is not None else {}),
            **({"attention": self.attention} if not ATTENTIONS[self.attention] else {}),  # another one makes the same
        }

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Request:
        """The request that `to_dict` wrote. Raises KeyError, TypeError or ValueError when `values` is not one."""
        values = dict(values)
        quantize, attention = values.get("quantize"), values.get("attention", "sdpa")
        if quantize not in (None, *QUANTIZED) or attention not in ATTENTIONS:
            raise ValueError(f"quantize {quantize!r}, attention {attention!r}")
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
            edit=Edit.from_dict(values["edit"]) if "edit" in values else None,
            loras=tuple(LoraFile.from_dict(lora) for lora in values.get("loras", ())),
            direct=values.get("direct") is True,
            quantize=quantize,
            attention=attention,
        )
