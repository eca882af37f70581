"""Checkpoints in the published layout with random weights, as small as wanted: like the published ones, but thinner.

Configs are those of the published checkpoints (tests/published_configs.py) with fewer heads, layers and channels. The
reference library writes the files.
"""

from __future__ import annotations

import json
import math
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

sys.path.append(str(Path(__file__).resolve().parents[1] / "tests"))
from published_configs import PUBLISHED

SHIFT = 3.0
"""Of Wan's noise levels; the published ones shift by size."""


@dataclass(frozen=True)
class Scale:
    """How thin. vae_divisor: of the channels of the VAE's levels, a power of 2. vae_layers: the most residual blocks of
    a level."""

    heads: int
    head_dim: int
    layers: int
    text_width: int
    text_layers: int
    vocab_size: int
    vae_divisor: int
    vae_layers: int


TINY = Scale(2, 32, 2, 32, 2, 64, 16, 1)
SMALL = Scale(4, 128, 6, 512, 6, 32128, 4, 9)
MIDDLE = Scale(6, 128, 12, 768, 12, 32128, 4, 9)


def transformer_config(name: str, scale: Scale | None = None) -> dict[str, Any]:
    """The published config of checkpoint `name`, or a thinner one."""
    config = dict(PUBLISHED[name]["transformer"].config)
    if scale is None:
        return config
    width = scale.heads * scale.head_dim
    config |= {
        "num_attention_heads": scale.heads,
        "attention_head_dim": scale.head_dim,
        "num_layers": min(scale.layers, config["num_layers"]),
    }
    if "ffn_dim" in config:
        return config | {"ffn_dim": 4 * width, "text_dim": scale.text_width}
    return config | {"cross_attention_dim": width, "caption_channels": scale.text_width}


def vae_config(name: str, scale: Scale | None = None) -> dict[str, Any]:
    """The published config of checkpoint `name`, or a thinner one; the latents have as many channels in both."""
    config = dict(PUBLISHED[name]["vae"].config)
    if scale is None:
        return config
    for key, value in config.items():
        if key in ("base_dim", "decoder_base_dim"):
            config[key] = value // scale.vae_divisor
        elif key in ("block_out_channels", "decoder_block_out_channels"):
            config[key] = [channels // scale.vae_divisor for channels in value]
        elif key in ("layers_per_block", "decoder_layers_per_block"):
            config[key] = [min(layers, scale.vae_layers) for layers in value]
    return config


@torch.no_grad()
def fill(network: nn.Module, seed: int = 0) -> None:
    """Random weights in place, on the device where they lie: activations neither fade nor grow, and none is trivial."""
    device = next(network.parameters()).device
    generator = torch.Generator(device).manual_seed(seed)
    for name, tensor in network.state_dict().items():
        last = name.rpartition(".")[2]
        if last == "timestep_scale_multiplier":
            tensor.fill_(1000.0)
            continue
        centre, spread = 0.0, 1 / math.sqrt(max(1, tensor[0].numel())) if tensor.ndim > 1 else 0.1
        if ("norm" in name and last in ("weight", "gamma")) or last == "latents_std":
            centre, spread = 1.0, 0.1
        elif "table" in last or "per_channel_scale" in last:
            spread = 0.5
        elif last == "latents_mean":
            spread = 0.1
        tensor.normal_(centre, spread, generator=generator)


def write_checkpoint(folder: Path, name: str, scale: Scale, sides: tuple[int, int], num_frames: int) -> None:
    """A checkpoint like `name`, for videos of these sides and frames, as diffusers' pipeline saves it."""
    import diffusers
    import transformers

    parts: dict[str, Any] = {}
    for part, make_config in (("transformer", transformer_config), ("vae", vae_config)):
        config = {key: value for key, value in make_config(name, scale).items() if key != "_class_name"}
        parts[part] = getattr(diffusers, PUBLISHED[name][part].config["_class_name"])(**config).eval()
    encoder = PUBLISHED[name]["text_encoder"].config
    kind = "UMT5" if encoder["model_type"] == "umt5" else "T5"
    parts["text_encoder"] = getattr(transformers, f"{kind}EncoderModel")(
        getattr(transformers, f"{kind}Config")(**{
            **encoder, "vocab_size": scale.vocab_size, "d_model": scale.text_width, "d_kv": scale.head_dim // 2,
            "num_heads": 2 * scale.text_width // scale.head_dim, "d_ff": scale.text_width * 5 // 2,
            "num_layers": scale.text_layers,
        })
    ).eval()  # fmt: skip
    for seed, network in enumerate(parts.values()):
        fill(network, seed)
    for stack in parts["text_encoder"].encoder.block:  # T5's scores have no 1 / sqrt(d_kv): trained queries are small
        stack.layer[0].SelfAttention.q.weight.data *= (scale.head_dim // 2) ** -0.5
    pipeline, scheduler = reference_pipeline(name)
    pipeline(tokenizer=tokenizer(), scheduler=scheduler, **parts, **extra(name)).save_pretrained(folder)
    width, height = sides
    own = {"like": name, "native": {"width": width, "height": height, "num_frames": num_frames}}
    (folder / "soragen.json").write_text(json.dumps(own))


def reference_pipeline(name: str) -> tuple[Any, Any]:
    """The class of diffusers that runs a checkpoint like `name`, and its scheduler."""
    import diffusers

    if name.startswith("wan"):
        return diffusers.WanPipeline, diffusers.UniPCMultistepScheduler(
            prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=SHIFT
        )
    if name == "ltx-video-0.9.0":
        return diffusers.LTXPipeline, diffusers.FlowMatchEulerDiscreteScheduler(
            use_dynamic_shifting=True, base_shift=0.95, max_shift=2.05, base_image_seq_len=1024,
            max_image_seq_len=4096, shift_terminal=0.1,
        )  # fmt: skip
    return diffusers.LTXConditionPipeline, diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=False)


def extra(name: str) -> dict[str, Any]:
    return {"expand_timesteps": True} if name == "wan2.2-ti2v-5b" else {}


def tokenizer() -> Any:
    """Every letter is a token."""
    from tokenizers import Tokenizer, normalizers, pre_tokenizers, processors
    from tokenizers.models import Unigram
    from transformers import PreTrainedTokenizerFast

    pieces = ["<pad>", "</s>", "<unk>", "▁", *"abcdefghijklmnopqrstuvwxyz,."]
    made = Tokenizer(Unigram([(piece, -1.0) for piece in pieces], unk_id=2))
    made.normalizer, made.pre_tokenizer = normalizers.NFKC(), pre_tokenizers.Metaspace()
    made.add_special_tokens(["<pad>", "</s>", "<unk>"])
    made.post_processor = processors.TemplateProcessing("$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=made, pad_token="<pad>", eos_token="</s>", unk_token="<unk>")
