"""Wan's transformer against diffusers, which the `test` extra installs."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import pytest
import torch
from diffusers import WanTransformer3DModel
from transformers import CLIPVisionConfig, CLIPVisionModel
from wan_reference import IMAGE_TRANSFORMER, PUBLISHED_TRANSFORMERS, TRANSFORMER, error, randn, randomise

from soragen.diffusion.grid import Compression, Grid
from soragen.diffusion.schedule import NoiseLevel
from soragen.families.wan.clip import ClipConfig, ClipEncoder
from soragen.families.wan.transformer import TransformerConfig, WanTransformer, lay_positions
from soragen.models.family import Context, ImageCondition
from soragen.size import VideoSize

TOLERANCE = 1e-6
LEVEL = NoiseLevel(0.3, 0.7, 701.0)

CONFIGS: dict[str, dict[str, Any]] = {
    "heads of 12": {**TRANSFORMER, "attention_head_dim": 12},
    "heads of 28": TRANSFORMER,
    "heads of 128": {**TRANSFORMER, "attention_head_dim": 128},
    "without a norm before cross-attention": {**TRANSFORMER, "cross_attn_norm": False},
    "two channels": {**TRANSFORMER, "in_channels": 2, "out_channels": 2},
}
SHAPES = [(3, 6, 10), (1, 4, 4), (4, 10, 6), (5, 2, 14)]


def build(config: dict[str, Any]) -> tuple[WanTransformer, WanTransformer3DModel]:
    theirs = WanTransformer3DModel(**config).eval()
    randomise(theirs)
    ours = WanTransformer(TransformerConfig(**config)).eval()
    ours.load_state_dict(theirs.state_dict(), strict=True)
    return ours, theirs


def grid(shape: tuple[int, int, int]) -> Grid:
    compression = Compression(stride=(4, 8, 8), patch_size=(1, 2, 2))
    return Grid(VideoSize(8 * shape[2], 8 * shape[1], 4 * shape[0] - 3, Fraction(16)), compression, shape)


def context(config: dict[str, Any]) -> Context:
    """Nine words and the zeros after them."""
    mask = torch.arange(512) < 9
    return Context(randn(512, config["text_dim"], seed=3) * mask[:, None], mask)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())
@torch.no_grad()
def test_forward(config: dict[str, Any], shape: tuple[int, int, int]) -> None:
    ours, theirs = build(config)
    latents, text = randn(2, config["in_channels"], *shape), randn(2, 512, config["text_dim"], seed=1)
    expected = theirs(latents, torch.tensor([701, 34]), text).sample
    positions = lay_positions(config["attention_head_dim"], grid(shape).token_shape)
    rows = torch.tensor([0, 1])[:, None, None]  # a timestep for each sample
    found = ours(latents, torch.tensor([701.0, 34.0]), rows, positions, ours.read(text))
    assert error(found, expected) <= TOLERANCE


@pytest.mark.parametrize(
    "config",
    [TRANSFORMER, IMAGE_TRANSFORMER, CONFIGS["without a norm before cross-attention"]],
    ids=["text", "images", "without a norm"],
)
@pytest.mark.parametrize("groups", [(1, 1), (3, 1), (3, 15)], ids=["of all", "of each frame", "of each token"])
@torch.no_grad()
def test_one_block(config: dict[str, Any], groups: tuple[int, int]) -> None:
    """The last one, with modulation that is drawn: a row for every group of tokens."""
    ours, theirs = build(config)
    shape, width, has_image = (3, 6, 10), ours.config.width, "image_dim" in config
    x, text = randn(1, 45, width), randn(1, 512, width, seed=1)
    image = randn(1, 7, width, seed=3) if has_image else None
    modulation = randn(1, *groups, 6, width, seed=2)
    rows = modulation.flatten(1, 2)[:, 0] if groups == (1, 1) else modulation.expand(1, 3, 15, 6, width).flatten(1, 2)
    words = torch.cat([image, text], dim=1) if image is not None else text
    expected = theirs.blocks[1](x, words, rows, theirs.rope(randn(1, config["in_channels"], *shape)))
    block: Any = ours.blocks[1]
    found = block(
        x.view(1, 3, 15, width), modulation, lay_positions(28, (3, 3, 5)), block.attn2.read(text, image), (3, 3, 5)
    )
    assert error(found.flatten(1, 2), expected) <= TOLERANCE


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@torch.no_grad()
def test_bound_denoiser(shape: tuple[int, int, int]) -> None:
    ours, theirs = build(TRANSFORMER)
    latents, words = randn(1, 4, *shape), context(TRANSFORMER)
    expected = theirs(latents, torch.tensor([701]), words.embeddings[None]).sample
    clean = ours.bind(words, grid(shape))(latents, LEVEL)
    assert error(clean, latents - 0.7 * expected) <= TOLERANCE


@torch.no_grad()
def test_a_timestep_for_each_token() -> None:
    ours, theirs = build(TRANSFORMER)
    shape, tokens = (3, 6, 10), 45
    latents, text = randn(1, 4, *shape), randn(1, 512, 24, seed=1)
    rows = torch.arange(tokens) % 3
    timesteps = torch.tensor([0.0, 34.0, 701.0])
    expected = theirs(latents, timesteps[rows][None], text).sample
    found = ours(latents, timesteps, rows.view(1, 3, 15), lay_positions(28, (3, 3, 5)), ours.read(text))
    assert error(found, expected) <= TOLERANCE


@pytest.mark.parametrize("known", [[0], [0, 1], [3], [0, 3], [1, 2]])
@torch.no_grad()
def test_known_frames_are_at_timestep_zero_and_come_back(known: list[int]) -> None:
    ours, theirs = build(TRANSFORMER)
    shape = (4, 6, 10)
    latents, words = randn(1, 4, *shape), context(TRANSFORMER)
    mask = torch.ones(4)
    mask[known] = 0
    timesteps = (701 * mask)[:, None].expand(4, 15).reshape(1, -1)
    expected = latents - 0.7 * mask[:, None, None] * theirs(latents, timesteps, words.embeddings[None]).sample
    clean = ours.bind(words, grid(shape))(latents, LEVEL, mask)
    assert error(clean, expected) <= TOLERANCE
    assert torch.equal(clean[:, :, known], latents[:, :, known])


@torch.no_grad()
def test_modulation_is_made_once_for_each_distinct_timestep(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, _ = build(TRANSFORMER)
    denoise = ours.bind(context(TRANSFORMER), grid((4, 6, 10)))
    seen: list[int] = []
    embed = ours.condition_embedder.embed_time
    monkeypatch.setattr(ours.condition_embedder, "embed_time", lambda t: seen.append(len(t)) or embed(t))
    denoise(randn(1, 4, 4, 6, 10), LEVEL)
    denoise(randn(1, 4, 4, 6, 10), LEVEL, torch.tensor([0.0, 1, 1, 1]))
    assert seen == [1, 2]


@torch.no_grad()
def test_what_does_not_change_is_computed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, _ = build(TRANSFORMER)
    denoise = ours.bind(context(TRANSFORMER), grid((3, 6, 10)))
    monkeypatch.setattr(ours, "read", None)
    monkeypatch.setattr("soragen.families.wan.transformer.lay_positions", None)
    assert denoise(randn(1, 4, 3, 6, 10), LEVEL).shape == (1, 4, 3, 6, 10)


@pytest.mark.parametrize("num_images", [1, 2])
@torch.no_grad()
def test_image_branch(num_images: int) -> None:
    """First frame (tokens of one image), and first and last frame (of two, with learned places)."""
    config = {**IMAGE_TRANSFORMER, "pos_embed_seq_len": 14 if num_images == 2 else None}
    ours, theirs = build(config)
    shape = (3, 6, 10)
    latents, words = randn(1, 4, *shape), context(config)
    channels, tokens = randn(1, 8, *shape, seed=5), randn(num_images, 7, 20, seed=6)
    expected = theirs(torch.cat([latents, channels], dim=1), torch.tensor([701]), words.embeddings[None], tokens).sample
    image = ImageCondition(channels, tokens.flatten(0, 1))
    clean = ours.bind(words, grid(shape), image)(latents, LEVEL)
    assert error(clean, latents - 0.7 * expected) <= TOLERANCE


@pytest.mark.parametrize("name", PUBLISHED_TRANSFORMERS)
def test_published_configs_have_the_published_parameters(name: str) -> None:
    config = PUBLISHED_TRANSFORMERS[name]
    with torch.device("meta"):
        ours = WanTransformer(TransformerConfig(**config)).state_dict()
        theirs = WanTransformer3DModel(**config).state_dict()
    assert {key: value.shape for key, value in ours.items()} == {key: value.shape for key, value in theirs.items()}


def test_the_published_image_encoder_has_the_published_parameters() -> None:
    values = {"hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32, "num_attention_heads": 16,
              "image_size": 224, "patch_size": 14, "hidden_act": "gelu", "layer_norm_eps": 1e-5}  # fmt: skip
    with torch.device("meta"):
        ours = ClipEncoder(ClipConfig(**values)).state_dict()
        theirs = CLIPVisionModel(CLIPVisionConfig(**values)).state_dict()
    expected = {f"vision_model.{key.removeprefix('vision_model.')}": value.shape for key, value in theirs.items()}
    unread = ("vision_model.encoder.layers.31.", "vision_model.post_layernorm.")
    assert {key: value.shape for key, value in ours.items()} == {
        key: shape for key, shape in expected.items() if not key.startswith(unread)
    }
