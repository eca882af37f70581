"""From a prompt to embeddings: tokenizer, T5 encoder, and a cache in front of both.

Axis letters: B batch, L text tokens, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch
from tokenizers import Tokenizer as PublishedTokenizer

from soragen.errors import InputError, NumericalError, WeightsError
from soragen.models.embedding_cache import EmbeddingCache, cache_folder, encoder_hash
from soragen.models.family import Context
from soragen.models.keys import T5_NAMINGS
from soragen.models.offload import Residence, load_network
from soragen.models.sentencepiece import tokenizer_file
from soragen.models.t5 import T5Config, T5Encoder
from soragen.models.weights import is_finite

__all__ = ["Padding", "PromptEncoder", "T5Config", "T5Encoder", "Tokenizer", "load_t5"]

END, PAD = "</s>", "<pad>"

Padding = Literal["none", "masked", "attended"]
"""How a family's text was padded in training.

none: embeddings are as long as the prompt. masked: padded to the full length, the encoder does not look at the padding.
attended: padded to the full length, and the encoder reads the padding as if it were text.
"""


class Tokenizer:
    """A published `tokenizer.json`; where that is absent, the `spiece.model` that would lie beside it.

    Padding and truncation set in the file are switched off: here both are explicit.
    """

    def __init__(self, file: Path) -> None:
        file = tokenizer_file(file)
        try:
            self._published = PublishedTokenizer.from_file(str(file))
        except Exception as error:  # the package raises the bare class
            raise WeightsError(f"{file} cannot be read: {error}", "fetch it again") from error
        self._published.no_padding()
        self._published.no_truncation()
        self.num_tokens: int = self._published.get_vocab_size(with_added_tokens=True)
        self.end_id = self._id(END, file)
        self.pad_id = self._id(PAD, file)

    def _id(self, token: str, file: Path) -> int:
        number = self._published.token_to_id(token)
        if number is None:
            raise WeightsError(f"{file} has no token {token}", "a T5 or UMT5 tokenizer has it")
        return int(number)

    def encode(self, prompt: str, max_length: int) -> tuple[list[int], str]:
        """Token ids, at most `max_length` with the end token that closes them, and the tail that did not fit.

        The tail is the exact end of `prompt`, from the first character whose token was dropped; "" when all fits.
        Raises InputError when the prompt is not text.
        """
        try:
            prompt.encode("utf-8")
        except UnicodeEncodeError as error:
            raise InputError(f"the prompt is not text: {error.reason} at character {error.start + 1}") from error
        encoding = self._published.encode(prompt, add_special_tokens=False)
        kept = max_length - 1
        dropped = prompt[encoding.offsets[kept][0] :] if len(encoding.ids) > kept else ""
        return [*encoding.ids[:kept], self.end_id], dropped


def load_t5(
    folder: Path,
    device: torch.device,
    dtype: torch.dtype,
    residence: Residence = Residence.RESIDENT,
    quantize: str | None = None,
) -> T5Encoder:
    """The encoder in a published folder, which may hold the decoder too. Raises WeightsError."""
    config = T5Config.read(folder)
    return load_network(
        lambda: T5Encoder(config),
        folder,
        residence=residence,
        blocks="encoder.block",
        table="shared",
        quantize=quantize,
        device=device,
        dtype=dtype,
        keep_float32=("DenseReluDense.wo.",) if dtype == torch.float16 else (),  # its outputs overflow float16
        namings=T5_NAMINGS,
        tied={"encoder.embed_tokens.weight": "shared.weight"},
        allow_extra=("decoder.", "lm_head."),
    )


class PromptEncoder:
    """Prompts to contexts with a published T5 or UMT5. The encoder is loaded when the first uncached prompt comes.

    folder: config.json and weights. tokenizer: the tokenizer.json. max_length: tokens, the end token included.
    cache: where embeddings are kept; by default the user's cache folder, None for none.
    residence, quantize: of the encoder, see `soragen.models.offload.load_network`.
    """

    def __init__(
        self,
        folder: Path,
        tokenizer: Path,
        *,
        max_length: int,
        device: torch.device,
        dtype: torch.dtype,
        padding: Padding = "none",
        cache: Path | Literal["default"] | None = "default",
        residence: Residence = Residence.RESIDENT,
        quantize: str | None = None,
    ) -> None:
        self.folder = folder
        self.max_length = max_length
        self.device = device
        self.dtype = dtype
        self.padding = padding
        self.residence = residence
        self.quantize = quantize
        tokenizer = tokenizer_file(tokenizer)
        self.tokenizer = Tokenizer(tokenizer)
        vocab_size = T5Config.read(folder).vocab_size
        if self.tokenizer.num_tokens > vocab_size:
            raise WeightsError(
                f"{tokenizer} has {self.tokenizer.num_tokens} tokens, the encoder in {folder} knows {vocab_size}",
                "they belong to different checkpoints",
            )
        top = cache_folder() if cache == "default" else cache
        self._cache = EmbeddingCache(top, encoder_hash(folder, tokenizer))
        self._encoder: T5Encoder | None = None

    @property
    def loaded(self) -> bool:
        """Whether the encoder's weights are in memory; a run whose prompts are all cached leaves this False."""
        return self._encoder is not None

    def dropped(self, prompt: str) -> str:
        """The tail of a prompt that is too long for the encoder, "" when all fits."""
        return self.tokenizer.encode(prompt, self.max_length)[1]

    def encode(self, prompts: Sequence[str]) -> list[Context]:
        """One context per prompt, on the device. Each is encoded alone, so that it does not depend on the others.

        Raises InputError, WeightsError, NumericalError.
        """
        return [self._context(prompt) for prompt in prompts]

    @torch.no_grad()
    def _context(self, prompt: str) -> Context:
        ids, _ = self.tokenizer.encode(prompt, self.max_length)
        # Devices round differently: what one computed is not read on another, so that a seed gives the same bytes.
        key: list[str | int] = [*ids, "of", self.max_length, self.padding, str(self.dtype), self.device.type]
        key += [self.quantize] if self.quantize is not None else []
        found = self._cache.read(key, self.dtype)
        if found is None:
            found = self._encode(ids)
            self._cache.write(key, *found)
        embeddings, mask = found
        return Context(embeddings.to(self.device), mask.to(self.device))

    def _encode(self, ids: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
        """Embeddings [L, D] and mask [L] of one prompt."""
        if self._encoder is None:
            self._encoder = load_t5(self.folder, self.device, self.dtype, self.residence, self.quantize)
        length = len(ids) if self.padding == "none" else self.max_length
        padded = torch.tensor([ids + [self.tokenizer.pad_id] * (length - len(ids))], device=self.device)  # [1, L]
        mask = torch.arange(length, device=self.device)[None] < len(ids)  # [1, L]
        embeddings = self._encoder(padded, mask if self.padding != "attended" else torch.ones_like(mask))
        if not is_finite(embeddings):
            raise NumericalError(f"the text encoder returned values that are not finite in {self.dtype}", "try float32")
        return embeddings[0].to(self.dtype), mask[0]
