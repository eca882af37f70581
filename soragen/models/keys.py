"""The names that tensors have in files as their authors made them, and the names in published folders, which are ours.

A table is data: words of a stored name to words of ours. The names of the T5 encoders are here, as many families share
them; those of a family's own networks are in its keys.py. No torch.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol, runtime_checkable

from soragen.errors import WeightsError

Shapes = Mapping[str, tuple[int, ...]]
"""Name to shape of the tensors in a file."""


@dataclass(frozen=True)
class Naming:
    """How one network's tensors are named in files of one origin.

    mark: the name of a tensor by which such a file is known. What stands before it there (as "model.diffusion_model.")
    stands before all names of the network; names without it belong to other networks in the same file.
    names: stored words, whole ones between dots, to ours. A place in a name is replaced once, by the longest that fits.
    unread: beginnings of stored names, after what stands before, of tensors that the network has no use for.
    """

    mark: str
    names: Mapping[str, str] = field(default_factory=dict)
    unread: tuple[str, ...] = ()

    def prefix(self, keys: Iterable[str]) -> str | None:
        """What stands before every name in a file with these; None when it is not a file of this naming."""
        return min((key[: -len(self.mark)] for key in keys if f".{key}".endswith(f".{self.mark}")), default=None)

    def rename(self, key: str, prefix: str) -> str | None:
        """Our name of a stored tensor, None for one that the network does not read."""
        name = key.removeprefix(prefix)
        if not key.startswith(prefix) or name.startswith(self.unread):
            return None
        return self._pattern.sub(lambda found: self.names[found[0]], name) if self.names else name

    def originals(self, name: str) -> list[str]:
        """The stored names that `rename` makes `name` of, other than itself."""
        found = (pattern.sub(lambda words: table[words[0]], name) for pattern, table in self._inverses)  # noqa: B023
        return [stored for stored in dict.fromkeys(found) if stored != name and self.rename(stored, "") == name]

    @cached_property
    def _pattern(self) -> re.Pattern[str]:
        return _whole(self.names)

    @cached_property
    def _inverses(self) -> list[tuple[re.Pattern[str], dict[str, str]]]:
        """Our words to stored ones; two tables, as two stored words may stand for the same of ours."""
        pairs = [(ours, stored) for stored, ours in self.names.items()]
        return [(_whole(table), table) for table in (dict(pairs), dict(reversed(pairs))) if table]


def _whole(words: Iterable[str]) -> re.Pattern[str]:
    """Matches any of these, the longest that fits, as whole words between dots."""
    longest_first = "|".join(map(re.escape, sorted(words, key=len, reverse=True)))
    return re.compile(rf"(?<![^.])(?:{longest_first})(?![^.])")


def our_names(keys: Iterable[str], namings: Iterable[Naming]) -> dict[str, str | None]:
    """Stored name to ours, by the first of `namings` that the file is of; names are ours already where none is.

    None stands for a tensor that the network does not read.
    """
    keys = list(keys)
    for naming in namings:
        if (prefix := naming.prefix(keys)) is not None:
            return {key: naming.rename(key, prefix) for key in keys}
    return {key: key for key in keys}


def our_shapes(stored: Shapes, namings: Iterable[Naming]) -> dict[str, tuple[int, ...]]:
    """The shapes in a file under our names, without those that the network does not read."""
    return {name: stored[key] for key, name in our_names(stored, namings).items() if name is not None}


def num_blocks(shapes: Shapes, words: str) -> int:
    """How many blocks are numbered after `words`, as in "blocks.12.ffn.weight"."""
    return len({name.split(".")[words.count(".") + 1] for name in shapes if name.startswith(f"{words}.")})


@runtime_checkable
class ReadsSingleFiles(Protocol):
    """A family that knows its networks without a config.json: single files come without one.

    text_encoder: values in the config.json of the encoder that its transformers were trained with.
    """

    text_encoder: Mapping[str, Any]

    def configs(self, shapes: Shapes) -> dict[str, dict[str, Any]]:
        """The config.json of each of its networks that a file holds, by component ("transformer", "vae", ...).

        shapes: of all tensors, as they are stored.
        """
        ...


T5_NAMINGS = (
    # The authors of Wan, for their UMT5.
    Naming(
        "token_embedding.weight",
        {
            "token_embedding": "shared",
            "blocks": "encoder.block",
            "norm": "encoder.final_layer_norm",
            "norm1": "layer.0.layer_norm",
            "attn": "layer.0.SelfAttention",
            "pos_embedding.embedding": "layer.0.SelfAttention.relative_attention_bias",
            "norm2": "layer.1.layer_norm",
            "ffn.gate.0": "layer.1.DenseReluDense.wi_0",  # the one that passes through GELU
            "ffn.fc1": "layer.1.DenseReluDense.wi_1",
            "ffn.fc2": "layer.1.DenseReluDense.wo",
        },
    ),
    # Repackaged: the published names, perhaps below "text_encoders.t5xxl.transformer.", and the tokenizer as a tensor.
    Naming("shared.weight", unread=("spiece_model",)),
)


def t5_config(stored: Shapes) -> dict[str, Any] | None:
    """The config.json of the T5 or UMT5 encoder that a file holds, None where there is none. Raises WeightsError.

    stored: the shapes of its tensors. An encoder without the gate of version 1.1 is refused: the published models that
    are conditioned on one have it.
    """
    shapes = our_shapes(stored, T5_NAMINGS)
    first, attention = "encoder.block.0.layer", "layer.0.SelfAttention"
    bias = shapes.get(f"{first}.0.SelfAttention.relative_attention_bias.weight")
    vocabulary, query = shapes.get("shared.weight"), shapes.get(f"{first}.0.SelfAttention.q.weight")
    if bias is None or vocabulary is None or query is None:
        return None
    gate = shapes.get(f"{first}.1.DenseReluDense.wi_0.weight")
    if gate is None:
        raise WeightsError("a T5 encoder of version 1.0", "the models here were trained with version 1.1, or UMT5")
    own_bias = f"encoder.block.1.{attention}.relative_attention_bias.weight" in shapes
    return {
        "architectures": ["UMT5EncoderModel" if own_bias else "T5EncoderModel"],
        "model_type": "umt5" if own_bias else "t5",
        "vocab_size": vocabulary[0],
        "d_model": vocabulary[1],
        "d_kv": query[0] // bias[1],
        "num_heads": bias[1],
        "d_ff": gate[0],
        "num_layers": num_blocks(shapes, "encoder.block"),
        "relative_attention_num_buckets": bias[0],
        "feed_forward_proj": "gated-gelu",
    }
