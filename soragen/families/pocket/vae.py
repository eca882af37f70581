"""Pocket's video compression network: a linear transform of spacetime patches, with a convolutional residual.

A video of 1 + 4k frames becomes 1 + k latent frames at an eighth of the height and width. Time is cut into groups: the
first frame alone (taken as a group of four equal frames), then four by four. A group's patch of 4 x 8 x 8 pixels splits
exactly into its mean over time and the deviations from it. Both are projected onto their own principal components
(found in closed form by `training/vae.py`): the first `static_channels` latents say what is seen, the other
`motion_channels` how it moves, and a still image has zeros there. That linear map is the whole encoder, and a usable
codec by itself; in the decoder residual convolutions, zero at the start of training, add what a linear map cannot.

A group is encoded by itself, and decoded with those before it. So encoding and decoding are exact streams, and
decoding a prefix of the latents gives the prefix of the frames.

Letters: B batch, C channels, T frames, G groups (latent frames), H, W pixels, h, w = H/8, W/8.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

GROUP = 4
PATCH = 8
PATCH_DIM = 3 * PATCH * PATCH


@dataclass(frozen=True)
class VaeConfig:
    static_channels: int = 64
    motion_channels: int = 96
    decoder_width: int = 160
    num_decoder_blocks: int = 6
    fine_width: int = 64
    num_fine_blocks: int = 4

    @property
    def latent_channels(self) -> int:
        return self.static_channels + self.motion_channels


class CausalBlock(nn.Module):
    """A residual block of 2-D convolutions; half of its input channels come from the group before."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.mix = nn.Conv2d(2 * width, width, 1)
        self.conv1 = nn.Conv2d(width, width, 3, padding=1)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)
        for parameter in self.conv2.parameters():
            nn.init.zeros_(parameter)

    def forward(self, x: Tensor, past: Tensor | None) -> tuple[Tensor, Tensor]:
        """x [B, G, C, h, w] and the last group [B, C, h, w] of the call before (None at the start of the video).

        The first group of a video is its own past: the world stood still before it began.
        """
        b, g = x.shape[:2]
        first = x[:, 0] if past is None else past
        before = torch.cat([first[:, None], x[:, :-1]], dim=1)  #        [B, G, C, h, w]
        y = self.mix(torch.cat([x, before], dim=2).flatten(0, 1))  #     [B*G, C, h, w]
        y = y * torch.rsqrt(y.square().mean(dim=1, keepdim=True) + 1e-6)  # over channels alone: a stream stays exact
        y = self.conv2(F.silu(self.conv1(F.silu(y))))
        return x + y.unflatten(0, (b, g)), x[:, -1]


class Stack(nn.Module):
    """Causal blocks in a row. The state between two calls is the last group that each block saw."""

    def __init__(self, width: int, num_blocks: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(CausalBlock(width) for _ in range(num_blocks))

    def forward(self, x: Tensor, state: list[Tensor] | None) -> tuple[Tensor, list[Tensor]]:
        new_state = []
        for i, block in enumerate(self.blocks):
            x, past = block(x, None if state is None else state[i])
            new_state.append(past)
        return x, new_state


def follow(group: Tensor, before: list[Tensor]) -> Tensor:
    """A decoded group of frames [B, 4, ...] that begins where the video stands, and fades into what it was decoded as.

    before: the last frame [B, ...] as it is shown; then, unless that is the first of the video, the group it was
    decoded in, as it was decoded.

    Groups are made apart from each other, and where a transformer is not sure of a thing they differ: the step to the
    next group is larger than those inside of groups. As much of it as is larger, less the movement that leads there,
    is taken back, and has returned by the group's last frame: a deblocking filter, in time. A step that is no larger
    than those around it stays as it is (docs/decisions/0014-steps-between-latent-frames.md).
    """
    last, *old = before
    inside = torch.cat([each.diff(dim=1) for each in (*old, group)], dim=1)  # [B, 3 or 6, ...]
    usual = inside.abs().flatten(1).mean(dim=1)
    expected = torch.stack([group[:, 1] - group[:, 0], *(each[:, -1] - each[:, -2] for each in old)]).mean(dim=0)
    step = group[:, 0] - last
    size = step.abs().flatten(1).mean(dim=1)
    share = ((size - usual) / size.clamp(min=1e-6)).clamp(min=0).view(-1, 1, 1, 1)
    fade = torch.linspace(1, 0, GROUP).to(group).view(-1, 1, 1, 1)  # 1, 2/3, 1/3, 0
    return group - fade * (share * (step - expected))[:, None]


def join(groups: Iterable[Tensor]) -> Iterator[Tensor]:
    """Decoded groups [B, 4, ...], each as `follow` has it; the first of the video may be one frame [B, 1, ...]."""
    before: list[Tensor] = []
    for group in groups:
        shown = follow(group, before) if before else group
        before = [shown[:, -1], group] if before else [shown[:, -1]]
        yield shown


State = list[list[Tensor]]


class PocketVae(nn.Module):
    """Frames in -1..1 inside; `encode` and `decode` speak frames in 0..1 and normalised latents."""

    def __init__(self, config: VaeConfig) -> None:
        super().__init__()
        self.config = c = config
        z = c.latent_channels
        # The linear codec. Bases are orthonormal rows: decoding is the transpose.
        self.patch_mean = nn.Parameter(torch.zeros(PATCH_DIM))
        self.static_basis = nn.Parameter(torch.zeros(c.static_channels, PATCH_DIM))
        self.motion_basis = nn.Parameter(torch.zeros(c.motion_channels, GROUP * PATCH_DIM))
        # What the transformer sees: (z - mean) / scale. `latent_std` is the spread that is left after that; the
        # convolutions work in units of the whole spread, scale * std.
        self.latent_mean = nn.Parameter(torch.zeros(z))
        self.latent_scale = nn.Parameter(torch.ones(z))
        self.latent_std = nn.Parameter(torch.ones(z))

        self.decoder_in = nn.Conv2d(z, c.decoder_width, 3, padding=1)
        self.decoder = Stack(c.decoder_width, c.num_decoder_blocks)
        self.decoder_up = nn.Conv2d(c.decoder_width, 4 * c.fine_width, 1)
        self.fine = Stack(c.fine_width, c.num_fine_blocks)
        self.decoder_out = nn.Conv2d(c.fine_width, GROUP * 3 * (PATCH // 2) ** 2, 3, padding=1)
        for parameter in self.decoder_out.parameters():
            nn.init.zeros_(parameter)

    @property
    def spread(self) -> Tensor:
        """Standard deviation of each raw latent channel [1, z, 1, 1]."""
        return (self.latent_scale * self.latent_std).view(1, -1, 1, 1)

    # --- groups of frames: [B, G, 4, 3, H, W] in -1..1 ---

    def encode_groups(self, groups: Tensor) -> Tensor:
        """Raw latents [B, G, z, h, w] of groups of frames [B, G, 4, 3, H, W]."""
        b, g = groups.shape[:2]
        patches = F.pixel_unshuffle(groups.flatten(0, 2), PATCH)  #      [B*G*4, 192, h, w]
        patches = patches.unflatten(0, (b * g, GROUP))  #                [B*G, 4, 192, h, w]
        mean = patches.mean(dim=1)  #                                    [B*G, 192, h, w]
        static = torch.einsum("zp,nphw->nzhw", self.static_basis, mean - self.patch_mean[:, None, None])
        deviation = (patches - mean[:, None]).flatten(1, 2)  #           [B*G, 768, h, w]
        motion = torch.einsum("zp,nphw->nzhw", self.motion_basis, deviation)
        return torch.cat([static, motion], dim=1).unflatten(0, (b, g))

    def decode_groups(self, latents: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """Groups of frames [B, G, 4, 3, H, W] of raw latents [B, G, z, h, w], not joined yet."""
        b, g = latents.shape[:2]
        flat = latents.flatten(0, 1)
        static, motion = flat.split([self.config.static_channels, self.config.motion_channels], dim=1)
        mean = torch.einsum("zp,nzhw->nphw", self.static_basis, static) + self.patch_mean[:, None, None]
        deviation = torch.einsum("zp,nzhw->nphw", self.motion_basis, motion).unflatten(1, (GROUP, PATCH_DIM))
        frames = F.pixel_shuffle((mean[:, None] + deviation).flatten(0, 1), PATCH)  # [B*G*4, 3, H, W]

        x = (flat - self.latent_mean.view(1, -1, 1, 1)) / self.spread
        x = self.decoder_in(x).unflatten(0, (b, g))
        x, coarse = self.decoder(x, None if state is None else state[0])
        x = F.pixel_shuffle(self.decoder_up(F.silu(x.flatten(0, 1))), 2).unflatten(0, (b, g))
        x, fine = self.fine(x, None if state is None else state[1])  #   [B, G, C, 2h, 2w]
        residual = self.decoder_out(F.silu(x.flatten(0, 1))).unflatten(1, (GROUP, -1))
        residual = F.pixel_shuffle(residual.flatten(0, 1), PATCH // 2)  # [B*G*4, 3, H, W]
        return (frames + residual).unflatten(0, (b, g, GROUP)), [coarse, fine]

    def normalise(self, raw: Tensor) -> Tensor:
        """[B, G, z, h, w] as the VAE has them -> [B, z, G, h, w] as the transformer sees them."""
        shape = (1, 1, -1, 1, 1)
        return ((raw - self.latent_mean.view(shape)) / self.latent_scale.view(shape)).transpose(1, 2)

    def denormalise(self, latents: Tensor) -> Tensor:
        shape = (1, 1, -1, 1, 1)
        return latents.transpose(1, 2) * self.latent_scale.view(shape) + self.latent_mean.view(shape)

    # --- streams ---

    @torch.inference_mode()
    def encode(self, frames: Iterable[Tensor]) -> Tensor:
        """Latents [1, z, T, h, w] of 1 + 4k frames that come in chunks [t, H, W, 3] in 0..1; H and W divisible by 8.

        Raises ValueError when the frames are not 1 + 4k.
        """
        pieces: list[Tensor] = []
        waiting: list[Tensor] = []
        for chunk in frames:
            for frame in chunk.to(self.patch_mean):
                waiting.append(frame.permute(2, 0, 1) * 2 - 1)  #        [3, H, W]
                group = waiting * GROUP if not pieces else waiting
                if len(group) == GROUP:
                    pieces.append(self.encode_groups(torch.stack(group)[None, None]))
                    waiting = []
        if waiting or not pieces:
            raise ValueError("the number of frames is not 1 + 4k")
        return self.normalise(torch.cat(pieces, dim=1))

    def decode(self, latents: Tensor, *, seed: int = 0) -> Iterator[Tensor]:
        """Chunks of frames [1, H, W, 3], then [4, H, W, 3] each, in 0..1 on the CPU, of latents [1, z, T, h, w].

        seed: passed over, nothing is drawn.
        """
        return self.join(self.decode_apart(latents))

    def join(self, chunks: Iterable[Tensor]) -> Iterator[Tensor]:
        """The chunks of `decode_apart` as those of `decode`."""
        return (shown[0].clamp(0, 1) for shown in join(chunk[None] for chunk in chunks))

    @torch.inference_mode()
    def decode_apart(self, latents: Tensor) -> Iterator[Tensor]:
        """As `decode`, with the steps between groups as they are."""
        state: State | None = None
        for k in range(latents.shape[2]):
            raw = self.denormalise(latents[:, :, k : k + 1].to(self.patch_mean))
            with torch.inference_mode():  # a generator leaves the decorator's mode at its first yield
                groups, state = self.decode_groups(raw, state)  #        [1, 1, 4, 3, H, W]
                frames = (groups[0, 0] / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).float().cpu()
            yield frames if k else frames[-1:]
