"""The causal layers of Wan's VAE.

A clip passes in chunks: its first frame alone, then as many frames at a time as one latent frame stands for. Every
layer looks into the past only, so what it needs of the chunks before is little, and is kept in a `Stream`: the result
is that of the whole clip at once.

Axis letters: B batch, C channels, t frames of the chunk, h, w: [B, C, t, h, w].
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Stream:
    """What the layers remember of the chunks before.

    first: whether the chunk that passes is the first one, a single frame. past: a layer's last input frames.
    """

    def __init__(self) -> None:
        self.first = True
        self.past: dict[nn.Module, Tensor] = {}


class CausalConv3d(nn.Conv3d):
    """A convolution over the frames up to the present one; before the clip there are zeros."""

    def __init__(self, width: int, out: int, kernel: tuple[int, int, int] = (3, 3, 3)) -> None:
        super().__init__(width, out, kernel, padding=(0, kernel[1] // 2, kernel[2] // 2))

    def forward(self, x: Tensor, stream: Stream) -> Tensor:  # type: ignore[override]
        kept = self.kernel_size[0] - 1
        past = stream.past.get(self)
        x = F.pad(x, (0, 0, 0, 0, kept, 0)) if past is None else torch.cat([past, x], dim=2)
        stream.past[self] = x[:, :, -kept:].clone()
        return super().forward(x)


class RMSNorm(nn.Module):
    """Each place's channels scaled to the length sqrt(C), then by gamma; in float32."""

    def __init__(self, width: int, num_axes: int = 3) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(width, *[1] * num_axes))

    def forward(self, x: Tensor) -> Tensor:
        return F.normalize(x.float(), dim=1).type_as(x) * (self.gamma * self.gamma.shape[0] ** 0.5)


class ResidualBlock(nn.Module):
    def __init__(self, width: int, out: int) -> None:
        super().__init__()
        self.norm1 = RMSNorm(width)
        self.conv1 = CausalConv3d(width, out)
        self.norm2 = RMSNorm(out)
        self.conv2 = CausalConv3d(out, out)
        self.conv_shortcut = nn.Conv3d(width, out, 1) if width != out else nn.Identity()

    def forward(self, x: Tensor, stream: Stream) -> Tensor:
        y = self.conv1(F.silu(self.norm1(x)), stream)
        y = self.conv2(F.silu(self.norm2(y)), stream)
        return y + self.conv_shortcut(x)


class FrameAttention(nn.Module):
    """The places of a frame attend to each other; one head."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = RMSNorm(width, num_axes=2)
        self.to_qkv = nn.Conv2d(width, 3 * width, 1)
        self.proj = nn.Conv2d(width, width, 1)

    def attend(self, frames: Tensor) -> Tensor:
        qkv = self.to_qkv(self.norm(frames)).flatten(2).mT[:, None]  #    [B*t, 1, h*w, 3C]
        y = F.scaled_dot_product_attention(*qkv.chunk(3, dim=-1))
        return self.proj(y[:, 0].mT.unflatten(2, frames.shape[2:]))  #    [B*t, C, h, w]

    def forward(self, x: Tensor) -> Tensor:
        return x + per_frame(self.attend, x)


class MidBlock(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.resnets = nn.ModuleList([ResidualBlock(width, width), ResidualBlock(width, width)])
        self.attentions = nn.ModuleList([FrameAttention(width)])

    def forward(self, x: Tensor, stream: Stream) -> Tensor:
        x = self.attentions[0](self.resnets[0](x, stream))
        return self.resnets[1](x, stream)


class Upsample(nn.Module):
    """Twice the height and width; with `in_time` each frame becomes two, but for the first of the clip."""

    def __init__(self, width: int, out: int, in_time: bool) -> None:
        super().__init__()
        self.resample = nn.Sequential(
            nn.Upsample(scale_factor=2.0, mode="nearest-exact"), nn.Conv2d(width, out, 3, padding=1)
        )
        self.time_conv = CausalConv3d(width, 2 * width, (3, 1, 1)) if in_time else None

    def forward(self, x: Tensor, stream: Stream) -> Tensor:
        if self.time_conv is not None and not stream.first:  # the first frame never enters the convolution's past
            x = self.time_conv(x, stream).unflatten(1, (2, -1))  #        [B, 2, C, t, h, w]
            x = x.permute(0, 2, 3, 1, 4, 5).flatten(2, 3)  #              [B, C, 2t, h, w]
        return per_frame(self.resample, x)


class Downsample(nn.Module):
    """Half the height and width; with `in_time` two frames become one, but for the first of the clip."""

    def __init__(self, width: int, in_time: bool) -> None:
        super().__init__()
        self.resample = nn.Sequential(nn.ZeroPad2d((0, 1, 0, 1)), nn.Conv2d(width, width, 3, stride=2))
        self.time_conv = nn.Conv3d(width, width, (3, 1, 1), stride=(2, 1, 1)) if in_time else None

    def forward(self, x: Tensor, stream: Stream) -> Tensor:
        x = per_frame(self.resample, x)
        if self.time_conv is None:
            return x
        past = stream.past.get(self)
        stream.past[self] = x[:, :, -1:].clone()
        return x if past is None else self.time_conv(torch.cat([past, x], dim=2))


def per_frame(layer: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """`layer`, which takes images [B*t, C, h, w], on a chunk [B, C, t, h, w]."""
    return layer(x.transpose(1, 2).flatten(0, 1)).unflatten(0, (x.shape[0], x.shape[2])).transpose(1, 2)


def average_down(x: Tensor, out: int, time: int, space: int) -> Tensor:
    """The shortcut past a downsampling block of version 2.2: blocks of time x space x space places to channels, and
    means over groups of those, `out` [B, out, t / time, h / space, w / space]. Before the clip there are zeros."""
    x = F.pad(x, (0, 0, 0, 0, -x.shape[2] % time, 0))
    x = x.unflatten(4, (-1, space)).unflatten(3, (-1, space)).unflatten(2, (-1, time))  # [B, C, t, dt, h, dh, w, dw]
    x = x.permute(0, 1, 3, 5, 7, 2, 4, 6).flatten(1, 4)  #                [B, C*dt*dh*dw, t, h, w]
    return x.unflatten(1, (out, -1)).mean(dim=2)


def repeat_up(x: Tensor, out: int, time: int, space: int, *, first: bool) -> Tensor:
    """The shortcut past an upsampling block of version 2.2: channels are repeated and dealt out to blocks of
    time x space x space places, [B, out, t * time, h * space, w * space]. The first frame stays a single one."""
    x = x.repeat_interleave(out * time * space**2 // x.shape[1], dim=1)
    x = x.unflatten(1, (out, time, space, space))  #                      [B, out, dt, dh, dw, t, h, w]
    x = x.permute(0, 1, 5, 2, 6, 3, 7, 4).flatten(6, 7).flatten(4, 5).flatten(2, 3)
    return x[:, :, time - 1 :] if first else x
