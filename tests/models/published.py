"""Small text encoders in the published folder layout, for the tests of this folder."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, normalizers, pre_tokenizers, processors
from tokenizers.models import Unigram

from soragen.models.t5 import T5Config, T5Encoder

WORDS = ["a", "red", "ball", "bounces", "on", "green", "grass", "at", "sunset", "Ä", "🦊"]


def config(model_type: str = "t5", feed_forward: str = "gated-gelu") -> T5Config:
    return T5Config(
        vocab_size=97, d_model=32, d_kv=12, num_heads=3, d_ff=56, num_layers=3,
        feed_forward_proj=feed_forward, model_type=model_type,
    )  # fmt: skip


def write_tokenizer(file: Path, end: str = "</s>") -> Tokenizer:
    """A sentence-piece tokenizer as T5's; every letter is a token too. Saved with settings that must not be obeyed."""
    pieces = ["<pad>", end, "<unk>", "▁", *(f"▁{word}" for word in WORDS), *"abcdefghijklmnopqrstuvwxyz!"]
    tokenizer = Tokenizer(Unigram([(piece, -1.0 - (len(piece) == 1)) for piece in pieces], unk_id=2))
    tokenizer.normalizer = normalizers.NFKC()  # type: ignore[assignment]
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()  # type: ignore[assignment]
    tokenizer.decoder = decoders.Metaspace()  # type: ignore[assignment]
    tokenizer.add_special_tokens(["<pad>", end, "<unk>"])
    tokenizer.post_processor = processors.TemplateProcessing(f"$A {end}", special_tokens=[(end, 1)])  # type: ignore[assignment]
    tokenizer.enable_padding(length=30)
    tokenizer.enable_truncation(4)
    tokenizer.save(str(file))
    return tokenizer


def write_encoder(folder: Path, seed: int = 0, **tensors: torch.Tensor) -> T5Encoder:
    """config.json, model.safetensors and tokenizer.json in `folder`; `tensors` are stored beside the encoder's."""
    encoder = T5Encoder(config()).eval()
    encoder.init_weights(torch.Generator().manual_seed(seed))
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config().to_dict()))
    save_file({**encoder.state_dict(), **tensors}, folder / "model.safetensors")
    write_tokenizer(folder / "tokenizer.json")
    return encoder
