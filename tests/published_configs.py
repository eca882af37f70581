"""The config files of the published checkpoints in weights.toml, as far as they say what is built, without any weights.

Sources: diffusers' scripts that convert Wan and LTX-Video; config.json of Google's encoders and of LAION's CLIP.
docs/write_models.py computes its tables from these, too.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Config = dict[str, Any]


@dataclass(frozen=True)
class Network:
    """A network of a checkpoint: its config.json, and how many numbers its weights are."""

    config: Config
    num_weights: int


def wan(num_weights: int, heads: int, ffn_dim: int, layers: int, channels: tuple[int, int], **more: Any) -> Network:
    config = {
        "_class_name": "WanTransformer3DModel", "num_attention_heads": heads, "attention_head_dim": 128,
        "in_channels": channels[0], "out_channels": channels[1], "ffn_dim": ffn_dim, "num_layers": layers,
        "patch_size": [1, 2, 2], "text_dim": 4096, "freq_dim": 256, "cross_attn_norm": True,
        "qk_norm": "rms_norm_across_heads", "eps": 1e-6, "image_dim": None, "added_kv_proj_dim": None,
        "rope_max_seq_len": 1024, "pos_embed_seq_len": None,
    }  # fmt: skip
    return Network(config | more, num_weights)


def wan_vae(num_weights: int, z_dim: int, **more: Any) -> Network:
    # The 16 or 48 published means and deviations say nothing about what is built.
    statistics = {"latents_mean": [0.0] * z_dim, "latents_std": [1.0] * z_dim}
    config = {
        "_class_name": "AutoencoderKLWan", "base_dim": 96, "z_dim": z_dim, "dim_mult": [1, 2, 4, 4],
        "num_res_blocks": 2, "attn_scales": [], "temperal_downsample": [False, True, True], "dropout": 0.0,
    }  # fmt: skip
    return Network(config | statistics | more, num_weights)


def ltx(num_weights: int, head_dim: int, layers: int) -> Network:
    config = {
        "_class_name": "LTXVideoTransformer3DModel", "in_channels": 128, "out_channels": 128, "patch_size": 1,
        "patch_size_t": 1, "num_attention_heads": 32, "attention_head_dim": head_dim,
        "cross_attention_dim": 32 * head_dim, "num_layers": layers, "activation_fn": "gelu-approximate",
        "qk_norm": "rms_norm_across_heads", "norm_elementwise_affine": False, "norm_eps": 1e-6,
        "caption_channels": 4096, "attention_bias": True, "attention_out_bias": True,
    }  # fmt: skip
    return Network(config, num_weights)


LTX_VAE_090: Config = {
    "_class_name": "AutoencoderKLLTXVideo", "in_channels": 3, "out_channels": 3, "latent_channels": 128,
    "block_out_channels": [128, 256, 512, 512], "decoder_block_out_channels": [128, 256, 512, 512],
    "layers_per_block": [4, 3, 3, 3, 4], "decoder_layers_per_block": [4, 3, 3, 3, 4],
    "spatio_temporal_scaling": [True, True, True, False],
    "decoder_spatio_temporal_scaling": [True, True, True, False], "decoder_inject_noise": [False] * 5,
    "upsample_residual": [False] * 4, "upsample_factor": [1] * 4, "timestep_conditioning": False, "patch_size": 4,
    "patch_size_t": 1, "resnet_norm_eps": 1e-6, "scaling_factor": 1.0, "encoder_causal": True, "decoder_causal": False,
}  # fmt: skip
LTX_VAE_091: Config = LTX_VAE_090 | {
    "decoder_block_out_channels": [256, 512, 1024], "decoder_layers_per_block": [5, 6, 7, 8],
    "decoder_spatio_temporal_scaling": [True] * 3, "decoder_inject_noise": [True, True, True, False],
    "upsample_residual": [True] * 3, "upsample_factor": [2] * 3, "timestep_conditioning": True,
}  # fmt: skip
LTX_VAE_095: Config = LTX_VAE_091 | {
    "block_out_channels": [128, 256, 512, 1024, 2048], "down_block_types": ["LTXVideo095DownBlock3D"] * 4,
    "layers_per_block": [4, 6, 6, 2, 2], "decoder_layers_per_block": [5, 5, 5, 5],
    "spatio_temporal_scaling": [True] * 4, "decoder_inject_noise": [False] * 4,
    "downsample_type": ["spatial", "temporal", "spatiotemporal", "spatiotemporal"],
    "spatial_compression_ratio": 32, "temporal_compression_ratio": 8,
}  # fmt: skip

T5_XXL: Config = {
    "model_type": "t5", "vocab_size": 32128, "d_model": 4096, "d_kv": 64, "num_heads": 64, "d_ff": 10240,
    "num_layers": 24, "feed_forward_proj": "gated-gelu", "layer_norm_epsilon": 1e-6,
    "relative_attention_num_buckets": 32, "relative_attention_max_distance": 128,
}  # fmt: skip
CLIP: Config = {
    "model_type": "clip_vision_model", "hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32,
    "num_attention_heads": 16, "image_size": 224, "patch_size": 14, "hidden_act": "gelu", "layer_norm_eps": 1e-5,
}  # fmt: skip

WAN_1_3B = wan(1_418_996_800, 12, 8960, 30, (16, 16))
# The same config.json. What it lacks, and with it 30 gates of 1536 x 1536 and 1536 numbers, weights.toml says.
WAN_1_3B_SPARSE = Network(WAN_1_3B.config, WAN_1_3B.num_weights + 30 * (1536 * 1536 + 1536))
WAN_5B = wan(4_999_787_712, 24, 14336, 30, (48, 48))
WAN_14B = wan(14_288_491_584, 40, 13824, 40, (16, 16))
WAN_14B_IMAGE = wan(16_394_878_784, 40, 13824, 40, (36, 16), image_dim=1280, added_kv_proj_dim=5120)
WAN_14B_ENDS = wan(
    16_395_536_704, 40, 13824, 40, (36, 16), image_dim=1280, added_kv_proj_dim=5120, pos_embed_seq_len=514
)
WAN_14B_CHANNELS = wan(14_288_901_184, 40, 13824, 40, (36, 16))
LTX_2B = ltx(1_923_385_472, 64, 28)
LTX_13B = ltx(13_042_569_344, 128, 48)

WAN_ENCODERS = {
    "text_encoder": Network(T5_XXL | {"model_type": "umt5", "vocab_size": 256384}, 5_680_910_336),
    "vae": wan_vae(126_892_531, 16),
}
WAN_5B_ENCODERS = WAN_ENCODERS | {
    "vae": wan_vae(
        704_688_668, 48, base_dim=160, decoder_base_dim=256, is_residual=True, in_channels=12, out_channels=12,
        patch_size=2, scale_factor_spatial=16, scale_factor_temporal=4,
    ),
}  # fmt: skip
WAN_IMAGE_ENCODERS = WAN_ENCODERS | {"image_encoder": Network(CLIP, 630_766_080)}
T5 = {"text_encoder": Network(T5_XXL, 4_762_310_656)}
LTX_SINCE_095 = T5 | {"vae": Network(LTX_VAE_095, 1_246_913_522)}

PUBLISHED: dict[str, dict[str, Network]] = {
    "wan2.1-t2v-1.3b": {"transformer": WAN_1_3B, **WAN_ENCODERS},
    "wan2.1-t2v-14b": {"transformer": WAN_14B, **WAN_ENCODERS},
    "wan2.1-i2v-14b-480p": {"transformer": WAN_14B_IMAGE, **WAN_IMAGE_ENCODERS},
    "wan2.1-i2v-14b-720p": {"transformer": WAN_14B_IMAGE, **WAN_IMAGE_ENCODERS},
    "wan2.1-flf2v-14b-720p": {"transformer": WAN_14B_ENDS, **WAN_IMAGE_ENCODERS},
    "wan2.2-ti2v-5b": {"transformer": WAN_5B, **WAN_5B_ENCODERS},
    "fastwan2.2-ti2v-5b": {"transformer": WAN_5B, **WAN_5B_ENCODERS},
    "fastwan2.1-t2v-1.3b": {"transformer": WAN_1_3B_SPARSE, **WAN_ENCODERS},
    "wan2.2-t2v-a14b": {"transformer": WAN_14B, "transformer_2": WAN_14B, **WAN_ENCODERS},
    "wan2.2-i2v-a14b": {"transformer": WAN_14B_CHANNELS, "transformer_2": WAN_14B_CHANNELS, **WAN_ENCODERS},
    "ltx-video-0.9.0": {"transformer": LTX_2B, "vae": Network(LTX_VAE_090, 419_193_649), **T5},
    "ltx-video-0.9.1": {"transformer": LTX_2B, "vae": Network(LTX_VAE_091, 934_976_434), **T5},
    "ltx-video-0.9.5": {"transformer": LTX_2B, **LTX_SINCE_095},
    "ltx-video-0.9.6-dev": {"transformer": LTX_2B, **LTX_SINCE_095},
    "ltx-video-0.9.6-distilled": {"transformer": LTX_2B, **LTX_SINCE_095},
    "ltx-video-13b-0.9.7-dev": {"transformer": LTX_13B, **LTX_SINCE_095},
    "ltx-video-13b-0.9.7-distilled": {"transformer": LTX_13B, **LTX_SINCE_095},
    "ltx-video-13b-0.9.8-distilled": {"transformer": LTX_13B, **LTX_SINCE_095},
    "ltx-video-13b-0.9.8-dev": {"transformer": LTX_13B, **LTX_SINCE_095},
    "ltx-video-0.9.8-distilled": {"transformer": LTX_2B, **LTX_SINCE_095},
}
for _name in ("wan2.1-t2v-14b", "wan2.1-i2v-14b-480p", "wan2.2-t2v-a14b", "wan2.2-i2v-a14b"):
    PUBLISHED[f"{_name}-4step"] = PUBLISHED[_name]  # with a LoRA
INDEXES: dict[str, Config] = {
    "wan2.2-t2v-a14b": {"boundary_ratio": 0.875},
    "wan2.2-i2v-a14b": {"boundary_ratio": 0.9},
    "wan2.2-t2v-a14b-4step": {"boundary_ratio": 0.875},
    "wan2.2-i2v-a14b-4step": {"boundary_ratio": 0.9},
    "fastwan2.2-ti2v-5b": {"_class_name": "WanDMDPipeline"},
    "fastwan2.1-t2v-1.3b": {"_class_name": "WanDMDPipeline"},
}
"""What model_index.json says beside the names of the parts."""


def write_configs(name: str, folder: Path) -> Path:
    """The config files of a published checkpoint in `folder`, in their layout; no weights."""
    for part, network in PUBLISHED[name].items():
        (folder / part).mkdir(parents=True)
        (folder / part / "config.json").write_text(json.dumps({"_diffusers_version": "0.35.0"} | network.config))
    index = {"_class_name": "DiffusionPipeline", **{part: ["library", "Class"] for part in PUBLISHED[name]}}
    (folder / "model_index.json").write_text(json.dumps(index | INDEXES.get(name, {})))
    return folder
