"""What a clip shows: six discrete attributes, the weather, and a tuple of continuous random numbers."""

from __future__ import annotations

import hashlib
import random
from dataclasses import dataclass, replace

SUBJECTS: tuple[str, ...] = (
    "ball",
    "cube",
    "cone",
    "tree",
    "house",
    "car",
    "boat",
    "rocket",
    "robot",
    "snowman",
    "mushroom",
    "duck",
)
COLOURS: tuple[str, ...] = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "white", "black")
LOOKS_SIDEWAYS: frozenset[str] = frozenset({"car", "boat", "duck"})
ALWAYS_TURNED: frozenset[str] = frozenset({"cube", "house"})  # never seen flat from the front: two faces must show
MOTIONS: tuple[str, ...] = (
    "still",
    "bouncing",
    "spinning",
    "moving left",
    "moving right",
    "growing",
    "shrinking",
    "swaying",
    "rising",
)
GROUNDS: tuple[str, ...] = ("grass", "desert", "snow", "checker", "ocean")
TIMES: tuple[str, ...] = ("day", "sunset", "night", "overcast")
CAMERAS: tuple[str, ...] = ("static", "pan left", "pan right", "zoom in", "zoom out", "orbit")

ATTRIBUTES: dict[str, tuple[str, ...]] = {
    "subject": SUBJECTS,
    "colour": COLOURS,
    "motion": MOTIONS,
    "ground": GROUNDS,
    "time": TIMES,
    "camera": CAMERAS,
}

WEATHERS: tuple[str, ...] = ("clear", "fog", "snowfall")
"""The seventh thing that a caption may name. Not among ATTRIBUTES, which are what the probe tells."""
WEATHER_SHARE = 0.25

# Names of the continuous random numbers, in the order they lie in Scene.jitter. "side", "orbit_side" and
# "spin_side" are no longer asked for; their places stay, so that a shard's number gives the scenes that it always gave.
JITTER: tuple[str, ...] = (
    "size",
    "heading",
    "side",
    "offset_x",
    "offset_z",
    "aspect",
    "hue",
    "value",
    "saturation",
    "phase",
    "cam_elevation",
    "cam_azimuth",
    "cam_target",
    "orbit_side",
    "light_side",
    "light_angle",
    "sun_height",
    "sun_azimuth",
    "clouds",
    "sky",
    "ground_u",
    "ground_v",
    "ground_tint",
    "hills",
    "speed",
    "spin_side",
)
_JITTER_INDEX: dict[str, int] = {name: i for i, name in enumerate(JITTER)}
_SWAP: dict[str, str] = {
    "moving left": "moving right",
    "moving right": "moving left",
    "pan left": "pan right",
    "pan right": "pan left",
}
_HELD_OUT_PERCENT = 10


@dataclass(frozen=True)
class Scene:
    """One clip: attribute words and random numbers in [0, 1) (see JITTER for their names)."""

    subject: str
    colour: str
    motion: str
    ground: str
    time: str
    camera: str
    jitter: tuple[float, ...]
    weather: str = "clear"

    def indices(self) -> dict[str, int]:
        """Attribute name -> index of this scene's value in ATTRIBUTES."""
        return {name: values.index(getattr(self, name)) for name, values in ATTRIBUTES.items()}

    @property
    def is_handed(self) -> bool:
        """Whether the mirror image is none of this world, where all turns one way, looks right unless it goes left and
        shows the same of two faces.

        No sentence says which: a small model that has to guess draws both at once, a duck with a head on neither side.
        """
        looks = self.subject in LOOKS_SIDEWAYS and self.motion not in _SWAP
        turned = self.subject in ALWAYS_TURNED
        snows = self.weather == "snowfall"  # in one pattern
        return looks or turned or snows or self.motion in ("spinning", "swaying") or self.camera == "orbit"

    def mirrored(self) -> Scene:
        """The scene that describes this one's horizontally flipped pixels (the caller flips them)."""
        return replace(self, motion=_SWAP.get(self.motion, self.motion), camera=_SWAP.get(self.camera, self.camera))

    def rand(self, name: str, low: float = 0.0, high: float = 1.0) -> float:
        """The named random number, scaled to [low, high)."""
        return low + (high - low) * self.jitter[_JITTER_INDEX[name]]

    def sign(self, name: str) -> float:
        """The named random number as a fair coin: -1.0 or +1.0."""
        return 1.0 if self.rand(name) < 0.5 else -1.0


def is_held_out(scene: Scene) -> bool:
    """True for about 10 % of the (subject, colour, ground, time) combinations, which training never sees."""
    key = "|".join((scene.subject, scene.colour, scene.ground, scene.time)).encode()
    return int.from_bytes(hashlib.sha256(key).digest()[:4], "big") % 100 < _HELD_OUT_PERCENT


def sample_scene(rng: random.Random, *, held_out: bool = False, weather: bool = False) -> Scene:
    """Draw a scene uniformly over all attributes, from the training part or (held_out=True) from the held-out part.

    With weather, a quarter of the scenes have some; it is drawn last, so that all else is as without.
    """
    jitter = tuple(rng.random() for _ in JITTER)
    while True:
        scene = Scene(**{name: rng.choice(values) for name, values in ATTRIBUTES.items()}, jitter=jitter)
        if is_held_out(scene) == held_out:
            break
    if weather and rng.random() < WEATHER_SHARE:
        return replace(scene, weather=rng.choice(WEATHERS[1:]))
    return scene
