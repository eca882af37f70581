"""The names of Wan's tensors in the authors' own files, which others repackage as they are, and their configs.

Facts: the module names in https://github.com/Wan-Video/Wan2.1 and Wan2.2, and diffusers' conversion scripts. The tests
compare with diffusers' converters. A repackaged CLIP encoder has the published names.
"""

from __future__ import annotations

from math import prod
from typing import Any

from soragen.models.keys import Naming, Shapes, num_blocks, our_shapes

TEXT_ENCODER = {"model_type": "umt5", "d_model": 4096}
HEAD_DIM = 128
"""Of every published transformer; shapes do not tell."""

TRANSFORMER = Naming(
    "head.modulation",
    {
        "time_embedding.0": "condition_embedder.time_embedder.linear_1",
        "time_embedding.2": "condition_embedder.time_embedder.linear_2",
        "time_projection.1": "condition_embedder.time_proj",
        "text_embedding.0": "condition_embedder.text_embedder.linear_1",
        "text_embedding.2": "condition_embedder.text_embedder.linear_2",
        "img_emb.emb_pos": "condition_embedder.image_embedder.pos_embed",
        "img_emb.proj.0": "condition_embedder.image_embedder.norm1",
        "img_emb.proj.1": "condition_embedder.image_embedder.ff.net.0.proj",
        "img_emb.proj.3": "condition_embedder.image_embedder.ff.net.2",
        "img_emb.proj.4": "condition_embedder.image_embedder.norm2",
        "self_attn": "attn1",
        "cross_attn": "attn2",
        "q": "to_q",
        "k": "to_k",
        "v": "to_v",
        "o": "to_out.0",
        "k_img": "add_k_proj",
        "v_img": "add_v_proj",
        "norm_k_img": "norm_added_k",
        "norm3": "norm2",  # the authors count by the order in which they made them
        "ffn.0": "ffn.net.0.proj",
        "ffn.2": "ffn.net.2",
        "modulation": "scale_shift_table",
        "head.modulation": "scale_shift_table",
        "head.head": "proj_out",
    },
)


def vae_naming(num_levels: int, num_res_blocks: int, is_residual: bool) -> Naming:
    """Of the VAE. Version 2.2 numbers the layers of each level, version 2.1 (not is_residual) those of all levels."""
    names = {
        "conv1": "quant_conv",
        "conv2": "post_quant_conv",
        "encoder.conv1": "encoder.conv_in",
        "decoder.conv1": "decoder.conv_in",
        "middle.0": "mid_block.resnets.0",
        "middle.1": "mid_block.attentions.0",
        "middle.2": "mid_block.resnets.1",
        "head.0": "norm_out",
        "head.2": "conv_out",
        "residual.0": "norm1",
        "residual.2": "conv1",
        "residual.3": "norm2",
        "residual.6": "conv2",
        "shortcut": "conv_shortcut",
        "encoder.downsamples": "encoder.down_blocks",
    }
    for level in range(num_levels):
        down, up = f"encoder.downsamples.{level}.downsamples", f"decoder.upsamples.{level}.upsamples"
        if is_residual:
            names |= {f"{down}.{n}": f"encoder.down_blocks.{level}.resnets.{n}" for n in range(num_res_blocks)}
            names[f"{down}.{num_res_blocks}"] = f"encoder.down_blocks.{level}.downsampler"
        for n in range(num_res_blocks + 1):
            stored = f"{up}.{n}" if is_residual else f"decoder.upsamples.{level * (num_res_blocks + 2) + n}"
            names[stored] = f"decoder.up_blocks.{level}.resnets.{n}"
        last = num_res_blocks + 1
        if is_residual:
            names[f"{up}.{last}"] = f"decoder.up_blocks.{level}.upsampler"
        else:
            names[f"decoder.upsamples.{level * (last + 1) + last}"] = f"decoder.up_blocks.{level}.upsamplers.0"
    return Naming("decoder.middle.0.residual.0.gamma", names)


def configs(shapes: Shapes) -> dict[str, dict[str, Any]]:
    """See `soragen.models.keys.ReadsSingleFiles`."""
    vision = ("vision_model.embeddings.class_embedding", "vision_model.encoder.layers.31.layer_norm1.weight")
    found = {"transformer": transformer_config(shapes), "vae": vae_config(shapes)}
    found["image_encoder"] = CLIP if all(name in shapes for name in vision) else None
    return {component: config for component, config in found.items() if config is not None}


def transformer_config(stored: Shapes) -> dict[str, Any] | None:
    """The config.json of the transformer in a file with these shapes, None where there is none."""
    shapes = our_shapes(stored, [TRANSFORMER])
    patch, out = shapes.get("patch_embedding.weight"), shapes.get("proj_out.weight")
    text = shapes.get("condition_embedder.text_embedder.linear_1.weight")
    if patch is None or out is None or text is None:
        return None
    width, image = patch[0], shapes.get("condition_embedder.image_embedder.norm1.weight")
    places = shapes.get("condition_embedder.image_embedder.pos_embed")
    return {
        "_class_name": "WanTransformer3DModel",
        "num_attention_heads": width // HEAD_DIM,
        "attention_head_dim": HEAD_DIM,
        "in_channels": patch[1],
        "out_channels": out[0] // prod(patch[2:]),
        "ffn_dim": shapes["blocks.0.ffn.net.0.proj.weight"][0],
        "num_layers": num_blocks(shapes, "blocks"),
        "patch_size": list(patch[2:]),
        "text_dim": text[1],
        "freq_dim": shapes["condition_embedder.time_embedder.linear_1.weight"][1],
        "cross_attn_norm": "blocks.0.norm2.weight" in shapes,
        "image_dim": image[0] if image else None,
        "added_kv_proj_dim": width if image else None,
        "pos_embed_seq_len": places[1] if places else None,
    }


def vae_config(stored: Shapes) -> dict[str, Any] | None:
    """The published config.json of the VAE in a file with these shapes, None where there is none of them."""
    mark = "decoder.mid_block.resnets.0.norm1.gamma"
    shapes = our_shapes(stored, [vae_naming(4, 2, is_residual=False), Naming(mark)])
    last = shapes.get("post_quant_conv.weight")
    return VAES.get(last[0]) if last is not None and mark in shapes else None


CLIP: dict[str, Any] = {
    "hidden_size": 1280,
    "intermediate_size": 5120,
    "num_hidden_layers": 32,
    "num_attention_heads": 16,
    "image_size": 224,
    "patch_size": 14,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-5,
}
"""Of ViT-H/14, beside every image-to-video transformer of Wan 2.1."""

VAES: dict[int, dict[str, Any]] = {
    16: {
        "_class_name": "AutoencoderKLWan",
        "z_dim": 16,
        "latents_mean": [
            -0.7571, -0.7089, -0.9113, 0.1075, -0.1745, 0.9653, -0.1517, 1.5508, 0.4134, -0.0715, 0.5517, -0.3632,
            -0.1922, -0.9497, 0.2503, -0.2921,
        ],
        "latents_std": [
            2.8184, 1.4541, 2.3275, 2.6558, 1.2196, 1.7708, 2.6052, 2.0743, 3.2687, 2.1526, 2.8652, 1.5579, 1.6382,
            1.1253, 2.8251, 1.9160,
        ],
    },
    48: {
        "_class_name": "AutoencoderKLWan",
        "z_dim": 48,
        "base_dim": 160,
        "decoder_base_dim": 256,
        "is_residual": True,
        "in_channels": 12,
        "out_channels": 12,
        "patch_size": 2,
        "scale_factor_temporal": 4,
        "scale_factor_spatial": 16,
        "latents_mean": [
            -0.2289, -0.0052, -0.1323, -0.2339, -0.2799, 0.0174, 0.1838, 0.1557, -0.1382, 0.0542, 0.2813, 0.0891,
            0.1570, -0.0098, 0.0375, -0.1825, -0.2246, -0.1207, -0.0698, 0.5109, 0.2665, -0.2108, -0.2158, 0.2502,
            -0.2055, -0.0322, 0.1109, 0.1567, -0.0729, 0.0899, -0.2799, -0.1230, -0.0313, -0.1649, 0.0117, 0.0723,
            -0.2839, -0.2083, -0.0520, 0.3748, 0.0152, 0.1957, 0.1433, -0.2944, 0.3573, -0.0548, -0.1681, -0.0667,
        ],
        "latents_std": [
            0.4765, 1.0364, 0.4514, 1.1677, 0.5313, 0.4990, 0.4818, 0.5013, 0.8158, 1.0344, 0.5894, 1.0901, 0.6885,
            0.6165, 0.8454, 0.4978, 0.5759, 0.3523, 0.7135, 0.6804, 0.5833, 1.4146, 0.8986, 0.5659, 0.7069, 0.5338,
            0.4889, 0.4917, 0.4069, 0.4999, 0.6866, 0.4093, 0.5709, 0.6065, 0.6415, 0.4944, 0.5726, 1.2042, 0.5458,
            1.6887, 0.3971, 1.0600, 0.3943, 0.5537, 0.5444, 0.4089, 0.7468, 0.7744,
        ],
    },
}  # fmt: skip
