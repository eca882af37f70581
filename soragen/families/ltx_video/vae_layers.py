"""The layers of LTX-Video's VAE as exact streams in time.

Every layer maps a stream of chunks [1, C, T, H, W] to a stream of chunks: cut the same video otherwise, and the same
frames come out. A convolution keeps the last frames it saw. In the encoder it looks back only. In the decoder it looks
one frame ahead too, so that its output is a frame late, and the last frame follows when the chunks before it have
ended; a residual waits for it. So no frame is computed twice, although the decoder sees some 24 latent frames to either
side, and memory does not grow with the length of the video. Streams are built of `map` where they can be: a generator
would hold the chunk it handed on for as long as the layers after it work.

Letters: C channels, T frames, H, W of whatever level the layer works at. The batch is 1.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import chain, islice

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from soragen.families.ltx_video.timestep import TimestepEmbedding

Stream = Iterator[Tensor]

DrawNoise = Callable[[int, int], Tensor]
"""Standard normal values [H, W] of the asked height and width, new ones at each call."""


class Conv(nn.Module):
    """A convolution in space and time. Beyond the ends in time it sees the first and the last frame, in space zeros."""

    def __init__(self, in_channels: int, out_channels: int, kernel: int = 3, stride: int = 1, *, causal: bool) -> None:
        super().__init__()
        self.conv = nn.Conv3d(in_channels, out_channels, kernel, stride, padding=(0, kernel // 2, kernel // 2))
        self.before, self.after = (kernel - 1, 0) if causal else (kernel // 2, kernel // 2)

    def forward(self, chunks: Stream) -> Stream:
        kernel, stride = self.conv.kernel_size[0], self.conv.stride[0]
        waiting: Tensor | None = None
        for x in chunks:
            past = x[:, :, :1].repeat(1, 1, self.before, 1, 1) if waiting is None else waiting
            waiting = torch.cat([past, x], dim=2)
            del x, past
            num_out = (waiting.shape[2] - kernel) // stride + 1
            if num_out > 0:
                ready = [self.conv(waiting)]
                waiting = waiting[:, :, num_out * stride :].clone()
                yield ready.pop()
        if waiting is not None and self.after:
            yield self.conv(torch.cat([waiting, waiting[:, :, -1:].repeat(1, 1, self.after, 1, 1)], dim=2))


class Waiting:
    """Frames on their way round a branch that gives them out later, and in other chunks."""

    def __init__(self) -> None:
        self._frames: list[Tensor] = []

    def add(self, x: Tensor) -> Tensor:
        self._frames.append(x)
        return x

    def take(self, count: int) -> Tensor:
        """The oldest `count` frames."""
        frames = torch.cat(self._frames, dim=2) if len(self._frames) > 1 else self._frames[0]
        self._frames = [frames[:, :, count:].clone()]
        return frames[:, :, :count]


def norm(x: Tensor) -> Tensor:
    """Each position's channels to a root mean square of 1, in float32."""
    return (x * torch.rsqrt(x.float().square().mean(dim=1, keepdim=True) + 1e-8)).to(x.dtype)


class ResidualBlock(nn.Module):
    """Two convolutions round which the input goes; conditioned and noisy where the checkpoint has it so."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        causal: bool,
        eps: float,
        inject_noise: bool = False,
        conditioned: bool = False,
    ) -> None:
        super().__init__()
        self.eps = eps
        self.conv1 = Conv(in_channels, out_channels, causal=causal)
        self.conv2 = Conv(out_channels, out_channels, causal=causal)
        self.norm3 = nn.LayerNorm(in_channels, eps=eps) if in_channels != out_channels else None
        self.conv_shortcut = Conv(in_channels, out_channels, 1, causal=causal) if self.norm3 else None
        self.per_channel_scale1 = nn.Parameter(torch.empty(in_channels, 1, 1)) if inject_noise else None
        self.per_channel_scale2 = nn.Parameter(torch.empty(in_channels, 1, 1)) if inject_noise else None
        self.scale_shift_table = nn.Parameter(torch.empty(4, in_channels)) if conditioned else None

    def forward(self, chunks: Stream, embedding: Tensor | None = None, draw: DrawNoise | None = None) -> Stream:
        """embedding: [4 * C], of the timestep. draw: where the noise comes from."""
        rows: list[Tensor | None] = [None] * 4
        if self.scale_shift_table is not None and embedding is not None:
            table = embedding.unflatten(0, (4, -1)) + self.scale_shift_table
            rows = list(table[None, :, :, None, None, None].unbind(dim=1))  #  [1, C, 1, 1, 1] each
        shift1, scale1, shift2, scale2 = rows
        skipping = Waiting()
        chunks = self.conv1(map(lambda x: F.silu(modulated(skipping.add(x), shift1, scale1)), chunks))
        chunks = self.conv2(
            map(lambda x: F.silu(modulated(x, shift2, scale2)), with_noise(chunks, self.per_channel_scale1, draw))
        )
        return map(
            lambda x: x + self.shortcut(skipping.take(x.shape[2])), with_noise(chunks, self.per_channel_scale2, draw)
        )

    def shortcut(self, x: Tensor) -> Tensor:
        if self.norm3 is None or self.conv_shortcut is None:
            return x
        y: Tensor = self.conv_shortcut.conv(self.norm3(x.movedim(1, -1)).movedim(-1, 1))
        return y


def modulated(x: Tensor, shift: Tensor | None, scale: Tensor | None) -> Tensor:
    return norm(x) if shift is None or scale is None else norm(x) * (1 + scale) + shift


def with_noise(chunks: Stream, scale: Tensor | None, draw: DrawNoise | None) -> Stream:
    """The chunks with one picture of noise added to every frame, drawn when the first chunk passes."""
    if scale is None or draw is None:
        return chunks
    noise: list[Tensor] = []

    def add(x: Tensor) -> Tensor:
        if not noise:
            noise.append((draw(*x.shape[-2:]).to(x) * scale)[:, None])  #      [C, 1, H, W]
        return x + noise[0]

    return map(add, chunks)


class Stack(nn.Module):
    """Residual blocks of one width. Names: resnets, time_embedder."""

    def __init__(
        self,
        channels: int,
        num_blocks: int,
        *,
        causal: bool,
        eps: float,
        inject_noise: bool = False,
        conditioned: bool = False,
    ) -> None:
        super().__init__()
        self.time_embedder = TimestepEmbedding(4 * channels) if conditioned else None
        self.resnets = nn.ModuleList(
            ResidualBlock(
                channels, channels, causal=causal, eps=eps, inject_noise=inject_noise, conditioned=conditioned
            )
            for _ in range(num_blocks)
        )

    def forward(self, chunks: Stream, timestep: Tensor | None = None, draw: DrawNoise | None = None) -> Stream:
        """timestep: [1], where the network is conditioned."""
        embedding = None
        if self.time_embedder is not None and timestep is not None:
            embedding = self.time_embedder(timestep)[0]
        for block in self.resnets:
            chunks = block(chunks, embedding, draw)
        return chunks


class SpaceToDepth(nn.Module):
    """Downsampling since 0.9.5: positions become channels; the residual is the mean over groups of channels."""

    def __init__(self, in_channels: int, out_channels: int, stride: tuple[int, int, int]) -> None:
        super().__init__()
        size = stride[0] * stride[1] * stride[2]
        self.stride = stride
        self.group_size = in_channels * size // out_channels
        self.conv = Conv(in_channels, out_channels // size, causal=True)

    def fold(self, x: Tensor) -> Tensor:
        t, h, w = self.stride
        x = x.unflatten(4, (-1, w)).unflatten(3, (-1, h)).unflatten(2, (-1, t))  # [1, C, T/t, t, H/h, h, W/w, w]
        return x.permute(0, 1, 3, 5, 7, 2, 4, 6).flatten(1, 4)

    def forward(self, chunks: Stream) -> Stream:
        """Chunks of 1 + stride * k frames first, then of stride * k. The first frame is a group in time of its own."""
        missing, skipping = self.stride[0] - 1, Waiting()
        first = map(lambda x: torch.cat([x[:, :, :missing], x], dim=2), islice(chunks, 1))
        folded = self.conv(map(skipping.add, chain(first, chunks)))
        return map(lambda x: self.fold(x) + self.mean(skipping.take(x.shape[2])), folded)

    def mean(self, x: Tensor) -> Tensor:
        return self.fold(x).unflatten(1, (-1, self.group_size)).mean(dim=2)


class DepthToSpace(nn.Module):
    """Upsampling by two on all axes: channels become positions; of the doubled first frame one is kept."""

    def __init__(self, in_channels: int, factor: int, residual: bool) -> None:
        super().__init__()
        self.repeats = 8 // factor if residual else 0
        self.conv = Conv(in_channels, in_channels * 8 // factor, causal=False)

    def unfold(self, x: Tensor) -> Tensor:
        x = x.unflatten(1, (-1, 2, 2, 2)).permute(0, 1, 5, 2, 6, 3, 7, 4)  #   [1, C/8, T, 2, H, 2, W, 2]
        return x.flatten(6, 7).flatten(4, 5).flatten(2, 3)

    def forward(self, chunks: Stream) -> Stream:
        if not self.repeats:
            doubled = map(self.unfold, self.conv(chunks))
        else:
            skipping = Waiting()
            doubled = map(
                lambda x: self.unfold(x) + self.unfold(skipping.take(x.shape[2])).repeat(1, self.repeats, 1, 1, 1),
                self.conv(map(skipping.add, chunks)),
            )
        return chain(map(lambda x: x[:, :, 1:], islice(doubled, 1)), doubled)
