"""Prompts as the Wan checkpoints were trained to read them."""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import replace

import ftfy

from soragen.models.family import Context
from soragen.models.text_encoder import PromptEncoder

MAX_LENGTH = 512
"""Tokens of a prompt, the end token included. Shorter prompts are padded to it."""


class WanTextEncoder:
    """UMT5. Embeddings past the end of the prompt are zeros, and the transformer looks at them, too."""

    def __init__(self, encoder: PromptEncoder) -> None:
        self.encoder = encoder

    def encode(self, prompts: Sequence[str]) -> list[Context]:
        contexts = self.encoder.encode([clean(prompt) for prompt in prompts])
        return [replace(c, embeddings=c.embeddings.masked_fill(~c.mask[:, None], 0)) for c in contexts]

    def dropped(self, prompt: str) -> str:
        return self.encoder.dropped(clean(prompt))


def clean(prompt: str) -> str:
    """A prompt with its encoding repaired, quotes straight, HTML entities replaced and single spaces between words."""
    return " ".join(html.unescape(html.unescape(ftfy.fix_text(prompt))).split())
