"""Whole small Wan checkpoints in the published folder layout, written by diffusers' pipelines."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from diffusers import AutoencoderKLWan, UniPCMultistepScheduler, WanTransformer3DModel
from tokenizers import Tokenizer, normalizers, pre_tokenizers, processors
from tokenizers.models import Unigram
from transformers import (
    CLIPImageProcessor,
    CLIPVisionConfig,
    CLIPVisionModel,
    PreTrainedTokenizerFast,
    UMT5Config,
    UMT5EncoderModel,
)
from wan_reference import TRANSFORMER, VAE_21, randomise

SHIFT = 3.0


def tokenizer() -> PreTrainedTokenizerFast:
    """Sentence pieces as UMT5's; every letter is a token, so that cleaning a prompt shows."""
    pieces = ["<pad>", "</s>", "<unk>", "▁", *"abcdefghijklmnopqrstuvwxyz!.,&'\"’“”é"]
    built = Tokenizer(Unigram([(piece, -1.0) for piece in pieces], unk_id=2))
    built.normalizer = normalizers.NFKC()  # type: ignore[assignment]
    built.pre_tokenizer = pre_tokenizers.Metaspace()  # type: ignore[assignment]
    built.add_special_tokens(["<pad>", "</s>", "<unk>"])
    built.post_processor = processors.TemplateProcessing("$A </s>", special_tokens=[("</s>", 1)])  # type: ignore[assignment]
    return PreTrainedTokenizerFast(tokenizer_object=built, eos_token="</s>", pad_token="<pad>", unk_token="<unk>")


def text_encoder() -> UMT5EncoderModel:
    config = UMT5Config(
        vocab_size=64, d_model=24, d_kv=8, num_heads=3, d_ff=40, num_layers=2, feed_forward_proj="gated-gelu"
    )
    encoder = UMT5EncoderModel(config).eval()
    randomise(encoder)
    for layer in encoder.encoder.block:  # T5 has no 1/sqrt(d_kv): trained queries are as small as this
        layer.layer[0].SelfAttention.q.weight.data *= 8**-0.5
    return encoder


def image_encoder() -> CLIPVisionModel:
    config = CLIPVisionConfig(
        hidden_size=20, intermediate_size=36, num_hidden_layers=3, num_attention_heads=2, image_size=32, patch_size=8,
        hidden_act="gelu",
    )  # fmt: skip
    encoder = CLIPVisionModel(config).eval()
    randomise(encoder)
    return encoder


def image_processor() -> CLIPImageProcessor:
    return CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})


def write_checkpoint(
    folder: Path, pipeline: Any, vae: dict[str, Any] = VAE_21, transformer: dict[str, Any] = TRANSFORMER, **extra: Any
) -> Any:
    """A pipeline of diffusers' class `pipeline`, after it was saved in `folder`; extra: more arguments of its own."""
    parts: dict[str, Any] = {"vae": AutoencoderKLWan(**vae), "transformer": WanTransformer3DModel(**transformer)}
    if "boundary_ratio" in extra:
        parts["transformer_2"] = WanTransformer3DModel(**transformer)
    for seed, part in enumerate(parts.values()):
        randomise(part.eval(), seed)
    scheduler = UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=SHIFT)
    pipe = pipeline(tokenizer=tokenizer(), text_encoder=text_encoder(), scheduler=scheduler, **parts, **extra)
    pipe.save_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    return pipe
