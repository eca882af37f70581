"""Configs of small Wan networks and of the published ones, and random weights for them."""

from __future__ import annotations

import torch
from torch import Tensor, nn

MEAN = [-0.7571, -0.7089, -0.9113, 0.1075]
STD = [2.8184, 1.4541, 2.3275, 0.6558]

TRANSFORMER = {
    "num_attention_heads": 2, "attention_head_dim": 28, "in_channels": 4, "out_channels": 4, "text_dim": 24,
    "freq_dim": 64, "ffn_dim": 80, "num_layers": 2,
}  # fmt: skip
IMAGE_TRANSFORMER = {**TRANSFORMER, "in_channels": 12, "image_dim": 20, "added_kv_proj_dim": 56}

VAE_21 = {"base_dim": 8, "z_dim": 4, "num_res_blocks": 1, "latents_mean": MEAN, "latents_std": STD}
VAE_22 = {
    **VAE_21, "base_dim": 8, "decoder_base_dim": 12, "is_residual": True, "patch_size": 2, "in_channels": 12,
    "out_channels": 12, "scale_factor_spatial": 16,
}  # fmt: skip

# The published config.json of the transformers, but for keys that hold their default value.
PUBLISHED_TRANSFORMERS = {
    "wan2.1-t2v-1.3b": {"num_attention_heads": 12, "attention_head_dim": 128, "in_channels": 16, "out_channels": 16,
                        "ffn_dim": 8960, "num_layers": 30},
    "wan2.1-t2v-14b, wan2.2-t2v-a14b": {"num_attention_heads": 40, "attention_head_dim": 128, "in_channels": 16,
                                        "out_channels": 16, "ffn_dim": 13824, "num_layers": 40},
    "wan2.1-i2v-14b": {"num_attention_heads": 40, "attention_head_dim": 128, "in_channels": 36, "out_channels": 16,
                       "ffn_dim": 13824, "num_layers": 40, "image_dim": 1280, "added_kv_proj_dim": 5120},
    "wan2.1-flf2v-14b": {"num_attention_heads": 40, "attention_head_dim": 128, "in_channels": 36, "out_channels": 16,
                         "ffn_dim": 13824, "num_layers": 40, "image_dim": 1280, "added_kv_proj_dim": 5120,
                         "pos_embed_seq_len": 514},
    "wan2.2-i2v-a14b": {"num_attention_heads": 40, "attention_head_dim": 128, "in_channels": 36, "out_channels": 16,
                        "ffn_dim": 13824, "num_layers": 40},
    "wan2.2-ti2v-5b": {"num_attention_heads": 24, "attention_head_dim": 128, "in_channels": 48, "out_channels": 48,
                       "ffn_dim": 14336, "num_layers": 30},
}  # fmt: skip
PUBLISHED_VAES = {
    "wan2.1": {"base_dim": 96, "z_dim": 16},
    "wan2.2-ti2v-5b": {"base_dim": 160, "decoder_base_dim": 256, "z_dim": 48, "is_residual": True, "patch_size": 2,
                       "in_channels": 12, "out_channels": 12, "scale_factor_spatial": 16},
}  # fmt: skip


def randomise(network: nn.Module, seed: int = 0) -> None:
    """Every weight counts: none is zero, one, or so small that a mistake would hide."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in network.named_parameters():
            noise = torch.randn(weight.shape, generator=generator)
            if name.endswith("bias"):
                weight.copy_(0.1 * noise)
            elif "norm" in name:
                weight.copy_(1 + 0.1 * noise)
            elif "scale_shift_table" in name or "pos_embed" in name:
                weight.copy_(0.5 * noise)
            else:
                weight.copy_(noise / weight[0].numel() ** 0.5)


def error(ours: Tensor, theirs: Tensor) -> float:
    """Distance relative to the length of `theirs`."""
    assert ours.shape == theirs.shape
    return float((ours.double() - theirs.double()).norm() / theirs.double().norm())


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))
