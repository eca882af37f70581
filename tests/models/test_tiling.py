"""Tiles cover all, blend without a seam and give nearly what whole frames give."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from soragen.catalog import checkpoint_folder, find
from soragen.errors import ResourceError
from soragen.families import load_family
from soragen.families.ltx_video.vae import LtxVae
from soragen.families.ltx_video.vae import VaeConfig as LtxConfig
from soragen.families.wan.vae import VaeConfig as WanConfig
from soragen.families.wan.vae import WanVae
from soragen.models.tiling import OVERLAP, TiledVae, fit_tile, lay_tiles, lay_weights

REACHING = ("encoder.mid_block.attentions.0.proj.weight",)
"""Attention over whole frames, which encoding in tiles does not have: it adds little in a network that can be tiled."""


def randomised(vae: nn.Module) -> Any:
    """Random weights, none of them trivial."""
    generator = torch.Generator().manual_seed(0)
    for name, tensor in vae.state_dict().items():
        drawn = torch.randn(tensor.shape, generator=generator)
        if name.endswith(("gamma", "latents_std")) or "norm" in name:
            tensor.copy_(1 + 0.1 * drawn)
        elif name.endswith("timestep_scale_multiplier"):
            tensor.fill_(1000)
        elif tensor.ndim < 2:
            tensor.copy_(0.1 * drawn)
        else:
            tensor.copy_(drawn / math.sqrt(tensor[0].numel()) * (0.1 if name in REACHING else 1))
    return vae.eval().requires_grad_(False)


def wan(**more: Any) -> Any:
    return randomised(WanVae(WanConfig((0.1,) * 4, (1.2,) * 4, base_dim=4, z_dim=4, num_res_blocks=1, **more)))


LTX_SINCE_091: dict[str, Any] = {
    "decoder_block_out_channels": (8, 16, 32), "decoder_layers_per_block": (1,) * 4,
    "decoder_spatio_temporal_scaling": (True,) * 3, "upsample_residual": (True,) * 3, "upsample_factor": (2,) * 3,
    "timestep_conditioning": True,
}  # fmt: skip
VAES: dict[str, tuple[Callable[[], Any], int, int]] = {
    "wan 2.1": (wan, 4, 8),
    "wan 2.2": (lambda: wan(is_residual=True, patch_size=2, in_channels=12, out_channels=12), 4, 16),
    "ltx_video 0.9.0": (lambda: randomised(LtxVae(LtxConfig(
        latent_channels=8, block_out_channels=(4, 8, 8, 8), decoder_block_out_channels=(4, 8, 8, 8),
        layers_per_block=(1,) * 5, decoder_layers_per_block=(1,) * 5,
    ))), 8, 32),
    "ltx_video 0.9.1": (lambda: randomised(LtxVae(LtxConfig(
        latent_channels=8, block_out_channels=(4, 8, 8, 8), layers_per_block=(1,) * 5,
        decoder_inject_noise=(True, True, True, False), **LTX_SINCE_091,
    ))), 8, 32),
    "ltx_video 0.9.5": (lambda: randomised(LtxVae(LtxConfig(
        latent_channels=8, block_out_channels=(4, 8, 8, 8, 16), layers_per_block=(1,) * 5,
        down_block_types=("LTXVideo095DownBlock3D",) * 4, spatio_temporal_scaling=(True,) * 4,
        downsample_type=("spatial", "temporal", "spatiotemporal", "spatiotemporal"),
        decoder_inject_noise=(False,) * 4, **LTX_SINCE_091,
    ))), 8, 32),
}  # fmt: skip


def psnr(ours: Tensor, theirs: Tensor, peak: float = 1.0) -> float:
    assert ours.shape == theirs.shape
    return float(10 * torch.log10(peak**2 / (ours - theirs).square().mean()))


def smooth(channels: int) -> Tensor:
    """Latents [1, C, 2, 24, 12] of a picture without small details."""
    coarse = torch.randn(1, channels, 2, 4, 3, generator=torch.Generator().manual_seed(1))
    return F.interpolate(coarse, (2, 24, 12), mode="trilinear", align_corners=True)


@pytest.mark.parametrize("name", VAES)
def test_tiles_give_what_whole_frames_give(name: str) -> None:
    build, channels, stride = VAES[name]
    vae, latents = build(), smooth(channels)
    tiled = TiledVae(vae, (16, 12), (stride, stride))
    whole = list(vae.decode(latents))
    chunks = list(tiled.decode(latents))
    assert [chunk.shape for chunk in chunks] == [chunk.shape for chunk in whole]
    ours, theirs = torch.cat(chunks), torch.cat(whole)
    encoded = vae.encode(whole)
    assert theirs.std() > 0.05 and psnr(ours, theirs) >= 40
    assert psnr(tiled.encode(iter(whole)), encoded, float(encoded.max() - encoded.min())) >= 40


def test_noise_inside_a_decoder_is_that_of_whole_frames() -> None:
    """A tile has its part of it: with another seed it is another video."""
    build, channels, stride = VAES["ltx_video 0.9.1"]
    vae, latents = build(), smooth(channels)[:, :, :1]
    whole, other = (torch.cat(list(vae.decode(latents, seed=seed))) for seed in (0, 1))
    tiled = torch.cat(list(TiledVae(vae, (16, 12), (stride, stride)).decode(latents)))
    assert psnr(other, whole) < 20 < 40 <= psnr(tiled, whole)


def test_the_embedded_model() -> None:
    """Its real weights, on a ball that moves over a meadow."""
    folder, family, cpu = checkpoint_folder(find("pocket")), load_family("pocket"), torch.device("cpu")
    vae = family.load_vae(folder, cpu, torch.float32)
    y, x = torch.meshgrid(torch.linspace(0, 1, 192), torch.linspace(0, 1, 256), indexing="ij")
    meadow = torch.stack([0.3 + 0.2 * y, 0.5 + 0.3 * y, 0.9 - 0.7 * y], dim=-1)
    frames = []
    for place in torch.linspace(0.2, 0.8, 5):
        ball = torch.sigmoid(400 * (0.01 - (x - place) ** 2 - (y - 0.6) ** 2))[..., None]
        frames.append(meadow * (1 - ball) + torch.tensor([0.9, 0.1, 0.1]) * ball)
    clip = torch.stack(frames)
    tiled = TiledVae(vae, (16, 20), family.compression(folder).stride[1:])
    latents = vae.encode([clip])
    assert psnr(tiled.encode([clip]), latents, float(latents.max() - latents.min())) >= 40
    whole, ours = (torch.cat(list(decoder.decode(latents))) for decoder in (vae, tiled))
    assert psnr(ours, whole) >= 40
    seam = (ours - whole).abs().mean(dim=(0, 3))
    assert seam.max() < 0.1


class Plain:
    """A VAE that only enlarges, so that tiles can be told exactly."""

    def __init__(self) -> None:
        self.sides: list[tuple[int, ...]] = []

    def encode(self, frames: Any) -> Tensor:
        return torch.cat(list(frames))[:, ::2, ::2].permute(3, 0, 1, 2)[None]

    def decode(self, latents: Tensor, *, seed: int = 0) -> Any:
        self.sides.append(tuple(latents.shape[3:]))
        for frame in latents[0].unbind(1):
            yield frame.repeat_interleave(2, 1).repeat_interleave(2, 2).permute(1, 2, 0)[None]


def test_what_does_not_depend_on_the_tile_is_kept() -> None:
    vae = Plain()
    tiled = TiledVae(vae, (16, 19), (2, 2))
    latents = torch.rand(1, 3, 4, 40, 30)
    frames = torch.cat(list(tiled.decode(latents)))
    assert len(vae.sides) == 8 and set(vae.sides) == {(16, 19)}
    whole = torch.cat(list(vae.decode(latents)))
    assert (frames - whole).abs().max() < 2**-11  # 16 bits in the file
    assert torch.allclose(tiled.encode(whole.split(3)), latents, atol=2**-11)
    assert list(tiled.decode(latents[:, :, :0])) == []


@pytest.mark.parametrize(("length", "tile"), [(40, 16), (17, 16), (31, 20), (20, 20), (12, 20), (160, 37)])
def test_tiles_cover_their_axis(length: int, tile: int) -> None:
    tiles = lay_tiles(length, tile)
    assert tiles[0].start == 0 and tiles[-1].stop == length
    for left, right in pairwise(tiles):
        assert left.start < right.start <= left.stop - OVERLAP and right.stop - right.start == tile
    total = torch.zeros(4 * length)
    for place, weight in zip(tiles, lay_weights(tiles, 4), strict=True):
        assert weight.min() >= 0
        total[4 * place.start : 4 * place.stop] += weight
    assert torch.allclose(total, torch.ones(4 * length))


def test_the_largest_tile_that_fits() -> None:
    assert fit_tile(90, 160, 90 * 160) == (90, 160)
    assert fit_tile(90, 160, 90 * 160 - 1) == (90, 84)
    tile = fit_tile(90, 160, 2000)
    assert tile is not None and math.prod(tile) <= 2000 and min(tile) >= 2 * OVERLAP
    assert fit_tile(90, 160, 255) is None and fit_tile(90, 160, -5) is None
    assert fit_tile(4, 100, 80) == (4, 20)


def test_no_room_for_temporary_files(monkeypatch: pytest.MonkeyPatch) -> None:
    class Full:
        def __enter__(self) -> Full:
            return self

        def __exit__(self, *error: object) -> None: ...

        def write(self, values: object) -> None:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(tempfile, "TemporaryFile", Full)
    with pytest.raises(ResourceError, match=r"cannot be kept in .*: No space left") as caught:
        list(TiledVae(Plain(), (16, 16), (2, 2)).decode(torch.rand(1, 3, 2, 40, 30)))
    assert "TMPDIR" in str(caught.value.hint)
