"""The embedded family: exact streams, known frames that come back, positions that carry aspect and frame rate."""

from dataclasses import replace
from fractions import Fraction
from itertools import pairwise

import pytest
import torch

from soragen.diffusion.grid import Compression, lay_grid
from soragen.diffusion.guidance import doubting
from soragen.diffusion.schedule import NoiseLevel
from soragen.families.pocket.transformer import PocketTransformer, TransformerConfig, lay_positions
from soragen.families.pocket.vae import PocketVae, VaeConfig
from soragen.models.family import Context
from soragen.size import VideoSize

COMPRESSION = Compression(stride=(4, 8, 8), patch_size=(1, 2, 2))


def randomise(network: torch.nn.Module, seed: int = 0) -> None:
    """No weight is trivial: layers that start at zero would hide mistakes."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            scale = parameter[0].numel() ** -0.5 if parameter.ndim > 1 else 0.1
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * scale)
        for name, parameter in network.named_parameters():
            if name in ("latent_scale", "latent_std"):
                parameter.copy_(0.5 + torch.rand(parameter.shape, generator=generator))


@pytest.fixture(scope="module")
def vae() -> PocketVae:
    config = VaeConfig(static_channels=6, motion_channels=4, decoder_width=16, fine_width=8)
    vae = PocketVae(config)
    randomise(vae)
    return vae.eval()


@pytest.fixture(scope="module")
def transformer() -> PocketTransformer:
    transformer = PocketTransformer(
        TransformerConfig(
            latent_channels=6, width=64, num_layers=2, num_heads=2, text_width=24, head_width=16, head_layers=2
        )
    )
    randomise(transformer)
    return transformer.eval()


def context(length: int = 5, seed: int = 1) -> Context:
    generator = torch.Generator().manual_seed(seed)
    return Context(torch.randn(length, 24, generator=generator), torch.ones(length, dtype=torch.bool))


def test_encoding_is_an_exact_stream(vae: PocketVae) -> None:
    frames = torch.rand(13, 24, 40, 3)
    whole = vae.encode([frames])
    assert whole.shape == (1, 10, 4, 3, 5)
    torch.testing.assert_close(vae.encode(frames.split([1, 3, 2, 7])), whole, rtol=1e-5, atol=1e-5)


def test_decoding_is_an_exact_stream_and_causal(vae: PocketVae) -> None:
    latents = torch.randn(1, 10, 4, 3, 5)
    whole = torch.cat(list(vae.decode(latents)))
    assert whole.shape == (13, 24, 40, 3)
    assert whole.min() >= 0 and whole.max() <= 1
    raw = vae.denormalise(latents)
    with torch.inference_mode():
        groups = vae.decode_groups(raw)[0][0] / 2 + 0.5  #               [4, 4, 3, H, W], all at once
    at_once = groups.flatten(0, 1)[3:].permute(0, 2, 3, 1).clamp(0, 1)
    apart = torch.cat(list(vae.decode_apart(latents)))
    torch.testing.assert_close(apart, at_once, rtol=1e-5, atol=1e-5)
    assert torch.equal(torch.cat(list(vae.join(vae.decode_apart(latents)))), whole)
    prefix = torch.cat(list(vae.decode(latents[:, :, :2])))
    assert torch.equal(prefix, whole[:5])


def walk(*values: float) -> torch.Tensor:
    """Frames [T, 2, 2, 3], each of one value."""
    return torch.tensor(values)[:, None, None, None].expand(-1, 2, 2, 3)


def joined(vae: PocketVae, frames: torch.Tensor) -> list[float]:
    chunks = [frames[:1], *frames[1:].split(4)]
    shown = torch.cat(list(vae.join(chunks)))
    assert shown.shape == frames.shape
    return [round(float(frame.mean()), 4) for frame in shown]


def test_a_jump_between_groups_is_spread_over_the_second(vae: PocketVae) -> None:
    still = walk(0.2, *[0.2] * 4, *[0.6] * 4, *[0.6] * 4)
    assert joined(vae, still) == pytest.approx([0.2] * 5 + [0.2, 0.3333, 0.4667, 0.6] + [0.6] * 4)
    moving = walk(0.1, 0.11, 0.12, 0.13, 0.14, 0.55, 0.56, 0.57, 0.58)
    shown = joined(vae, moving)
    assert shown[:5] == pytest.approx([0.1, 0.11, 0.12, 0.13, 0.14])
    assert 0.01 <= shown[5] - shown[4] < 0.03 and shown[8] == 0.58  # about the step of the frames around it
    assert max(b - a for a, b in pairwise(shown)) < 0.15


def test_a_step_no_larger_than_those_around_it_is_left_alone(vae: PocketVae) -> None:
    even = [0.1 + 0.05 * n for n in range(13)]
    assert joined(vae, walk(*even)) == pytest.approx(even, abs=1e-4)
    uneven = walk(0.1, 0.2, 0.1, 0.2, 0.1, 0.15, 0.1, 0.2, 0.1)
    assert joined(vae, uneven) == pytest.approx(uneven.mean((1, 2, 3)).tolist(), abs=1e-4)


def test_decoding_takes_nothing_before_it_is_asked(vae: PocketVae) -> None:
    stream = vae.decode(torch.randn(1, 10, 1000, 2, 2))
    assert next(stream).shape == (1, 16, 16, 3)
    assert next(stream).shape == (4, 16, 16, 3)


@pytest.mark.parametrize("num_frames", [0, 2, 4, 6])
def test_encoding_refuses_other_frame_counts(vae: PocketVae, num_frames: int) -> None:
    with pytest.raises(ValueError, match="1 \\+ 4k"):
        vae.encode([torch.rand(num_frames, 16, 16, 3)])


def test_a_still_image_has_no_motion_latents_in_the_linear_codec(vae: PocketVae) -> None:
    still = torch.rand(1, 1, 1, 3, 16, 16).expand(1, 1, 4, 3, 16, 16) * 2 - 1
    linear = PocketVae(vae.config)
    randomise(linear)
    with torch.no_grad():
        latents = linear.encode_groups(still)
    assert latents[0, 0, vae.config.static_channels :].abs().max() < 1e-5
    assert latents[0, 0, : vae.config.static_channels].abs().max() > 0.1


def test_given_frames_come_back_and_steer_the_rest(transformer: PocketTransformer) -> None:
    grid = lay_grid(VideoSize(48, 32, 13, Fraction(12)), COMPRESSION)
    denoiser = transformer.bind(context(), grid)
    latents = torch.randn(1, 6, *grid.latent_shape)
    mask = torch.tensor([0.0, 1.0, 1.0, 1.0])
    with torch.inference_mode():
        clean = denoiser(latents, NoiseLevel(0.2, 0.8, 800.0), mask)
        other = latents.clone()
        other[:, :, 0] += 1
        changed = denoiser(other, NoiseLevel(0.2, 0.8, 800.0), mask)
    assert torch.equal(clean[:, :, 0], latents[:, :, 0])
    assert not torch.allclose(clean[:, :, 1:], latents[:, :, 1:], atol=1e-2)
    assert not torch.allclose(clean[:, :, 1:], changed[:, :, 1:], atol=1e-4)


def test_more_noise_can_be_told_of_than_there_is(transformer: PocketTransformer) -> None:
    """By another factor where frames are given, which have none themselves."""
    grid = lay_grid(VideoSize(48, 32, 13, Fraction(12)), COMPRESSION)
    told = PocketTransformer(replace(transformer.config, told_shift=2.0, told_shift_given=3.0)).told
    denoiser = transformer.bind(context(), grid)
    latents, known = torch.randn(1, 6, *grid.latent_shape), torch.tensor([0.0, 1.0, 1.0, 1.0])
    for there, mask in ((1 / 3, None), (0.25, known)):
        actual, said = (NoiseLevel(1 - sigma, sigma, 1000 * sigma) for sigma in (there, 0.5))
        with torch.inference_mode():
            heard = doubting(denoiser, told)(latents, actual, mask)
            torch.testing.assert_close(heard, denoiser(latents, said, mask))
    for end in (NoiseLevel(1.0, 0.0, 0.0), NoiseLevel(0.0, 1.0, 1000.0)):
        assert told(end, False) == end
    assert transformer.told(actual, True).sigma == pytest.approx(actual.sigma)


def test_the_words_are_read_once(transformer: PocketTransformer, monkeypatch: pytest.MonkeyPatch) -> None:
    grid = lay_grid(VideoSize(32, 32, 5, Fraction(12)), COMPRESSION)
    denoiser = transformer.bind(context(), grid)
    for block in transformer.blocks:
        monkeypatch.setattr(block.cross_attention, "read", None)
    monkeypatch.setattr("soragen.families.pocket.transformer.lay_positions", None)
    with torch.inference_mode():
        denoiser(torch.randn(1, 6, *grid.latent_shape), NoiseLevel(0.5, 0.5, 500.0))


def test_padding_of_the_text_changes_nothing(transformer: PocketTransformer) -> None:
    grid = lay_grid(VideoSize(32, 32, 5, Fraction(12)), COMPRESSION)
    plain = context()
    padded = Context(
        torch.cat([plain.embeddings, torch.randn(3, 24)]), torch.cat([plain.mask, torch.zeros(3, dtype=torch.bool)])
    )
    latents, level = torch.randn(1, 6, *grid.latent_shape), NoiseLevel(0.3, 0.7, 700.0)
    with torch.inference_mode():
        torch.testing.assert_close(
            transformer.bind(padded, grid)(latents, level), transformer.bind(plain, grid)(latents, level)
        )


def test_positions_know_frame_rate_and_aspect() -> None:
    config = TransformerConfig()
    slow, fast = lay_positions(config, (3, 4, 4), 1 / 2), lay_positions(config, (3, 4, 4), 1 / 4)
    assert not torch.allclose(slow.rotary[0], fast.rotary[0])
    # Frame 1 at half the rate is frame 2 at the full rate: time is in seconds.
    torch.testing.assert_close(slow.rotary[1].unflatten(0, (3, 16))[1], fast.rotary[1].unflatten(0, (3, 16))[2])
    wide, tall = lay_positions(config, (1, 2, 8), 1.0), lay_positions(config, (1, 8, 2), 1.0)
    assert not torch.allclose(wide.absolute.sort(0).values, tall.absolute.sort(0).values)


def test_a_new_network_is_the_linear_guess() -> None:
    """adaLN-Zero: before training the estimate is the best linear one, whatever the text."""
    network = PocketTransformer(
        TransformerConfig(
            latent_channels=6, width=64, num_layers=2, num_heads=2, text_width=24, head_width=16, head_layers=2
        )
    )
    network.init_weights()
    grid = lay_grid(VideoSize(32, 32, 5, Fraction(12)), COMPRESSION)
    latents, sigma = torch.randn(1, 6, *grid.latent_shape), 0.6
    with torch.inference_mode():
        clean = network.bind(context(), grid)(latents, NoiseLevel(1 - sigma, sigma, 1000 * sigma))
    torch.testing.assert_close(clean, latents * (1 - sigma) / ((1 - sigma) ** 2 + sigma**2))


def test_convolutions_are_left_out_where_all_is_noise(transformer: PocketTransformer) -> None:
    """Sample by sample: each sees what it sees alone, and what it had with them or without them at that level."""
    early = PocketTransformer(replace(transformer.config, head_below=0.8)).eval()
    early.load_state_dict(transformer.state_dict())
    bare = PocketTransformer(transformer.config).eval()
    bare.load_state_dict(transformer.state_dict())
    bare.head = None
    latents, words = torch.randn(2, 6, 2, 4, 4), torch.randn(2, 5, 24)
    sigma, mask = torch.tensor([[0.0, 0.9], [0.5, 0.5]]), torch.ones(2, 5, dtype=torch.bool)
    positions = lay_positions(transformer.config, (2, 2, 2), 1 / 3)

    def estimate(network: PocketTransformer, rows: slice) -> torch.Tensor:
        w = words[rows]
        with torch.inference_mode():
            summary = network.summarise(w, mask[rows])
            return network(latents[rows], sigma[rows], positions, network.read(w), summary, mask[rows])

    noisy, clear = slice(0, 1), slice(1, 2)
    expected = torch.cat([estimate(bare, noisy), estimate(transformer, clear)])
    torch.testing.assert_close(estimate(early, slice(0, 2)), expected)
    assert not torch.allclose(estimate(transformer, noisy), expected[noisy])
    sigma[:] = 1.0
    assert not torch.allclose(estimate(transformer, noisy), estimate(bare, noisy))  # unless said, at all levels


def test_it_also_computes_in_16_bits(transformer: PocketTransformer) -> None:
    grid = lay_grid(VideoSize(32, 32, 5, Fraction(12)), COMPRESSION)
    half = PocketTransformer(transformer.config).bfloat16()
    half.load_state_dict(transformer.state_dict())
    half.latent_std.data = transformer.latent_std.data
    latents, level = torch.randn(1, 6, *grid.latent_shape), NoiseLevel(0.3, 0.7, 700.0)
    with torch.inference_mode():
        exact, rounded = transformer.bind(context(), grid)(latents, level), half.bind(context(), grid)(latents, level)
    assert rounded.dtype == torch.float32
    assert 0 < float((rounded - exact).norm() / exact.norm()) < 0.03
