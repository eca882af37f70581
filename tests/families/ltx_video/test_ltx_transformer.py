"""The transformer against the reference library's, on shapes, frame rates and known frames of every kind."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import pytest
import torch
from ltx_reference import ODD_WIDTH, TRANSFORMER, our_transformer, relative_error, their_transformer
from torch import Tensor, nn

from soragen.diffusion.grid import Compression, Grid, lay_grid
from soragen.diffusion.schedule import NoiseLevel
from soragen.families.ltx_video.transformer import LtxTransformer, lay_coordinates, lay_rotary, to_tokens
from soragen.models.family import Context, Keyframe
from soragen.size import VideoSize

LEVEL = NoiseLevel(0.2865, 0.7135, 713.5)
BOUND = 1e-6


def grid_of(width: int, height: int, num_frames: int, fps: Fraction | int = 24) -> Grid:
    return lay_grid(VideoSize(width, height, num_frames, Fraction(fps)), Compression((8, 32, 32), (1, 1, 1)))


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def prompt(length: int = 9, num_words: int = 5) -> Context:
    return Context(random(length, 24, seed=1), torch.arange(length) < num_words)


def velocity_of(clean: Tensor, latents: Tensor) -> Tensor:
    return (latents - clean) / LEVEL.sigma


def unpack(tokens: Tensor, grid: Grid) -> Tensor:
    return tokens.unflatten(1, grid.token_shape).permute(0, 4, 1, 2, 3)


def pack(latents: Tensor) -> Tensor:
    return latents.permute(0, 2, 3, 4, 1).flatten(1, 3)


@pytest.fixture(scope="module", params=[TRANSFORMER, ODD_WIDTH], ids=["64 wide", "120 wide"])
def theirs(request: pytest.FixtureRequest) -> tuple[dict[str, Any], nn.Module]:
    return request.param, their_transformer(request.param)


@pytest.fixture(scope="module")
def network() -> LtxTransformer:
    return our_transformer(TRANSFORMER, their_transformer(TRANSFORMER), causal_time=True)


@pytest.mark.parametrize(
    "grid",
    [
        grid_of(96, 64, 17, 25),
        grid_of(160, 32, 33, Fraction(30000, 1001)),
        grid_of(33, 90, 1, 8),
        grid_of(96, 96, 25, 60),
    ],
    ids=str,
)
@torch.inference_mode()
def test_one_forward(theirs: tuple[dict[str, Any], nn.Module], grid: Grid) -> None:
    config, reference = theirs
    latents, context = random(1, 16, *grid.latent_shape), prompt()
    expected = reference(
        pack(latents), context.embeddings[None], torch.tensor([LEVEL.timestep]), context.mask[None], *grid.latent_shape,
        (8 / float(grid.fps), 32, 32), return_dict=False,
    )[0]  # fmt: skip
    clean = our_transformer(config, reference).bind(context, grid)(latents, LEVEL)
    assert relative_error(velocity_of(clean, latents), unpack(expected, grid)) < BOUND


@pytest.mark.parametrize("num_groups", [1, 4, 24], ids=["of all", "of each frame", "of each token"])
@torch.inference_mode()
def test_one_block(theirs: tuple[dict[str, Any], nn.Module], num_groups: int) -> None:
    """The last one, with modulation that is drawn: a row for every group of tokens."""
    config, reference = theirs
    grid, network = grid_of(96, 64, 25, 12), our_transformer(config, reference)
    width, mask = network.config.width, prompt().mask
    x, text, modulation = random(1, 24, width), random(1, 9, width, seed=1), random(num_groups, 6, width, seed=2)
    expected = reference.transformer_blocks[1](
        x, text, modulation.flatten(1).repeat_interleave(24 // num_groups, dim=0)[None],
        reference.rope(x, *grid.latent_shape, (8 / 12, 32, 32)), torch.where(mask, 0.0, -10000.0)[None, None],
    )  # fmt: skip
    block: Any = network.transformer_blocks[1]
    rotary = lay_rotary(lay_coordinates(grid, False, ()), width)
    rows, words = torch.arange(num_groups), block.attn2.read(text[:, mask])
    found = block(x.view(1, num_groups, -1, width), modulation, rows, rotary, words).flatten(1, 2)
    assert relative_error(found, expected) < BOUND


@pytest.mark.parametrize("per_token", [False, True], ids=["each frame", "each token"])
@torch.inference_mode()
def test_a_timestep_for_each(theirs: tuple[dict[str, Any], nn.Module], per_token: bool) -> None:
    """All different at once, against the reference's timestep of every token.

    The network has a row of timesteps for a frame of tokens, as known frames are whole latent frames, and `bind` uses
    two of them. Its forward does not ask how long a frame is: of one token each, it takes a timestep for every token.
    """
    config, reference = theirs
    grid, context, network = grid_of(64, 96, 33, 12), prompt(), our_transformer(config, reference)
    latents = random(1, 16, *grid.latent_shape)
    tokens = pack(latents).unsqueeze(2) if per_token else to_tokens(latents)  # [1, F, S, C]
    num_frames, num_tokens = tokens.shape[1:3]
    timesteps = torch.linspace(1000, 3, num_frames)
    expected = reference(
        pack(latents), context.embeddings[None], timesteps.repeat_interleave(num_tokens)[None], context.mask[None],
        *grid.latent_shape, (8 / 12, 32, 32), return_dict=False,
    )[0]  # fmt: skip
    rotary = lay_rotary(lay_coordinates(grid, False, ()), network.config.width)
    found = network(tokens, timesteps, torch.arange(num_frames), rotary, network.read(context))
    assert relative_error(found.flatten(1, 2), expected) < BOUND


@torch.inference_mode()
def test_known_frames_and_keyframes(theirs: tuple[dict[str, Any], nn.Module]) -> None:
    """Tokens of known frames are at timestep 0, those of a keyframe come first and with coordinates of their own."""
    config, reference = theirs
    grid, context = grid_of(64, 96, 33, 12), prompt()
    latents, mask = random(1, 16, *grid.latent_shape), torch.tensor([0.0, 1, 1, 0, 1])
    keyframe = Keyframe(random(1, 16, 2, *grid.latent_shape[1:], seed=2), frame=16)
    timesteps = torch.cat([torch.zeros(2), mask * LEVEL.timestep]).repeat_interleave(6)[None]  # [1, N]
    coordinates = [
        (max(0, 8 * frame - 7) + start, 32 * y, 32 * x)
        for start, frames in ((16, 2), (0, 5))
        for frame in range(frames)
        for y in range(3)
        for x in range(2)
    ]
    places = torch.tensor(coordinates).T[None].float()  # [1, 3, N]
    places[:, 0] *= 1 / 12
    expected = reference(
        torch.cat([pack(keyframe.latents), pack(latents)], dim=1), context.embeddings[None], timesteps,
        context.mask[None], video_coords=places, return_dict=False,
    )[0][:, 12:]  # fmt: skip
    network = our_transformer(config, reference, causal_time=True)
    network.given_noise_scale = 0.0  # it is the reference's pipeline that adds noise, see test_ltx_known_frames.py
    clean = network.bind(context, grid, [keyframe])(latents, LEVEL, mask)
    free = mask.bool()
    assert relative_error(velocity_of(clean, latents)[:, :, free], unpack(expected, grid)[:, :, free]) < BOUND
    assert torch.equal(clean[:, :, ~free], latents[:, :, ~free])


@torch.inference_mode()
def test_there_is_one_modulation_row_for_each_distinct_timestep(network: LtxTransformer) -> None:
    rows: list[int] = []
    hook = network.time_embed.register_forward_hook(lambda module, inputs, output: rows.append(len(inputs[0])))
    grid = grid_of(64, 64, 25)
    latents = random(1, 16, *grid.latent_shape)
    denoiser = network.bind(prompt(), grid)
    plain = denoiser(latents, LEVEL)
    all_free = denoiser(latents, LEVEL, torch.ones(4))
    denoiser(latents, LEVEL, torch.tensor([0.0, 1, 1, 0]))
    hook.remove()
    assert rows == [1, 2, 2]
    torch.testing.assert_close(all_free, plain, rtol=1e-5, atol=1e-5)


@torch.inference_mode()
def test_what_does_not_change_is_computed_once(network: LtxTransformer, monkeypatch: pytest.MonkeyPatch) -> None:
    grid = grid_of(64, 32, 9)
    denoiser = network.bind(prompt(), grid)
    monkeypatch.setattr(LtxTransformer, "read", None)
    monkeypatch.setattr("soragen.families.ltx_video.transformer.lay_rotary", None)
    for block in network.transformer_blocks:
        monkeypatch.setattr(block.attn2.to_k, "forward", None)
    denoiser(random(1, 16, *grid.latent_shape), LEVEL)


@torch.inference_mode()
def test_words_count_and_padding_does_not(network: LtxTransformer) -> None:
    grid, context = grid_of(64, 32, 9), prompt()
    latents = random(1, 16, *grid.latent_shape)
    clean = network.bind(context, grid)(latents, LEVEL)
    noisy_padding = torch.where(context.mask[:, None], context.embeddings, 9.0)
    assert torch.equal(network.bind(Context(noisy_padding, context.mask), grid)(latents, LEVEL), clean)
    other_words = torch.where(context.mask[:, None], -context.embeddings, context.embeddings)
    assert relative_error(network.bind(Context(other_words, context.mask), grid)(latents, LEVEL), clean) > 1e-3


def test_time_is_in_seconds() -> None:
    seconds = [lay_coordinates(grid_of(32, 32, 25, fps), True, ())[0] for fps in (8, 16)]
    assert seconds[0].tolist() == [0, 1 / 8, 9 / 8, 17 / 8]
    torch.testing.assert_close(seconds[0], 2 * seconds[1])
    assert lay_coordinates(grid_of(32, 32, 25, 8), False, ())[0].tolist() == [0, 1, 2, 3]


@torch.inference_mode()
def test_sixteen_bit_weights_give_float32_estimates(network: LtxTransformer) -> None:
    grid = grid_of(64, 64, 17)
    latents = random(1, 16, *grid.latent_shape)
    expected = network.bind(prompt(), grid)(latents, LEVEL)
    half = our_transformer(TRANSFORMER, network, causal_time=True).to(torch.bfloat16)
    clean = half.bind(prompt(), grid)(latents, LEVEL)
    assert clean.dtype == torch.float32
    assert 1e-4 < relative_error(clean, expected) < 3e-2
