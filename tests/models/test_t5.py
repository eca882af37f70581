"""Our T5 and UMT5 encoder against transformers', which is the reference."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from published import config
from torch import Tensor

from soragen.errors import WeightsError
from soragen.models.t5 import T5Config, T5Encoder, position_buckets

SHAPES = [("t5", "gated-gelu"), ("t5", "relu"), ("umt5", "gated-gelu"), ("umt5", "relu")]


def reference(c: T5Config) -> Any:
    transformers = pytest.importorskip("transformers")
    kind = "UMT5" if c.model_type == "umt5" else "T5"
    values = c.to_dict()
    del values["model_type"], values["architectures"]
    return getattr(transformers, f"{kind}EncoderModel")(getattr(transformers, f"{kind}Config")(**values)).eval()


def ours(c: T5Config) -> T5Encoder:
    encoder = T5Encoder(c).eval()
    encoder.init_weights(torch.Generator().manual_seed(3))
    for name, weight in encoder.named_parameters():  # norms away from 1 and biases large, so that both matter
        if name.endswith("norm.weight") or "relative_attention_bias" in name:
            weight.data.normal_(1.0, 0.5, generator=torch.Generator().manual_seed(len(name)))
    return encoder


@pytest.mark.parametrize(("model_type", "feed_forward"), SHAPES)
def test_equals_transformers(model_type: str, feed_forward: str) -> None:
    c = config(model_type, feed_forward)
    encoder, theirs = ours(c), reference(c)
    published = {name for name in theirs.state_dict() if name != "encoder.embed_tokens.weight"}
    assert set(encoder.state_dict()) == published
    theirs.load_state_dict({**encoder.state_dict(), "encoder.embed_tokens.weight": encoder.shared.weight})
    ids = torch.randint(0, 97, (2, 300), generator=torch.Generator().manual_seed(1))  # beyond the largest distance
    whole = torch.ones(2, 300, dtype=torch.bool)
    padded = whole.clone()
    padded[0, 40:] = False
    padded[1, 1:] = False
    with torch.no_grad():
        for mask in (whole, padded):
            expected = theirs(ids, attention_mask=mask.long()).last_hidden_state
            error = (encoder(ids, mask) - expected).norm() / expected.norm()
            assert error < 1e-6, f"relative error {error:.1e}"


def block_output(out: Tensor | tuple[Tensor, ...]) -> Tensor:
    """T5's block also gives its bias of positions, UMT5's does not."""
    return out[0] if isinstance(out, tuple) else out


@pytest.mark.parametrize(("model_type", "feed_forward"), SHAPES)
@torch.no_grad()
def test_each_block_equals_that_of_transformers(model_type: str, feed_forward: str) -> None:
    """What every block makes of the reference's own input to it, so that no error of another one adds to it."""
    c = config(model_type, feed_forward)
    encoder, theirs = ours(c), reference(c)
    theirs.load_state_dict({**encoder.state_dict(), "encoder.embed_tokens.weight": encoder.shared.weight})
    passed: list[tuple[Tensor, Tensor]] = []
    for block in theirs.encoder.block:
        block.register_forward_hook(lambda block, inputs, out: passed.append((inputs[0], block_output(out))))
    length = 150  # beyond the largest distance
    mask = torch.arange(length) < torch.tensor([[length], [40]])
    theirs(torch.randint(0, 97, mask.shape, generator=torch.Generator().manual_seed(1)), attention_mask=mask.long())

    buckets = position_buckets(length, c.relative_attention_num_buckets, c.relative_attention_max_distance)
    padding = torch.zeros(2, 1, 1, length).masked_fill(~mask[:, None, None], torch.finfo(torch.float32).min)
    bias = padding
    assert len(passed) == c.num_layers
    for block, (given, expected) in zip(encoder.encoder.block, passed, strict=True):
        found, bias = block(given, bias, buckets, padding)
        for words, wanted in ((found, expected), (found - given, expected - given)):  # also without the residual
            error = (words - wanted).norm() / wanted.norm()
            assert error < 1e-6, f"relative error {error:.1e}"


@pytest.mark.parametrize("model_type", ["t5", "umt5"])
def test_trains_under_autocast(model_type: str) -> None:
    encoder = T5Encoder(config(model_type))
    encoder.init_weights()
    with torch.autocast("cpu", torch.bfloat16):
        out = encoder(torch.randint(0, 97, (2, 9)), torch.ones(2, 9, dtype=torch.bool))
    out.float().square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() and p.grad.any() for p in encoder.parameters())


def test_padding_does_not_reach_the_text() -> None:
    encoder = ours(config())
    ids = torch.randint(0, 97, (1, 20))
    mask = torch.arange(20)[None] < 8
    with torch.no_grad():
        torch.testing.assert_close(encoder(ids, mask)[:, :8], encoder(ids[:, :8], mask[:, :8]), rtol=1e-5, atol=1e-6)


def test_config_is_read_from_a_published_folder(tmp_path: Path) -> None:
    c = config("umt5")
    transformers = pytest.importorskip("transformers")
    values = {name: getattr(c, name) for name in T5Config.__dataclass_fields__ if name != "model_type"}
    transformers.UMT5Config(**values).save_pretrained(tmp_path)
    assert T5Config.read(tmp_path) == c


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "cannot be read"),
        ("[]", "JSON object"),
        ('{"model_type": "t5"}', "d_model"),
        ('{"vocab_size":9,"d_model":8,"d_kv":4,"num_heads":2,"d_ff":8,"num_layers":1,"model_type":"bert"}', "bert"),
        ('{"vocab_size":9,"d_model":0,"d_kv":4,"num_heads":2,"d_ff":8,"num_layers":1,"model_type":"t5"}', "d_model"),
    ],
)
def test_bad_config_is_named(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(WeightsError, match=said):
        T5Config.read(tmp_path)


def test_missing_config_is_named(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"config\.json is missing"):
        T5Config.read(tmp_path)
