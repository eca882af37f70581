"""Wan's two VAEs against diffusers, which the `test` extra installs."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import AutoencoderKLWan
from torch import Tensor
from wan_reference import PUBLISHED_VAES, VAE_21, VAE_22, error, randn, randomise

from soragen.errors import WeightsError
from soragen.families.wan.vae import VaeConfig, WanVae

TOLERANCE = 1e-6
VERSIONS = {
    "2.1": VAE_21,
    "2.1, two blocks a level": {**VAE_21, "num_res_blocks": 2},
    "2.2": VAE_22,
    "2.2, two blocks a level": {**VAE_22, "num_res_blocks": 2},
}


def build(config: dict[str, Any]) -> tuple[WanVae, AutoencoderKLWan]:
    theirs = AutoencoderKLWan(**config).eval()
    randomise(theirs)
    ours = WanVae(read(config)).eval()
    ours.load_state_dict(theirs.state_dict(), strict=True)
    return ours, theirs


def read(config: dict[str, Any]) -> VaeConfig:
    return VaeConfig(**{key: tuple(value) if isinstance(value, list) else value for key, value in config.items()})


def column(values: list[float]) -> Tensor:
    return torch.tensor(values).view(1, -1, 1, 1, 1)


@pytest.mark.parametrize("shape", [(4, 3, 5), (1, 4, 2), (3, 5, 2)], ids=str)
@pytest.mark.parametrize("config", VERSIONS.values(), ids=VERSIONS.keys())
@torch.no_grad()
def test_decode(config: dict[str, Any], shape: tuple[int, int, int]) -> None:
    ours, theirs = build(config)
    latents = randn(1, 4, *shape)
    video = theirs.decode(latents * column(config["latents_std"]) + column(config["latents_mean"])).sample
    expected = (video[0].permute(1, 2, 3, 0) * 0.5 + 0.5).clamp(0, 1)
    chunks = list(ours.decode(latents))
    assert [len(chunk) for chunk in chunks] == [1] + [4] * (shape[0] - 1)
    assert expected.std() > 0.02 and (expected > 0).float().mean() > 0.5  # not all clipped away
    assert error(torch.cat(chunks), expected) <= TOLERANCE


@pytest.mark.parametrize("num_frames", [13, 1, 9])
@pytest.mark.parametrize("config", VERSIONS.values(), ids=VERSIONS.keys())
@torch.no_grad()
def test_encode(config: dict[str, Any], num_frames: int) -> None:
    ours, theirs = build(config)
    _, height, width = (n * stride for n, stride in zip((0, 2, 3), read(config).stride, strict=True))
    frames = torch.rand(num_frames, height, width, 3, generator=torch.Generator().manual_seed(1))
    mode = theirs.encode(frames.permute(3, 0, 1, 2)[None] * 2 - 1).latent_dist.mode()
    expected = (mode - column(config["latents_mean"])) / column(config["latents_std"])
    found = ours.encode(frames.split(5))
    assert found.shape == (1, 4, 1 + num_frames // 4, 2, 3)
    assert error(found, expected) <= TOLERANCE


@pytest.mark.parametrize("config", [VAE_21, VAE_22], ids=["2.1", "2.2"])
@torch.no_grad()
def test_streams_are_exact_and_take_nothing_before_it_is_asked(config: dict[str, Any]) -> None:
    ours, _ = build(config)
    stride = ours.config.stride
    latents = randn(1, 4, 1, 2, 2).expand(1, 4, 1000, 2, 2)
    stream = ours.decode(latents)
    first = [next(stream) for _ in range(3)]
    assert first[0].shape == (1, 2 * stride[1], 2 * stride[2], 3)
    assert torch.equal(torch.cat(first), torch.cat(list(ours.decode(latents[:, :, :3]))))  # the past alone counts

    frames = torch.rand(13, stride[1], stride[2], 3)
    whole = ours.encode([frames])
    assert torch.equal(whole, ours.encode(frames.split(1)))
    assert torch.equal(whole[:, :, :2], ours.encode([frames[:5]]))


@pytest.mark.parametrize("num_frames", [0, 2, 4, 8])
def test_encode_refuses_other_numbers_of_frames(num_frames: int) -> None:
    ours, _ = build(VAE_21)
    with pytest.raises(ValueError, match="1 \\+ 4k"):
        ours.encode([torch.rand(num_frames, 8, 8, 3)])


@pytest.mark.parametrize("name", PUBLISHED_VAES)
def test_published_configs_have_the_published_parameters(name: str) -> None:
    values = PUBLISHED_VAES[name]
    statistics = {"latents_mean": (0.0,) * values["z_dim"], "latents_std": (1.0,) * values["z_dim"]}
    with torch.device("meta"):
        ours = WanVae(VaeConfig(**values, **statistics)).state_dict()
        theirs = AutoencoderKLWan(**values).state_dict()
    assert {key: value.shape for key, value in ours.items()} == {key: value.shape for key, value in theirs.items()}


def test_strides_of_the_published_configs() -> None:
    assert read(VAE_21).stride == (4, 8, 8)
    assert read(VAE_22).stride == (4, 16, 16)


@pytest.mark.parametrize(
    "change", [{"attn_scales": (1.0,)}, {"latents_mean": (0.0,)}, {"temperal_downsample": (True,)}], ids=str
)
def test_a_config_that_does_not_fit_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(WeightsError):
        read({**VAE_21, **change})
