"""What a checkpoint is, in the words of weights.toml: `Checkpoint` and its parts, frozen. No torch.

`soragen.catalog` reads them.
"""

from __future__ import annotations

import hashlib
import math
import re
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

from soragen.errors import InputError
from soragen.installed import File

EMBEDDED = "embedded"
SHIFTED = ("flow", "flow_shifted_twice", "flow_truncated")
"""Schedules that take a shift."""
SCHEDULES = (*SHIFTED, "flow_dynamic", "linear_quadratic", "listed")
SOLVERS = ("euler", "unipc", "renoise")
DTYPES = ("float32", "bfloat16", "float16")
LORAS = {"lora": "", "lora_high": "high", "lora_low": "low"}
"""Names of parts that are LoRAs, to the transformer that they change: all of them, or one of two."""


@dataclass(frozen=True)
class Licence:
    """id: SPDX where there is one. The rest are short answers for people: may I sell it, where, what of my videos."""

    id: str
    url: str
    commercial: str
    territory: str
    output: str


@dataclass(frozen=True)
class Part:
    """A network of a checkpoint with terms of its own. folder: where it is, as text_encoder.

    source: the repository it comes from, where that is not the checkpoint's, and its revision. file: see `Checkpoint`.
    A folder named in `LORAS` is a LoRA, which belongs to the checkpoint: `file` is added to its transformer as it is
    loaded.
    """

    folder: str
    description: str
    licence: Licence
    source: str = ""
    revision: str = ""
    file: str = ""


@dataclass(frozen=True)
class Native:
    """What the checkpoint was trained on.

    min_area, max_area: the smallest and largest area one grid makes sense of, as multiples of width x height; without a
    min_area it is 1 / max_area.
    max_num_frames: the longest clip it was trained on; longer ones are made in windows.
    """

    width: int
    height: int
    num_frames: int
    fps: Fraction
    max_area: float
    max_num_frames: int
    min_area: float = 0.0

    def knows_area(self, area: float) -> bool:
        """Whether frames of `area` pixels are rendered as they are."""
        native = self.width * self.height
        return native * (self.min_area or 1 / self.max_area) <= area <= native * self.max_area

    def rendered(self, width: int, height: int) -> tuple[int, int]:
        """The sides of what is rendered for a video of these: the same where their area is known, otherwise the same
        aspect at the native area.
        """
        if self.knows_area(width * height):
            return width, height
        factor = math.sqrt(self.width * self.height / (width * height))
        return max(2, round(width * factor)), max(2, round(height * factor))

    @property
    def seconds(self) -> Fraction:
        """How long the native clip lasts. Its first frame is the start, so 25 frames at 12 fps are 2 seconds."""
        return max(Fraction(self.num_frames - 1), Fraction(1)) / self.fps


@dataclass(frozen=True)
class ShiftAt:
    """The shift for a size, "832x480"."""

    size: str
    shift: float

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[1-9]\d*x[1-9]\d*", self.size):
            raise InputError(f"a shift is given for the size {self.size!r}", 'write it as "832x480"')

    def distance(self, area: float) -> float:
        """How far `area` is from this size's, as a ratio; 0 when they are equal."""
        width, _, height = self.size.partition("x")
        return abs(math.log(area / (int(width) * int(height))))


@dataclass(frozen=True)
class Defaults:
    """What is used where the user asked for nothing. width and height may differ from the native grid.

    shifts: for checkpoints whose shift depends on the size; the one nearest in area holds, and `shift` where there are
    none. low_noise_guidance_scale: of the second transformer of two, 0 where it is `guidance_scale`.
    timesteps: of a distilled checkpoint whose schedule is "listed", as many as its steps.
    second_pass: timesteps of the steps over upsampled latents, for checkpoints that have a latent upsampler.
    """

    width: int
    height: int
    num_steps: int
    guidance_scale: float
    shift: float
    schedule: str = field(metadata={"choices": SCHEDULES})
    solver: str = field(metadata={"choices": SOLVERS})
    negative_prompt: str
    shifts: tuple[ShiftAt, ...] = ()
    low_noise_guidance_scale: float = 0.0
    timesteps: tuple[float, ...] = ()
    second_pass: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if len(self.timesteps) != (self.num_steps if self.schedule == "listed" else 0):
            raise InputError(
                f"the schedule {self.schedule!r} of {self.num_steps} steps has {len(self.timesteps)} timesteps",
                'schedule = "listed" takes one for each of num_steps, other schedules none',
            )

    def shift_for(self, width: int, height: int) -> float:
        nearest = min(self.shifts, key=lambda at: at.distance(width * height), default=None)
        return self.shift if nearest is None else nearest.shift


@dataclass(frozen=True)
class Dtypes:
    """The type each network computes in on an accelerator. vae: as it decodes; given frames are encoded in float32."""

    text_encoder: str = field(metadata={"choices": DTYPES})
    transformer: str = field(metadata={"choices": DTYPES})
    vae: str = field(metadata={"choices": DTYPES})


@dataclass(frozen=True)
class Abilities:
    """What the checkpoint was trained to take: a prompt alone, a given first or last frame, any given frames."""

    text: bool
    first_frame: bool
    last_frame: bool
    any_frames: bool


@dataclass(frozen=True)
class Checkpoint:
    """source: "embedded", a hub repository "owner/name", or the absolute path of a folder. revision: of the repository.

    file: of a repository that holds files as their authors store them, the one with transformer and VAE.
    parts: those with a licence or a source of their own.
    signature: values of config files that tell the checkpoint from others with the same transformer_class, by component
    and key: "transformer.num_layers".
    config: values that the published config files lack and the networks cannot be built without, by component and key.
    download_bytes: about, where `files` does not say.
    files: empty when they are not known in advance (a folder of the user's own).
    """

    name: str
    family: str
    transformer_class: str
    description: str
    source: str
    licence: Licence
    native: Native
    defaults: Defaults
    dtypes: Dtypes
    abilities: Abilities
    revision: str = ""
    file: str = ""
    parts: tuple[Part, ...] = ()
    signature: dict[str, Any] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    download_bytes: int = 0
    files: tuple[File, ...] = ()

    @property
    def is_hub(self) -> bool:
        """Whether it comes from a hub: `soragen models pull` puts it on this machine."""
        return self.source != EMBEDDED and not Path(self.source).expanduser().is_absolute()

    @property
    def num_bytes(self) -> int:
        """The size of all files; about, before they are known; 0 when not even that is known."""
        return sum(file.size for file in self.files) or self.download_bytes

    @property
    def loras(self) -> tuple[Part, ...]:
        """The parts that are LoRAs."""
        return tuple(part for part in self.parts if part.folder in LORAS)

    @property
    def licences(self) -> dict[str, Licence]:
        """All licences by what they cover; the checkpoint's own under its name."""
        return {self.name: self.licence, **{f"{part.folder} ({part.description})": part.licence for part in self.parts}}

    @property
    def digest(self) -> str:
        """SHA-256 of the list of files, the hash of a model in one word; "" when the files are not known in advance."""
        listing = "".join(f"{file.sha256}  {file.path}\n" for file in sorted(self.files, key=lambda file: file.path))
        return hashlib.sha256(listing.encode()).hexdigest() if self.files else ""
