"""What a file is, told from its header: names and shapes of its tensors, under the authors' names or published ones.

It lets an error say "this is the VAE of Wan 2.2" where a list of tensors that do not fit would be no help. Nothing here
decides how a file is loaded. Only headers are read. No torch.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from soragen.errors import WeightsError
from soragen.models.keys import T5_NAMINGS, Shapes, num_blocks, our_shapes

MAX_HEADER = 100 * 2**20
"""Bytes; what the safetensors package admits."""

STARTS = {
    b"GGUF": ("a GGUF file", "soragen reads .safetensors: take the same model in that format"),
    b"PK\x03\x04": ("a pickle in a zip archive, which can run code", "convert it to .safetensors"),
    b"\x80": ("a pickle, which can run code", "convert it to .safetensors"),
    b"version https://git-lfs": ("a Git LFS pointer, not the file", "fetch the file itself: git lfs pull"),
    b"<": ("a web page", "the download failed: fetch it again, signed in if the site asks for it"),
}
"""What files that are not safetensors begin with, what they are, and what to do."""


@dataclass(frozen=True)
class Header:
    """Of one file, or of all shards of a network. dtypes: as safetensors writes them."""

    shapes: dict[str, tuple[int, ...]]
    dtypes: dict[str, str]


def read_header(path: Path) -> Header:
    """The header of a safetensors file. Raises WeightsError, which says what the file is where it is not one."""
    try:
        with path.open("rb") as file:
            start = file.read(64)
            length = int.from_bytes(start[:8], "little")
            if len(start) < 9 or length > MAX_HEADER or start[8:9] != b"{":
                raise not_safetensors(path, start)
            file.seek(8)
            entries = json.loads(file.read(length))
        entries.pop("__metadata__", None)
        shapes = {name: tuple(map(int, entry["shape"])) for name, entry in entries.items()}
        return Header(shapes, {name: str(entry["dtype"]) for name, entry in entries.items()})
    except OSError as error:
        raise WeightsError(f"{path} cannot be read: {error.strerror}", "check the path") from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise WeightsError(f"{path} is not a whole safetensors file", "fetch it again") from error


def not_safetensors(path: Path, start: bytes) -> WeightsError:
    """The error for a file that begins with these bytes."""
    for known, (what, hint) in STARTS.items():
        # Every safetensors file has { there, after the length of the header; a length may look like anything.
        if start.startswith(known) and start[8:9] not in (b"", b"{"):
            return WeightsError(f"{path} is {what}", hint)
    return WeightsError(f"{path} is not a whole safetensors file", "fetch it again")


def read_headers(paths: Iterable[Path]) -> Header:
    """The headers of a network's shards as one."""
    headers = [read_header(path) for path in paths]
    return Header(
        {name: shape for header in headers for name, shape in header.shapes.items()},
        {name: dtype for header in headers for name, dtype in header.dtypes.items()},
    )


def describe(shapes: Shapes) -> list[str]:
    """The networks that a file with these tensors holds, in words; none where it is not known.

    A LoRA is named alone: it has the names of the network that it changes.
    """
    if any(mark in name for name in shapes for mark in LORA):
        return ["a LoRA: changes to a model, not the model itself"]
    ends = _Ends(shapes)
    found = (
        _wan_transformer(ends),
        _wan_vae(ends),
        _ltx_transformer(ends),
        _ltx_vae(ends),
        _t5(shapes),
        *(text for text, marks in OTHERS.items() if all(ends.find(mark) is not None for mark in marks)),
    )
    return [text for text in found if text]


def quantised(header: Header) -> str:
    """How a file's weights are quantised, in words; "" for plain ones and for fp8, which can be read."""
    if any(name.endswith((".comfy_quant", ".absmax", ".qweight")) for name in header.dtypes):
        return "quantised (int8, int4 or another packed format)"
    if any(name.endswith((".weight_scale", ".weight_scale_2")) for name in header.dtypes):
        return "quantised, with scales of a format that is not known"
    if any(dtype in ("I8", "U8") and len(header.shapes[name]) > 1 for name, dtype in header.dtypes.items()):
        return "quantised to 8 bits or less"
    return ""


LORA = (".lora_down.", ".lora_up.", ".lora_A.", ".lora_B.", ".hada_w1", ".lokr_w1", ".diff_b")

OTHERS: dict[str, tuple[str, ...]] = {
    "a CLIP image encoder": ("vision_model.embeddings.class_embedding",),
    "a CLIP image encoder under its authors' names": ("visual.cls_embedding",),
    "a CLIP text encoder": ("text_model.embeddings.token_embedding.weight",),
    "a Flux transformer": ("double_blocks.0.img_attn.norm.key_norm.scale", "guidance_in.in_layer.weight"),
    "a HunyuanVideo transformer": ("txt_in.individual_token_refiner.blocks.0.adaLN_modulation.1.bias",),
    "a Stable Diffusion network": ("input_blocks.0.0.weight", "time_embed.0.weight"),
    "an LTX-2 transformer": ("av_ca_a2v_gate_adaln_single.linear.weight",),
    "a Mochi transformer": ("blocks.0.attn.qkv_x.weight",),
    "a CogVideoX transformer": ("transformer_blocks.0.attn1.norm_q.bias", "patch_embed.proj.weight"),
}
"""Models that people have beside these, by names that only they have."""

WAN_SIZES = {1536: "1.3B", 3072: "5B", 5120: "14B"}
LTX_SIZES = {2048: "2B", 4096: "13B"}
"""Width to how the authors call it."""


class _Ends:
    """Tensors by the end of their name: what stands before it differs from one packager to the other."""

    def __init__(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        self.shapes = {f".{name}": shape for name, shape in shapes.items()}

    def find(self, *names: str) -> tuple[int, ...] | None:
        """The shape of the tensor that is called so, by the first of these names that is there."""
        for name in names:
            if (own := self.shapes.get(f".{name}")) is not None:
                return own
            for stored, shape in self.shapes.items():
                if stored.endswith(f".{name}"):
                    return shape
        return None


def _wan_transformer(ends: _Ends) -> str:
    patch, head = ends.find("patch_embedding.weight"), ends.find("head.head.weight", "proj_out.weight")
    told = ends.find("time_projection.1.weight", "condition_embedder.time_proj.weight")
    if patch is None or told is None or head is None or len(patch) != 5:
        return ""
    tokens = ends.find("img_emb.proj.0.weight", "condition_embedder.image_embedder.norm1.weight")
    places = ends.find("img_emb.emb_pos", "condition_embedder.image_embedder.pos_embed")
    if ends.find("vace_blocks.0.after_proj.weight", "vace_blocks.0.proj_out.weight"):
        task = "with VACE"
    elif ends.find("face_adapter.fuser_blocks.0.linear1_kv.weight", "face_adapter.0.to_k.weight"):
        task = "of Wan Animate"
    elif places:
        task = "for a first and a last frame"
    elif tokens:
        task = "for image to video (2.1)"
    elif patch[1] * 4 > head[0]:
        task = "for image to video (2.2)"
    else:
        task = "for text and image to video" if patch[1] == 48 else "for text to video"
    return f"a Wan transformer {task}, {WAN_SIZES.get(patch[0], f'width {patch[0]}')}, {patch[1]} channels"


def _wan_vae(ends: _Ends) -> str:
    mark = ends.find("decoder.middle.0.residual.0.gamma", "decoder.mid_block.resnets.0.norm1.gamma")
    last = ends.find("decoder.head.2.weight", "decoder.conv_out.weight")
    latent = ends.find("decoder.conv1.weight", "decoder.conv_in.weight")
    if mark is None or last is None or latent is None:
        return ""
    return f"the VAE of Wan {'2.1' if last[0] == 3 else '2.2'}, {latent[1]} channels"


def _ltx_transformer(ends: _Ends) -> str:
    into = ends.find("patchify_proj.weight", "proj_in.weight")
    told = ends.find("adaln_single.linear.weight", "time_embed.linear.weight")
    if into is None or told is None or ends.find(*OTHERS["an LTX-2 transformer"]):
        return ""
    return f"an LTX-Video transformer, {LTX_SIZES.get(into[0], f'width {into[0]}')}"


def _ltx_vae(ends: _Ends) -> str:
    mark = ends.find("per_channel_statistics.mean-of-means", "latents_mean")
    if mark is None or ends.find("decoder.conv_in.conv.weight") is None:
        return ""
    if ends.find("encoder.down_blocks.1.conv.conv.weight", "encoder.down_blocks.0.downsamplers.0.conv.conv.weight"):
        version = "0.9.5 or later"
    elif ends.find("decoder.last_scale_shift_table", "decoder.scale_shift_table"):
        version = "0.9.1"
    else:
        version = "0.9.0"
    return f"the VAE of LTX-Video {version}"


def _t5(stored: Shapes) -> str:
    shapes = our_shapes(stored, T5_NAMINGS)
    query = shapes.get("encoder.block.0.layer.0.SelfAttention.q.weight")
    if query is None:
        return ""
    own_bias = "encoder.block.1.layer.0.SelfAttention.relative_attention_bias.weight" in shapes
    layers = num_blocks(shapes, "encoder.block")
    return f"a {'UMT5' if own_bias else 'T5'} text encoder, {layers} layers of width {query[1]}"
