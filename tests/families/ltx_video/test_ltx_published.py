"""The published VAEs, built without memory in both libraries, and what is refused.

tests/test_catalog_published.py compares the other networks, too.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("diffusers")

from diffusers import AutoencoderKLLTXVideo
from torch import nn

from soragen.errors import WeightsError
from soragen.families.ltx_video.transformer import TransformerConfig
from soragen.families.ltx_video.vae import LtxVae, VaeConfig
from soragen.models.config import read_config

PUBLISHED_091 = {
    "block_out_channels": [128, 256, 512, 512], "decoder_block_out_channels": [256, 512, 1024],
    "decoder_layers_per_block": [5, 6, 7, 8], "decoder_spatio_temporal_scaling": [True, True, True],
    "decoder_inject_noise": [True, True, True, False], "upsample_residual": [True, True, True],
    "upsample_factor": [2, 2, 2], "timestep_conditioning": True,
}  # fmt: skip
PUBLISHED_095 = PUBLISHED_091 | {
    "block_out_channels": [128, 256, 512, 1024, 2048], "down_block_types": ["LTXVideo095DownBlock3D"] * 4,
    "layers_per_block": [4, 6, 6, 2, 2], "decoder_layers_per_block": [5, 5, 5, 5],
    "spatio_temporal_scaling": [True] * 4, "decoder_inject_noise": [False] * 4,
    "downsample_type": ["spatial", "temporal", "spatiotemporal", "spatiotemporal"],
    "spatial_compression_ratio": 32, "temporal_compression_ratio": 8,
}  # fmt: skip


def write_config(folder: Path, values: dict[str, Any]) -> Path:
    (folder / "config.json").write_text(json.dumps({"_class_name": "X", "_diffusers_version": "0.32.0"} | values))
    return folder


def check(ours: nn.Module, theirs: nn.Module, num_values: int, num_tensors: int) -> None:
    wanted = {name: tensor.shape for name, tensor in theirs.state_dict().items()}
    assert {name: tensor.shape for name, tensor in ours.state_dict().items()} == wanted
    assert len(wanted) == num_tensors
    assert sum(parameter.numel() for parameter in ours.parameters()) == num_values


@pytest.mark.parametrize(
    ("values", "num_values", "num_tensors"),
    [({}, 419_193_649, 190), (PUBLISHED_091, 934_976_434, 294), (PUBLISHED_095, 1_246_913_522, 226)],
    ids=["0.9.0", "0.9.1", "0.9.5"],
)
def test_vaes(tmp_path: Path, values: dict[str, Any], num_values: int, num_tensors: int) -> None:
    config = read_config(write_config(tmp_path, values), VaeConfig)
    assert config.stride == (8, 32, 32)
    with torch.device("meta"):
        check(LtxVae(config), AutoencoderKLLTXVideo(**values), num_values, num_tensors)


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        (TransformerConfig, {"patch_size": 2}),
        (TransformerConfig, {"cross_attention_dim": 4096}),
        (TransformerConfig, {"rope_type": "split"}),
        (VaeConfig, {"decoder_causal": True}),
        (VaeConfig, {"layers_per_block": [4, 3, 3]}),
        (VaeConfig, {"downsample_type": ["other"] * 4}),
    ],
)
def test_another_kind_of_network_is_refused(tmp_path: Path, kind: type, values: dict[str, Any]) -> None:
    with pytest.raises(WeightsError):
        read_config(write_config(tmp_path, values), kind)
