"""Every published checkpoint in weights.toml, from its config files: no weights are read, none are needed.

The networks that are built from them are, name for name and shape for shape, those of the reference library; the files
tell the checkpoint; its few-step schedule is the reference scheduler's.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from published_configs import INDEXES, PUBLISHED, Network, write_configs
from torch import Tensor, nn

from soragen.catalog import catalog, find, identify
from soragen.checkpoint import EMBEDDED
from soragen.diffusion.sampler import denoise
from soragen.diffusion.schedule import NoiseLevel, linear_quadratic, make_schedule
from soragen.diffusion.solver import make_solver
from soragen.families import family_of
from soragen.families.ltx_video.transformer import LtxTransformer
from soragen.families.ltx_video.transformer import TransformerConfig as LtxConfig
from soragen.families.ltx_video.vae import LtxVae
from soragen.families.ltx_video.vae import VaeConfig as LtxVaeConfig
from soragen.families.wan.clip import ClipConfig, ClipEncoder
from soragen.families.wan.transformer import TransformerConfig as WanConfig
from soragen.families.wan.transformer import WanTransformer
from soragen.families.wan.vae import VaeConfig as WanVaeConfig
from soragen.families.wan.vae import WanVae
from soragen.models.config import read_config
from soragen.models.t5 import T5Config, T5Encoder
from soragen.request import Request
from soragen.size import VideoSize

diffusers = pytest.importorskip("diffusers")
transformers = pytest.importorskip("transformers")

LISTED = [name for name, checkpoint in catalog().items() if checkpoint.source != EMBEDDED]
FOLDERS = [name for name in LISTED if not catalog()[name].file and not catalog()[name].loras]
"""The rest are published as single files, or are one of these with a LoRA."""
FEW_STEPS = [name for name, checkpoint in catalog().items() if checkpoint.defaults.schedule == "listed"]

OURS: dict[str, Callable[[Path], nn.Module]] = {
    "WanTransformer3DModel": lambda folder: WanTransformer(read_config(folder, WanConfig)),
    "AutoencoderKLWan": lambda folder: WanVae(read_config(folder, WanVaeConfig)),
    "LTXVideoTransformer3DModel": lambda folder: LtxTransformer(read_config(folder, LtxConfig), causal_time=True),
    "AutoencoderKLLTXVideo": lambda folder: LtxVae(read_config(folder, LtxVaeConfig)),
    "t5": lambda folder: T5Encoder(T5Config.read(folder)),
    "umt5": lambda folder: T5Encoder(T5Config.read(folder)),
    "clip_vision_model": lambda folder: ClipEncoder(ClipConfig.read(folder)),
}


def theirs(config: dict[str, Any]) -> nn.Module:
    values = {key: value for key, value in config.items() if key not in ("_class_name", "model_type")}
    match config.get("model_type"):
        case "t5":
            return transformers.T5EncoderModel(transformers.T5Config(**values))
        case "umt5":
            return transformers.UMT5EncoderModel(transformers.UMT5Config(**values))
        case "clip_vision_model":
            return transformers.CLIPVisionModel(transformers.CLIPVisionConfig(**values))
    return getattr(diffusers, config["_class_name"])(**values)  # type: ignore[no-any-return]


def unread(key: str) -> bool:
    """What the reference has and ours does not: a second name for the same tensor, and CLIP's last layer."""
    key = key.removeprefix("vision_model.")
    return key.startswith(("encoder.embed_tokens.", "encoder.layers.31.", "post_layernorm."))


def test_every_listed_checkpoint_is_looked_at() -> None:
    assert list(PUBLISHED) == sorted(LISTED, key=list(PUBLISHED).index)


DIFFERENT: dict[str, tuple[str, Network]] = {}
for _name, _parts in PUBLISHED.items():
    for _part, _network in _parts.items():
        if f"{_part}.sparsity" in catalog()[_name].config:
            continue  # the reference library has no such network: tests/families/wan/test_wan_sparse_attention.py
        DIFFERENT.setdefault(json.dumps(_network.config), (f"{_name}: {_part}", _network))


@pytest.mark.parametrize("network", [pytest.param(network, id=label) for label, network in DIFFERENT.values()])
def test_names_and_shapes_are_those_of_the_reference(network: Network, tmp_path: Path) -> None:
    config = network.config
    (tmp_path / "config.json").write_text(json.dumps(config))
    with torch.device("meta"):
        ours = OURS[config.get("model_type") or config["_class_name"]](tmp_path).state_dict()
        reference = theirs(config)
    is_clip = config.get("model_type") == "clip_vision_model"
    wanted = {
        f"vision_model.{key.removeprefix('vision_model.')}" if is_clip else key: tensor.shape
        for key, tensor in reference.state_dict().items()
        if not unread(key)
    }
    assert {key: tensor.shape for key, tensor in ours.items()} == wanted
    assert sum(weight.numel() for weight in reference.parameters()) == network.num_weights


@pytest.mark.parametrize("name", FOLDERS)
def test_a_folder_is_told_by_its_configs(name: str, tmp_path: Path) -> None:
    found, fits = identify(write_configs(name, tmp_path))
    assert fits and name in (checkpoint.name for checkpoint in found)
    built = PUBLISHED[name], INDEXES.get(name)
    alike = [other for other in FOLDERS if (PUBLISHED[other], INDEXES.get(other)) == built]
    assert sorted(checkpoint.name for checkpoint in found) == sorted(alike)


@pytest.mark.parametrize("name", LISTED)
def test_its_family_plans_its_own_size(name: str, tmp_path: Path) -> None:
    """Sizes that are rendered as they are, in whole latents, at the trained length."""
    checkpoint, folder = find(name), write_configs(name, tmp_path)
    family, native, defaults = family_of(checkpoint), checkpoint.native, checkpoint.defaults
    stride, patch = family.compression(folder).stride, family.compression(folder).patch_size
    for width, height in ((native.width, native.height), (defaults.width, defaults.height)):
        assert native.rendered(width, height) == (width, height)
        assert width % (stride[2] * patch[2]) == 0 and height % (stride[1] * patch[1]) == 0
    assert (native.num_frames - 1) % stride[0] == 0 and native.num_frames <= native.max_num_frames
    assert family.latent_channels(folder) == PUBLISHED[name]["transformer"].config["out_channels"]


def test_abilities_are_those_of_the_networks(tmp_path: Path) -> None:
    for name in LISTED:
        checkpoint, config = find(name), PUBLISHED[name]["transformer"].config
        is_of_images = config["in_channels"] > config["out_channels"]
        assert checkpoint.abilities.text != is_of_images, name
        assert checkpoint.abilities.first_frame or "-t2v-" in name
        assert ("image_encoder" in PUBLISHED[name]) == ("image_encoder" in {part.folder for part in checkpoint.parts})
        assert ("transformer_2" in PUBLISHED[name]) == (checkpoint.defaults.low_noise_guidance_scale > 0)


def test_values_of_the_publishers() -> None:
    """Those that are easily lost on the way: from the authors' own sampling code."""
    known = catalog()
    ends, pictures = known["wan2.1-flf2v-14b-720p"].defaults, known["wan2.1-i2v-14b-720p"].defaults
    assert (ends.shift_for(1280, 720), ends.num_steps, pictures.num_steps) == (16.0, 50, 40)
    assert ends.negative_prompt == "镜头切换，" + pictures.negative_prompt
    assert pictures.negative_prompt == "镜头晃动，" + known["wan2.1-t2v-14b"].defaults.negative_prompt
    assert known["wan2.2-i2v-a14b"].defaults.negative_prompt == known["wan2.1-t2v-14b"].defaults.negative_prompt
    assert known["fastwan2.2-ti2v-5b"].defaults.timesteps == (1000, 757, 522)
    sparse = known["fastwan2.1-t2v-1.3b"]
    assert (sparse.native.width, sparse.native.height, sparse.native.num_frames) == (832, 448, 61)
    assert sparse.config == {"transformer.sparsity": 0.8} and sparse.defaults.timesteps == (1000, 757, 522)
    assert not any(checkpoint.config for checkpoint in known.values() if checkpoint is not sparse)
    four = known["wan2.2-t2v-a14b-4step"]
    shifted = [1000 * 5 * sigma / (1 + 4 * sigma) for sigma in (1, 0.75, 0.5, 0.25)]  # LightX2V's own scheduler
    assert four.defaults.timesteps == pytest.approx(shifted) and [part.folder for part in four.loras] == [
        "lora_high",
        "lora_low",
    ]
    large = known["ltx-video-13b-0.9.8-distilled"]
    assert large.defaults.timesteps == (1000, 993, 987, 981, 975, 909, 725, 0.03)
    assert (large.native.width, large.native.height, large.native.fps) == (1216, 704, 30)
    assert "10 million" in large.licence.commercial
    small, dev = known["ltx-video-0.9.8-distilled"], known["ltx-video-13b-0.9.8-dev"]
    assert small.defaults == large.defaults and small.file == "ltxv-2b-0.9.8-distilled.safetensors"
    assert {part.file for part in (*small.parts, *dev.parts)} == {"", "ltxv-spatial-upscaler-0.9.8.safetensors"}
    second = [level.timestep for level in linear_quadratic(10)[6:-1]]
    assert dev.defaults.second_pass == pytest.approx(second) and dev.defaults.num_steps == 30
    fast = known["ltx-video-0.9.6-distilled"].defaults
    listed = [level.sigma for level in linear_quadratic(fast.num_steps)[:-1]]
    assert listed == pytest.approx([1, 0.9937, 0.9875, 0.9812, 0.975, 0.9094, 0.725, 0.4219], abs=1e-4)
    assert (fast.solver, fast.guidance_scale, fast.negative_prompt) == ("renoise", 1, "")


@pytest.mark.parametrize("name", FEW_STEPS)
def test_few_steps_take_no_guidance_and_no_negative_prompt(name: str) -> None:
    checkpoint = find(name)
    defaults, size = checkpoint.defaults, VideoSize(64, 64, 9, checkpoint.native.fps)
    guidance = defaults.guidance_scale
    request = Request("a", "", size, 0, defaults.num_steps, guidance, guidance, defaults.shift, defaults.solver, name)
    assert not request.is_guided and defaults.negative_prompt == ""


SHAPE = (1, 4, 3, 5, 6)


def velocity(latents: Tensor, timestep: float) -> Tensor:
    """A toy transformer whose frames look at each other."""
    return torch.tanh(latents * 1.3 + latents.mean(2, keepdim=True) + timestep / 1000)


@pytest.mark.parametrize("name", FEW_STEPS)
def test_few_steps_are_those_of_the_reference_scheduler(name: str) -> None:
    """New noise, where there is some, follows the starting noise in the generator of the seed."""
    defaults = catalog()[name].defaults
    stochastic = defaults.solver == "renoise"
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=1.0, stochastic_sampling=stochastic)
    scheduler.set_timesteps(timesteps=list(defaults.timesteps))
    schedule = make_schedule(defaults.schedule, defaults.num_steps, defaults.shift, 4096, defaults.timesteps)
    torch.testing.assert_close(torch.tensor([level.sigma for level in schedule]), scheduler.sigmas)
    torch.testing.assert_close(torch.tensor([level.timestep for level in schedule[:-1]]), scheduler.timesteps)

    generator = torch.Generator().manual_seed(9)
    latents = torch.randn(SHAPE, generator=generator)

    def denoiser(latents: Tensor, level: NoiseLevel, mask: Tensor | None = None) -> Tensor:
        return latents - level.sigma * velocity(latents, level.timestep)

    ours = [step.latents for step in denoise(denoiser, latents, schedule, make_solver(defaults.solver, schedule, 9))]
    for step, timestep in zip(ours, scheduler.timesteps, strict=True):
        predicted = velocity(latents, float(timestep))
        latents = scheduler.step(predicted, timestep, latents, generator=generator, return_dict=False)[0]
        assert float((step - latents).abs().max() / latents.abs().max()) <= 1e-6
