"""LoRAs by PEFT on LTX-Video's transformer, against PEFT's own merge, in the namings in which people have them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("peft")

import torch
from ltx_reference import TRANSFORMER, relative_error, their_transformer
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file

from soragen.diffusion.grid import Compression, lay_grid
from soragen.diffusion.schedule import NoiseLevel
from soragen.families.ltx_video.keys import TRANSFORMER as NAMING
from soragen.families.ltx_video.transformer import LtxTransformer, TransformerConfig
from soragen.models.family import Context
from soragen.models.lora import Targets, fit, merging
from soragen.models.weights import load_module
from soragen.size import VideoSize

LAYERS = ["to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2", "proj_in", "time_embed.linear", "proj_out"]
LEVEL = NoiseLevel(0.2865, 0.7135, 713.5)


def build() -> LtxTransformer:
    return LtxTransformer(TransformerConfig(**TRANSFORMER), causal_time=False)


@pytest.mark.parametrize("options", [{"lora_alpha": 10}, {"lora_alpha": 4, "use_dora": True}], ids=["alpha", "dora"])
@torch.inference_mode()
def test_forward_is_that_of_pefts_own_merge(options: dict[str, Any], tmp_path: Path) -> None:
    base = their_transformer(TRANSFORMER)
    base.save_pretrained(tmp_path / "transformer")
    model = get_peft_model(base, LoraConfig(r=4, target_modules=LAYERS, **options)).eval()
    generator = torch.Generator().manual_seed(0)
    for name, weight in model.named_parameters():
        if "lora_magnitude" in name:
            weight.mul_(1 + 0.2 * torch.randn(weight.shape, generator=generator))
        elif "lora_" in name:
            weight.copy_(0.1 * torch.randn(weight.shape, generator=generator))
    model.save_pretrained(tmp_path / "adapter")
    grid = lay_grid(VideoSize(96, 64, 17, 25), Compression((8, 32, 32), (1, 1, 1)))
    latents, text = torch.randn(1, 16, *grid.latent_shape, generator=generator), torch.randn(9, 24, generator=generator)
    expected = model.merge_and_unload()(
        latents.permute(0, 2, 3, 4, 1).flatten(1, 3), text[None], torch.tensor([LEVEL.timestep]),
        torch.ones(1, 9), *grid.latent_shape, (8 / 25, 32, 32), return_dict=False,
    )[0]  # fmt: skip

    adapter = tmp_path / "adapter" / "adapter_model.safetensors"
    alpha = torch.tensor(float(options["lora_alpha"]))
    comfyui, kohya = {}, {}
    for key, tensor in load_file(adapter).items():
        layer, _, part = key.removeprefix("base_model.model.").partition(".lora_")
        layer = (NAMING.originals(f"{layer}.weight") or [f"{layer}.weight"])[0].removesuffix(".weight")
        comfyui[f"diffusion_model.{layer}.lora_{part}"] = tensor
        under = f"lora_unet_{layer.replace('.', '_')}"
        kohya[f"{under}.lora_{part}"] = tensor
        comfyui[f"diffusion_model.{layer}.alpha"] = alpha.clone()
        kohya[f"{under}.alpha"] = alpha.clone()
    save_file(comfyui, tmp_path / "comfyui.safetensors")
    save_file({key: tensor.clone() for key, tensor in kohya.items()}, tmp_path / "kohya.safetensors")

    targets = Targets.of(build, NAMING)
    for path in (adapter, tmp_path / "comfyui.safetensors", tmp_path / "kohya.safetensors"):
        change = merging([fit(path, 1.0, targets).require(partial=False)])
        network = load_module(
            build, tmp_path / "transformer", device=torch.device("cpu"), dtype=torch.float32, change=change
        )
        clean = network.bind(Context(text, torch.ones(9, dtype=torch.bool)), grid)(latents, LEVEL)
        velocity = ((latents - clean) / LEVEL.sigma).permute(0, 2, 3, 4, 1).flatten(1, 3)
        assert relative_error(velocity, expected) <= 1e-6, path.name
