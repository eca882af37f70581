"""Pixels to latents to tokens. All rounding of sizes lives here.

Axis letters: B batch, C channels, T frames, H, W, N tokens; t, h, w count tokens along T, H, W.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from math import prod
from typing import TYPE_CHECKING

from soragen.size import VideoSize

if TYPE_CHECKING:  # sizes alone are planned without torch
    from torch import Tensor


@dataclass(frozen=True)
class Compression:
    """How a checkpoint's pixels become tokens.

    stride: (time, height, width) frames or pixels per latent. patch_size: latents per token, in the same order.
    first_frame_alone: causal VAEs hold 1 + k * stride frames, as the first latent frame is a single frame;
    others hold k * stride.
    """

    stride: tuple[int, int, int]
    patch_size: tuple[int, int, int]
    first_frame_alone: bool = True

    def __post_init__(self) -> None:
        if min(*self.stride, *self.patch_size) < 1:
            raise ValueError(f"strides and patch sizes are at least 1: {self}")

    def latent_frames(self, num_frames: int) -> int:
        """The fewest latent frames that hold `num_frames` >= 1 frames."""
        if self.first_frame_alone:
            return 1 + _ceil_div(num_frames - 1, self.stride[0])
        return _ceil_div(num_frames, self.stride[0])

    def num_frames(self, latent_frames: int) -> int:
        """The frames that `latent_frames` >= 1 latent frames decode to."""
        if self.first_frame_alone:
            return 1 + (latent_frames - 1) * self.stride[0]
        return latent_frames * self.stride[0]


@dataclass(frozen=True)
class Grid:
    """What is rendered: the asked size rounded up to the next shape that the checkpoint can hold.

    size: what was asked. latent_shape: (T, H, W) of the latents.
    """

    size: VideoSize
    compression: Compression
    latent_shape: tuple[int, int, int]

    @property
    def num_frames(self) -> int:
        return self.compression.num_frames(self.latent_shape[0])

    @property
    def height(self) -> int:
        return self.latent_shape[1] * self.compression.stride[1]

    @property
    def width(self) -> int:
        return self.latent_shape[2] * self.compression.stride[2]

    @property
    def fps(self) -> Fraction:
        return self.size.fps

    @property
    def token_shape(self) -> tuple[int, int, int]:
        """(t, h, w)."""
        frames, rows, columns = self.latent_shape
        across_time, down, across = self.compression.patch_size
        return frames // across_time, rows // down, columns // across

    @property
    def num_tokens(self) -> int:
        return prod(self.token_shape)

    @property
    def crop(self) -> tuple[int, int]:
        """(top, left) of the asked picture, centred in the rendered one."""
        return (self.height - self.size.height) // 2, (self.width - self.size.width) // 2

    @property
    def is_exact(self) -> bool:
        """Nothing is cropped in space nor trimmed in time."""
        rendered = (self.num_frames, self.height, self.width)
        return rendered == (self.size.num_frames, self.size.height, self.size.width)

    def crop_frames(self, frames: Tensor) -> Tensor:
        """The asked picture of rendered `frames` [T, H, W, 3]: a view, cropped in space only."""
        top, left = self.crop
        return frames[:, top : top + self.size.height, left : left + self.size.width]


def lay_grid(size: VideoSize, compression: Compression) -> Grid:
    """The smallest grid that holds `size`: whole latents, and whole patches of them, on every axis."""
    latents = (
        compression.latent_frames(size.num_frames),
        _ceil_div(size.height, compression.stride[1]),
        _ceil_div(size.width, compression.stride[2]),
    )
    frames, rows, columns = (
        _ceil_div(length, patch) * patch for length, patch in zip(latents, compression.patch_size, strict=True)
    )
    return Grid(size, compression, (frames, rows, columns))


def patchify(latents: Tensor, patch_size: tuple[int, int, int], *, channels_last: bool = False) -> Tensor:
    """Tokens [B, N, C * pt * ph * pw] of `latents` [B, C, T, H, W], in (t, h, w) order, w fastest.

    Inside a token the order is (C, pt, ph, pw), that of a convolution's weight; with `channels_last` it is
    (pt, ph, pw, C), as some published checkpoints (Wan, Mochi) order the output of their last layer.
    """
    batch, channels, frames, height, width = latents.shape
    pt, ph, pw = patch_size
    split = latents.reshape(batch, channels, frames // pt, pt, height // ph, ph, width // pw, pw)
    inner = (3, 5, 7, 1) if channels_last else (1, 3, 5, 7)
    return split.permute(0, 2, 4, 6, *inner).flatten(4).flatten(1, 3)  # [B, N, C * pt * ph * pw]


def unpatchify(
    tokens: Tensor,
    patch_size: tuple[int, int, int],
    token_shape: tuple[int, int, int],
    *,
    channels_last: bool = False,
) -> Tensor:
    """Latents [B, C, T, H, W] of `tokens` [B, N, C * pt * ph * pw]: the inverse of `patchify`."""
    batch = tokens.shape[0]
    inner = (*patch_size, -1) if channels_last else (-1, *patch_size)
    split = tokens.reshape(batch, *token_shape, *inner)
    order = (0, 7, 1, 4, 2, 5, 3, 6) if channels_last else (0, 4, 1, 5, 2, 6, 3, 7)
    frames, height, width = (count * patch for count, patch in zip(token_shape, patch_size, strict=True))
    return split.permute(order).reshape(batch, -1, frames, height, width)  # [B, C, T, H, W]


def _ceil_div(length: int, part: int) -> int:
    return -(-length // part)
