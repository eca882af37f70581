"""A picture that the user gives, as a frame."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from soragen.errors import InputError
from soragen.size import Fit, VideoSize
from soragen.video.facts import VideoFacts, video_facts
from soragen.video.read import frames_of

if TYPE_CHECKING:
    from torch import Tensor

_ANIMATED = ("gif", "apng", "webp_anim")


def read_picture(path: Path, *, width: int, height: int, fit: Fit = "crop") -> Tensor:
    """The picture at `path` as a frame [height, width, 3] uint8, the first one of an animated picture.

    What EXIF says about rotation is done, what is transparent is shown on white, 16 bits become 8.
    Raises InputError when `path` is missing, empty, cut off, not on this machine, not a picture, or a video.
    """
    facts = _facts(path)
    _, frames = frames_of(path, facts, width=width, height=height, fit=fit, count=1)
    return next(frames)[0]


def picture_size(path: Path) -> VideoSize:
    """The size of the picture at `path` as it is shown, one frame. Raises InputError as `read_picture` does."""
    return frames_of(path, _facts(path), count=1)[0]


def _facts(path: Path) -> VideoFacts:
    facts = video_facts(path)
    if not facts.container.endswith("_pipe") and facts.container not in _ANIMATED and facts.num_frames > 1:
        wrong = f"{path} is a video of {facts.num_frames} frames where a picture is needed"
        raise InputError(wrong, "give a PNG, JPEG or WebP; `soragen extend` goes on from a video")
    return facts
