"""The names of LTX-Video's tensors in the authors' own files, which hold transformer and VAE in one, and their configs.

Facts: the module names in https://github.com/Lightricks/LTX-Video and diffusers' conversion script. The tests compare
with diffusers' converters.
"""

from __future__ import annotations

from typing import Any

from soragen.families.ltx_video.vae import VaeConfig
from soragen.models.keys import Naming, Shapes, num_blocks, our_shapes

TEXT_ENCODER = {"model_type": "t5", "d_model": 4096}
NUM_HEADS = 32
"""Of every published transformer; shapes do not tell."""

TRANSFORMER = Naming(
    "patchify_proj.weight",
    {"patchify_proj": "proj_in", "adaln_single": "time_embed", "q_norm": "norm_q", "k_norm": "norm_k"},
    unread=("vae.",),
)

LAYERS = {
    "res_blocks": "resnets",
    "conv_shortcut": "conv_shortcut.conv",
    "norm3.norm": "norm3",
    "decoder.last_time_embedder": "decoder.time_embedder",
    "decoder.last_scale_shift_table": "decoder.scale_shift_table",
    "per_channel_statistics.mean-of-means": "latents_mean",
    "per_channel_statistics.std-of-means": "latents_std",
}
UNREAD = ("per_channel_statistics.channel", "per_channel_statistics.mean-of-stds")
"""Other statistics of the training set."""


def vae_naming(config: VaeConfig) -> Naming:
    """Of the VAE. The authors number all layers of the encoder, and of the decoder, where ours are in blocks."""
    encoder, decoder = [], ["mid_block"]
    widths = config.block_out_channels
    for level in range(config.num_down_blocks):
        encoder.append(f"down_blocks.{level}")
        if config.spatio_temporal_scaling[level]:
            encoder.append(f"down_blocks.{level}.downsamplers.0")
        if not config.folds_space and widths[level] != widths[min(level + 1, len(widths) - 1)]:
            encoder.append(f"down_blocks.{level}.conv_out")
    encoder.append("mid_block")
    # The config's lists run from the finest level to the coarsest, the blocks from the coarsest to the finest.
    width, num_levels = config.decoder_block_out_channels[-1], len(config.decoder_block_out_channels)
    for level in range(num_levels):
        index = num_levels - 1 - level
        entering, width = (
            width // config.upsample_factor[index],
            config.decoder_block_out_channels[index] // config.upsample_factor[index],
        )
        if entering != width:
            decoder.append(f"up_blocks.{level}.conv_in")
        if config.decoder_spatio_temporal_scaling[index]:
            decoder.append(f"up_blocks.{level}.upsamplers.0")
        decoder.append(f"up_blocks.{level}")
    numbered = {f"encoder.down_blocks.{n}": f"encoder.{ours}" for n, ours in enumerate(encoder)}
    numbered |= {f"decoder.up_blocks.{n}": f"decoder.{ours}" for n, ours in enumerate(decoder)}
    return Naming("per_channel_statistics.mean-of-means", numbered | LAYERS, UNREAD)


def configs(shapes: Shapes) -> dict[str, dict[str, Any]]:
    """See `soragen.models.keys.ReadsSingleFiles`."""
    found = {
        "transformer": transformer_config(shapes),
        "vae": vae_config(shapes),
        "latent_upsampler": upsampler_config(shapes),
    }
    return {component: config for component, config in found.items() if config is not None}


def transformer_config(stored: Shapes) -> dict[str, Any] | None:
    """The config.json of the transformer in a file with these shapes, None where there is none."""
    shapes = our_shapes(stored, [TRANSFORMER])
    into, caption = shapes.get("proj_in.weight"), shapes.get("caption_projection.linear_1.weight")
    if into is None or caption is None:
        return None
    return {
        "_class_name": "LTXVideoTransformer3DModel",
        "in_channels": into[1],
        "out_channels": shapes["proj_out.weight"][0],
        "num_attention_heads": NUM_HEADS,
        "attention_head_dim": into[0] // NUM_HEADS,
        "cross_attention_dim": shapes["transformer_blocks.0.attn2.to_k.weight"][1],
        "num_layers": num_blocks(shapes, "transformer_blocks"),
        "caption_channels": caption[1],
    }


def vae_config(stored: Shapes) -> dict[str, Any] | None:
    """The published config.json of the VAE in a file with these shapes, None where there is none."""
    shapes = our_shapes(stored, [Naming("decoder.conv_in.conv.weight")])
    last = shapes.get("encoder.conv_out.conv.weight")
    if last is None or len(last) != 5:
        return None
    told = any(name.startswith(("decoder.last_time_embedder.", "decoder.time_embedder.")) for name in shapes)
    return {"_class_name": "AutoencoderKLLTXVideo"} | (VAE_095 if last[1] == 2048 else VAE_091 if told else VAE_090)


def upsampler_config(shapes: Shapes) -> dict[str, Any] | None:
    """The config.json of the spatial latent upsampler that a file with these shapes is, None for anything else.

    The authors' names are the published ones. Their temporal upsampler has a convolution in time in its place.
    """
    first, middle = shapes.get("initial_conv.weight"), shapes.get("upsampler.0.weight")
    if first is None or middle is None or len(middle) != 4 or "post_upsample_res_blocks.0.conv1.weight" not in shapes:
        return None
    return {
        "_class_name": "LTXLatentUpsamplerModel",
        "in_channels": first[1],
        "mid_channels": first[0],
        "num_blocks_per_stage": num_blocks(shapes, "res_blocks"),
    }


VAE_090: dict[str, Any] = {"decoder_layers_per_block": [4, 3, 3, 3, 4]}
VAE_091: dict[str, Any] = {
    "decoder_block_out_channels": [256, 512, 1024],
    "decoder_layers_per_block": [5, 6, 7, 8],
    "decoder_spatio_temporal_scaling": [True, True, True],
    "decoder_inject_noise": [True, True, True, False],
    "upsample_residual": [True, True, True],
    "upsample_factor": [2, 2, 2],
    "timestep_conditioning": True,
}
VAE_095: dict[str, Any] = VAE_091 | {
    "block_out_channels": [128, 256, 512, 1024, 2048],
    "down_block_types": ["LTXVideo095DownBlock3D"] * 4,
    "layers_per_block": [4, 6, 6, 2, 2],
    "decoder_layers_per_block": [5, 5, 5, 5],
    "spatio_temporal_scaling": [True, True, True, True],
    "decoder_inject_noise": [False, False, False, False],
    "downsample_type": ["spatial", "temporal", "spatiotemporal", "spatiotemporal"],
    "spatial_compression_ratio": 32,
    "temporal_compression_ratio": 8,
}
"""What a config says beyond the defaults of `VaeConfig`, which are those of 0.9.0."""
