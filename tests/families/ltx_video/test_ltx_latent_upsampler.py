"""The latent upsampler, of the same weights, does what the reference's network and pipeline do."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from ltx_reference import VAE_095, randomise, relative_error, their_vae

from soragen.errors import WeightsError
from soragen.families.ltx_video.latent_upsampler import (
    LatentUpsampler,
    UpsamplerConfig,
    load_latent_statistics,
    load_latent_upsampler,
    upsample_latents,
)

pytest.importorskip("diffusers")

from diffusers import LTXLatentUpsamplePipeline
from diffusers.pipelines.ltx.modeling_latent_upsampler import LTXLatentUpsamplerModel

CPU = torch.device("cpu")
CONFIG = {"in_channels": 16, "mid_channels": 64, "num_blocks_per_stage": 2}
BOUND = 1e-6


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    """The reference's pipeline, and the folder that it saved: vae/ and latent_upsampler/, as on the hub."""
    network = LTXLatentUpsamplerModel(**CONFIG).eval()
    randomise(network)
    pipeline = LTXLatentUpsamplePipeline(vae=their_vae(VAE_095), latent_upsampler=network)
    folder = tmp_path_factory.mktemp("upsampler")
    pipeline.save_pretrained(folder)
    return pipeline, folder


def latents(*shape: int) -> torch.Tensor:
    return torch.randn(1, 16, *shape, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("shape", [(3, 3, 5), (1, 4, 2)])
def test_the_network(published: tuple[Any, Path], shape: tuple[int, int, int]) -> None:
    pipeline, folder = published
    ours = load_latent_upsampler(folder / "latent_upsampler", CPU, torch.float32)
    with torch.inference_mode():
        assert relative_error(ours(latents(*shape)), pipeline.latent_upsampler(latents(*shape))) <= BOUND


@pytest.mark.parametrize(("match", "tone_map"), [(0.0, 0.0), (1.0, 0.0), (0.3, 0.0), (1.0, 0.6)])
def test_normalised_latents_to_normalised_latents(published: tuple[Any, Path], match: float, tone_map: float) -> None:
    pipeline, folder = published
    network = load_latent_upsampler(folder / "latent_upsampler", CPU, torch.float32)
    statistics = load_latent_statistics(folder / "vae", 16, CPU)
    given = latents(3, 3, 5)
    asked = {"adain_factor": match, "tone_map_compression_ratio": tone_map, "output_type": "latent"}
    theirs = pipeline(latents=given, height=192, width=320, **asked).frames
    ours = upsample_latents(network, statistics, given, match=match, tone_map=tone_map)
    assert ours.shape == (1, 16, 3, 6, 10)
    assert relative_error(ours, theirs) <= BOUND


def test_matched_channels_have_the_mean_and_spread_of_what_was_given(published: tuple[Any, Path]) -> None:
    _, folder = published
    network = load_latent_upsampler(folder / "latent_upsampler", CPU, torch.float32)
    statistics = load_latent_statistics(folder / "vae", 16, CPU)
    given = latents(3, 4, 4)
    matched = upsample_latents(network, statistics, given)
    for before, after in zip(torch.std_mean(given, dim=(2, 3, 4)), torch.std_mean(matched, dim=(2, 3, 4)), strict=True):
        torch.testing.assert_close(after, before, rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="from 0 to 1"):
        upsample_latents(network, statistics, given, match=2)


def test_the_published_config_gives_the_names_and_shapes_of_the_reference() -> None:
    with torch.device("meta"):
        ours, theirs = LatentUpsampler(UpsamplerConfig()), LTXLatentUpsamplerModel()
    wanted = {name: tensor.shape for name, tensor in theirs.state_dict().items()}
    assert {name: tensor.shape for name, tensor in ours.state_dict().items()} == wanted
    assert sum(weight.numel() for weight in ours.parameters()) == 126_250_624  # 505 MB in float32: the published file


@pytest.mark.parametrize("change", [{"temporal_upsample": True}, {"dims": 2}, {"mid_channels": 40}, {"kind": "other"}])
def test_another_kind_of_network_is_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"_class_name": "LTXLatentUpsamplerModel"} | CONFIG | change))
    with pytest.raises(WeightsError):
        load_latent_upsampler(tmp_path, CPU, torch.float32)
