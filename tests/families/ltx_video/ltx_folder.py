"""Whole small LTX-Video checkpoints in the published folder layout, written by diffusers' pipelines."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import diffusers
from ltx_reference import TRANSFORMER, randomise, their_transformer, their_vae
from tokenizers import Tokenizer, decoders, normalizers, pre_tokenizers, processors
from tokenizers.models import Unigram
from transformers import PreTrainedTokenizerFast, T5Config, T5EncoderModel


def first_scheduler() -> Any:
    """Of the generation up to 0.9.1."""
    return diffusers.FlowMatchEulerDiscreteScheduler(
        use_dynamic_shifting=True, base_shift=0.95, max_shift=2.05, base_image_seq_len=1024, max_image_seq_len=4096,
        shift_terminal=0.1,
    )  # fmt: skip


def second_scheduler() -> Any:
    """Of the generation since 0.9.5."""
    return diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=False)


def tokenizer() -> PreTrainedTokenizerFast:
    words = ["a", "red", "ball", "bounces", "on", "green", "grass", "at", "sunset"]
    pieces = ["<pad>", "</s>", "<unk>", "▁", *(f"▁{word}" for word in words), *"abcdefghijklmnopqrstuvwxyz"]
    made = Tokenizer(Unigram([(piece, -1.0 - (len(piece) == 1)) for piece in pieces], unk_id=2))
    made.normalizer, made.pre_tokenizer = normalizers.NFKC(), pre_tokenizers.Metaspace()  # type: ignore[assignment]
    made.decoder = decoders.Metaspace()  # type: ignore[assignment]
    made.post_processor = processors.TemplateProcessing("$A </s>", special_tokens=[("</s>", 1)])  # type: ignore[assignment]
    return PreTrainedTokenizerFast(tokenizer_object=made, pad_token="<pad>", eos_token="</s>", unk_token="<unk>")


def components(vae: dict[str, Any], scheduler: Any) -> dict[str, Any]:
    text_encoder = T5EncoderModel(
        T5Config(vocab_size=48, d_model=24, d_kv=8, num_heads=3, d_ff=40, num_layers=2, feed_forward_proj="gated-gelu")
    ).eval()
    randomise(text_encoder)
    for layer in text_encoder.encoder.block:  # T5 has no 1/sqrt(d_kv): trained queries are as small as this
        layer.layer[0].SelfAttention.q.weight.data *= 8**-0.5
    return {
        "scheduler": scheduler, "vae": their_vae(vae), "text_encoder": text_encoder, "tokenizer": tokenizer(),
        "transformer": their_transformer(TRANSFORMER),
    }  # fmt: skip


def saved(pipeline: Any, folder: Path) -> tuple[Any, Path]:
    pipeline.set_progress_bar_config(disable=True)
    pipeline.save_pretrained(folder)
    return pipeline, folder
