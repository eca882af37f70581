"""From given frames to what the denoising takes: latents in their place, keyframes, or an image beside the latents.

Which it is depends on the checkpoint. All frames are laid on the timeline that is rendered: frame 0 is alone in the
first latent frame, each later latent frame holds the next `stride` frames (see `soragen.diffusion.grid.Compression`).
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from soragen.catalog import catalog
from soragen.checkpoint import Abilities, Checkpoint
from soragen.diffusion.condition import KnownFrames
from soragen.diffusion.grid import Compression, Grid
from soragen.diffusion.windows import Window
from soragen.errors import InputError
from soragen.models.device import free_memory
from soragen.models.family import (
    Context,
    Denoiser,
    Family,
    ImageCondition,
    ImageFamily,
    Keyframe,
    KeyframeFamily,
    Transformer,
    Vae,
)
from soragen.pipeline.timeline import Given

PREFIX = 2
"""Latent frames of a later clip that are keyframes; what follows them is known in its place, as LTX-Video does it."""
LEAD_IN = 5
"""Latent frames that are encoded before a later clip and dropped: a causal VAE takes that long to forget its start."""
REPEATS = 2
"""How often a step at high noise is taken where known frames are not native (docs/decisions/0010-known-frames.md)."""


@dataclass(frozen=True, eq=False)
class Clip:
    """Frames [t, H, W, 3] float32 in 0..1, of the rendered size, that stand at frame `start` of the timeline."""

    frames: Tensor
    start: int

    @property
    def count(self) -> int:
        return len(self.frames)


@dataclass(frozen=True, eq=False)
class Conditions:
    """What is given, as a checkpoint takes it.

    known: of the whole timeline, latents [1, C, T, H, W] and mask [T]; None where nothing is known in its place.
    keyframes: beside the latents of the whole timeline. image: see `ImageCondition`.
    first: the same frames at the size of the first of two passes; None where there is one, or nothing is given.
    """

    known: KnownFrames | None
    keyframes: tuple[Keyframe, ...] = ()
    image: ImageCondition | None = None
    first: Conditions | None = None


def needed(checkpoint: Checkpoint, clips: Sequence[Clip | Given]) -> None:
    """Raises InputError, with the names of models that can, where `checkpoint` cannot take `clips`.

    A model that was trained on a prompt alone takes any: see `read_conditions`.
    """
    able = checkpoint.abilities
    if able.any_frames or not (able.first_frame or able.last_frame):
        return
    if any(clip.start > 0 for clip in clips) and not able.last_frame:
        raise _unable(checkpoint, "takes given frames at the start alone", lambda other: other.last_frame)
    if any(clip.count > 1 for clip in clips) and not able.text:
        raise _unable(checkpoint, "takes single pictures, not clips", lambda other: other.any_frames)


def note_on(checkpoint: Checkpoint, clips: Sequence[Clip | Given]) -> str:
    """A line for the user where `checkpoint` takes `clips` and was not trained to; "" where nothing is to be said."""
    able = checkpoint.abilities
    if clips and not is_native(able):
        return f"{checkpoint.name} was not trained with given frames and follows them less closely"
    if not able.any_frames and any(clip.count > 1 for clip in clips):
        return f"{checkpoint.name} was trained with one given frame and follows more of them less closely"
    return ""


def read_conditions(
    checkpoint: Checkpoint,
    folder: Path,
    family: Family,
    clips: Sequence[Clip],
    grid: Grid,
    *,
    load_vae: Callable[[], Vae],
    device: torch.device,
    dtype: torch.dtype,
) -> Conditions:
    """`clips` as the transformer of `checkpoint`, in `folder`, takes them; none of them is no condition.

    grid: of the whole timeline. load_vae: is called when latents are needed; the VAE is not held afterwards. device,
    dtype: of the networks that look at images.

    A clip at frame 0 may have any length, a later one begins with a latent frame; frames at its end that fill none are
    left out. A single frame may stand anywhere: the latent frame it lies in is known as one that stands still.

    Raises InputError where the checkpoint cannot take them, ValueError for clips that do not lie on the timeline.
    """
    if not clips:
        return Conditions(None)
    needed(checkpoint, clips)
    _check(clips, grid)
    if isinstance(family, ImageFamily) and family.takes_images(folder):
        pictures = {clip.start: clip.frames[0] for clip in clips}
        if not pictures.keys() <= {0, grid.num_frames - 1}:
            raise ValueError(f"pictures at {sorted(pictures)} of {grid.num_frames} frames: the first, the last or both")
        image = family.read_images(folder, pictures, grid, load_vae=load_vae, device=device, dtype=dtype)
        gc.collect()
        free_memory(device)
        return Conditions(None, image=image)

    as_keyframes = isinstance(family, KeyframeFamily) and family.takes_keyframes(folder)
    known, keyframes = _encode(load_vae(), clips, grid, as_keyframes)
    gc.collect()
    free_memory(device)
    return Conditions(_known(checkpoint, known, grid, device), tuple(keyframes))


def bind(transformer: Transformer, context: Context, grid: Grid, conditions: Conditions, window: Window) -> Denoiser:
    """The denoiser of one prompt on `grid`, that of `window`, which sees the keyframes in it and the image.

    A keyframe outside of it is left to the window that it lies in.
    """
    more: dict[str, Any] = {}
    if conditions.keyframes:
        first = window.start * grid.compression.stride[0]  # the window's own frame 0
        here = (Keyframe(keyframe.latents, keyframe.frame - first) for keyframe in conditions.keyframes)
        more["keyframes"] = tuple(keyframe for keyframe in here if 0 <= keyframe.frame < grid.num_frames)
    if conditions.image is not None:
        more["image"] = conditions.image
    return transformer.bind(context, grid, **more)


@dataclass(frozen=True, eq=False)
class _Known:
    """Latents [1, C, t, H, W] that are known in their place, from latent frame `start` on."""

    latents: Tensor
    start: int


def _encode(vae: Vae, clips: Sequence[Clip], grid: Grid, as_keyframes: bool) -> tuple[list[_Known], list[Keyframe]]:
    known: list[_Known] = []
    keyframes: list[Keyframe] = []
    for clip in clips:
        if clip.start == 0:
            known.append(_Known(_encode_start(vae, clip.frames, grid.compression), 0))
        elif not as_keyframes:
            known.append(_encode_later(vae, clip, grid.compression))
        else:
            for latents, frame in _encode_alone(vae, clip, grid.compression):
                keyframes.append(Keyframe(latents[:, :, :PREFIX], frame))
                if latents.shape[2] > PREFIX:
                    known.append(_Known(latents[:, :, PREFIX:], frame // grid.compression.stride[0] + PREFIX))
    return known, keyframes


def _encode_start(vae: Vae, frames: Tensor, compression: Compression) -> Tensor:
    """Latents [1, C, t, H, W] of a video that begins with `frames` [t, H, W, 3], as far as they fill latent frames."""
    return vae.encode([frames[: _whole(frames, compression)]])


def _whole(frames: Tensor, compression: Compression) -> int:
    """The most of `frames` that are a whole number of latent frames."""
    held = compression.latent_frames(len(frames))
    return compression.num_frames(held - (compression.num_frames(held) > len(frames)))


def _encode_later(vae: Vae, clip: Clip, compression: Compression) -> _Known:
    """A clip behind a lead-in, its own first frame standing still, whose latents are dropped."""
    frames, stride = clip.frames, compression.stride[0]
    index = compression.latent_frames(clip.start + 1) - 1  # of the latent frame that holds the clip's first frame
    if len(frames) < stride:
        frames = torch.cat([frames, frames[-1:].expand(stride - len(frames), -1, -1, -1)])
    elif compression.num_frames(index) != clip.start:
        raise ValueError(f"a clip at frame {clip.start} does not begin with a latent frame of {stride} frames")
    still = frames[:1].expand(compression.num_frames(LEAD_IN), -1, -1, -1)
    latents = vae.encode([still, frames[: len(frames) // stride * stride]])
    return _Known(latents[:, :, LEAD_IN:], index)


def _encode_alone(vae: Vae, clip: Clip, compression: Compression) -> Iterator[tuple[Tensor, int]]:
    """Pieces of a clip as videos of their own: latents [1, C, t, H, W], and the frame at which they begin.

    What is known in its place must fill latent frames of the timeline. So the piece that may be longer than `PREFIX`
    begins at the last frame of one, and the frames before it are a piece that is not.
    """
    stride, short = compression.stride[0], compression.num_frames(PREFIX)
    before = -clip.start % stride
    if before or len(clip.frames) < short:
        yield _encode_start(vae, clip.frames[:short], compression), clip.start
    rest = clip.frames[before:]
    if len(rest) >= short:
        yield _encode_start(vae, rest, compression), clip.start + before


def _known(checkpoint: Checkpoint, pieces: Sequence[_Known], grid: Grid, device: torch.device) -> KnownFrames | None:
    if not pieces:
        return None
    latents = torch.zeros(1, pieces[0].latents.shape[1], *grid.latent_shape, device=device)
    mask = torch.ones(grid.latent_shape[0], device=device)
    for piece in pieces:
        place = slice(piece.start, piece.start + piece.latents.shape[2])
        latents[:, :, place] = piece.latents.to(latents)
        mask[place] = 0
    able = checkpoint.abilities
    return KnownFrames(latents, mask, native=is_native(able), repeats=repeats_of(able))


def is_native(able: Abilities) -> bool:
    """Whether the checkpoint was trained with given frames, see `KnownFrames`."""
    return able.any_frames or able.first_frame


def repeats_of(able: Abilities) -> int:
    """How often a step at high noise is taken where frames are given."""
    return 1 if is_native(able) else REPEATS


def _check(clips: Sequence[Clip], grid: Grid) -> None:
    """Raises ValueError for clips that overlap, lie outside the timeline or have another size."""
    end = 0
    for clip in sorted(clips, key=lambda clip: clip.start):
        if clip.start < end or clip.start + len(clip.frames) > grid.num_frames or len(clip.frames) == 0:
            raise ValueError(f"a clip of {len(clip.frames)} frames at {clip.start}, of {grid.num_frames} frames")
        if clip.frames.shape[1:] != (grid.height, grid.width, 3):
            raise ValueError(f"frames {tuple(clip.frames.shape)} for {grid.width}x{grid.height}")
        end = clip.start + len(clip.frames)


def _unable(checkpoint: Checkpoint, what: str, can: Callable[[Abilities], bool]) -> InputError:
    """The error for an ability that `checkpoint` lacks; `can` tells the checkpoints that have it."""
    others = [name for name, other in catalog().items() if can(other.abilities) or other.abilities.any_frames]
    return InputError(f"{checkpoint.name} {what}", f"models that can take these: {', '.join(others)}")
