"""The names of LoRA keys: "layer.part", where trainers agree neither on the one nor on the other. No torch."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Literal, cast

from soragen.errors import WeightsError
from soragen.models.fingerprint import LTX_SIZES, WAN_SIZES

Part = Literal["down", "up", "up_bias", "alpha", "magnitude", "dora_scale", "diff", "diff_b", "diff_m"]

# down is A, [rank, in]; up is B, [out, rank]. PEFT writes the adapter's name in between. diff: a full difference of
# the weight, diff_b of the bias, diff_m of the modulation table, by which distilled models are published.
_PARTS = re.compile(
    r"""(?P<layer>.+)\.(?:
    (?P<down>(?:lora_A|lora_down|lora\.down|lora_linear_layer\.down)(?:\.(?!weight$|bias$)[^.]+)?(?:\.weight)?) |
    (?P<up>(?:lora_B|lora_up|lora\.up|lora_linear_layer\.up)(?:\.(?!weight$|bias$)[^.]+)?(?:\.weight)?) |
    (?P<up_bias>(?:lora_B|lora_up)(?:\.(?!bias$)[^.]+)?\.bias) |
    (?P<magnitude>lora_magnitude_vector(?:\.[^.]+)*) |
    (?P<dora_scale>dora_scale) | (?P<alpha>alpha) | (?P<diff>diff) | (?P<diff_b>diff_b) | (?P<diff_m>diff_m))""",
    re.VERBOSE,
)
_TEXT = re.compile(
    r"(?:base_model\.model\.)?(?:lora_te\d*_|text_encoders?\b|text_encoder_\d|te\d?\.|cond_stage_model\.)"
)
_OTHER_KINDS = {
    "lokr_": "LoKr", "hada_": "LoHa", "lora_mid": "LoCon in three factors", "oft_": "OFT", "boft_": "BOFT",
    "glora": "GLoRA", "vera_": "VeRA", "reshape_weight": "a LoRA that reshapes weights",
    "lora_embedding_": "a LoRA of tokens",
}  # fmt: skip

WAN = re.compile(r"(?<!former_)(?<!double_)(?<!single_)blocks_\d+_(self_attn|cross_attn|attn[12])_")
LTX = re.compile(r"transformer_blocks_\d+_attn2_")
IMAGES = re.compile(r"k_img|v_img|add_[kv]_proj|img_emb|image_embedder")
OTHERS = {
    r"single_transformer_blocks_\d": "Flux",
    r"double_blocks_\d": "HunyuanVideo or Flux",
    r"joint_blocks_\d": "Stable Diffusion 3",
    r"transformer_blocks_\d+_(audio_|attn_|img_|txt_)": "LTX-2, Qwen-Image or another model of two streams",
    r"(down|up|input|output)_blocks_\d|mid(dle)?_block_": "Stable Diffusion",
    r"^(?!.*_attn2_).*transformer_blocks_\d+_attn1_": "CogVideoX",
    r"lora_te\d*_|text_encoder|layers_\d+_self_attn_": "a text encoder",
}
"""Layers, with underlines for dots, that only some models have."""


def split_key(key: str) -> tuple[str, Part | None]:
    """(layer, part) of a key; the whole key and None where it is no known part."""
    match = _PARTS.fullmatch(key)
    return (match["layer"], cast(Part, match.lastgroup)) if match else (key, None)


def spelled(name: str) -> str:
    """A name as kohya's trainers write it."""
    return name.replace(".", "_")


def is_text_encoder(layer: str) -> bool:
    return _TEXT.match(layer) is not None


def refuse_kind(file: str, key: str) -> None:
    """Raises WeightsError where a key belongs to another kind of adapter than those that are known."""
    for mark, kind in _OTHER_KINDS.items():
        if mark in key.rsplit(".", 1)[-1] or f".{mark}" in key:
            raise WeightsError(f"{file} is {kind} ({key}), which soragen does not read", "use a LoRA or a DoRA")


def seems_for(layers: Iterable[str], width: int) -> str | None:
    """What model a file was made for, as far as its layers and their usual width tell."""
    names = " ".join(spelled(layer) for layer in layers)
    if other := next((model for pattern, model in OTHERS.items() if re.search(pattern, names)), None):
        return other
    for mark, sizes, model in ((WAN, WAN_SIZES, "Wan"), (LTX, LTX_SIZES, "LTX-Video")):
        if mark.search(names):
            images = " image to video (2.1)" if model == "Wan" and IMAGES.search(names) else ""
            return f"{model} {sizes.get(width, f'of width {width}')}{images}"
    return None
