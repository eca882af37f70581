"""Small random LTX-Video networks of the reference library, no weight of them trivial, and ours with their weights."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("diffusers")

from diffusers import AutoencoderKLLTXVideo, LTXVideoTransformer3DModel

from soragen.families.ltx_video.transformer import LtxTransformer, TransformerConfig
from soragen.families.ltx_video.vae import LtxVae, VaeConfig

TRANSFORMER: dict[str, Any] = {
    "in_channels": 16, "out_channels": 16, "num_attention_heads": 2, "attention_head_dim": 32, "num_layers": 2,
    "cross_attention_dim": 64, "caption_channels": 24,
}  # fmt: skip
ODD_WIDTH: dict[str, Any] = TRANSFORMER | {
    "num_attention_heads": 3,
    "attention_head_dim": 40,
    "cross_attention_dim": 120,
}
"""120 channels divide by 6, 64 leave 4 that do not turn."""


def relative_error(ours: Tensor, theirs: Tensor) -> float:
    """|ours - theirs| / |theirs|, both of one shape."""
    assert ours.shape == theirs.shape
    return float((ours.double() - theirs.double()).norm() / theirs.double().norm())


def randomise(network: nn.Module, seed: int = 0) -> None:
    """Scales are 1 + 0.1 n, biases 0.1 n, matrices n / sqrt(fan in), tables and injected noise n."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in network.state_dict().items():
            n = torch.randn(tensor.shape, generator=generator)
            last = name.rsplit(".", 1)[-1]
            if last == "timestep_scale_multiplier":
                continue
            if last == "bias" or last == "latents_mean":
                tensor.copy_(0.1 * n)
            elif "norm" in name or last == "latents_std":
                tensor.copy_(1 + 0.1 * n)
            elif "table" in last or "per_channel_scale" in last:
                tensor.copy_(0.5 * n)
            else:
                tensor.copy_(n / tensor[0].numel() ** 0.5)


def their_transformer(config: dict[str, Any], seed: int = 0) -> LTXVideoTransformer3DModel:
    network = LTXVideoTransformer3DModel(**config).eval()
    randomise(network, seed)
    return network


def our_transformer(config: dict[str, Any], theirs: nn.Module, causal_time: bool = False) -> LtxTransformer:
    network = LtxTransformer(TransformerConfig(**config), causal_time)
    network.load_state_dict(theirs.state_dict(), strict=True)
    return network.eval().requires_grad_(False)


VAE_090: dict[str, Any] = {
    "latent_channels": 16,
    "block_out_channels": (8, 16, 24, 24), "decoder_block_out_channels": (8, 16, 24, 24),
    "layers_per_block": (2, 1, 1, 1, 1), "decoder_layers_per_block": (1, 1, 1, 1, 2),
}  # fmt: skip
VAE_091: dict[str, Any] = {
    "latent_channels": 16,
    "block_out_channels": (8, 16, 24, 24), "decoder_block_out_channels": (16, 32, 64),
    "layers_per_block": (1, 1, 1, 1, 1), "decoder_layers_per_block": (1, 2, 1, 2),
    "decoder_spatio_temporal_scaling": (True,) * 3, "decoder_inject_noise": (True, True, True, False),
    "upsample_residual": (True,) * 3, "upsample_factor": (2,) * 3, "timestep_conditioning": True,
}  # fmt: skip
VAE_095: dict[str, Any] = VAE_091 | {
    "block_out_channels": (8, 16, 16, 32, 64), "down_block_types": ("LTXVideo095DownBlock3D",) * 4,
    "spatio_temporal_scaling": (True,) * 4, "decoder_inject_noise": (False,) * 4,
    "downsample_type": ("spatial", "temporal", "spatiotemporal", "spatiotemporal"),
    "spatial_compression_ratio": 32, "temporal_compression_ratio": 8,
}  # fmt: skip
VAES = {"0.9.0": VAE_090, "0.9.1": VAE_091, "0.9.5": VAE_095}


def their_vae(config: dict[str, Any], seed: int = 0) -> AutoencoderKLLTXVideo:
    network = AutoencoderKLLTXVideo(**config).eval()
    randomise(network, seed)
    return network


def our_vae(config: dict[str, Any], theirs: nn.Module) -> LtxVae:
    network = LtxVae(VaeConfig(**config))
    network.load_state_dict(theirs.state_dict(), strict=True)
    return network.eval().requires_grad_(False)
