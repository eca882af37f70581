"""From a saved folder to final latents and frames, as the reference pipelines make them of the same seed."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import torch
from ltx_folder import components, first_scheduler, saved, second_scheduler
from ltx_reference import VAE_090, VAE_091, VAE_095, relative_error
from PIL import Image
from torch import Tensor

from soragen.diffusion.condition import KnownFrames
from soragen.diffusion.grid import Grid, lay_grid
from soragen.diffusion.guidance import guided
from soragen.diffusion.noise import starting_noise
from soragen.diffusion.sampler import denoise
from soragen.diffusion.schedule import DynamicShift, Schedule, flow_dynamic, linear_quadratic, listed
from soragen.diffusion.solver import Euler
from soragen.families import load_family
from soragen.size import VideoSize

diffusers = pytest.importorskip("diffusers")

PROMPT, NEGATIVE = "a red ball bounces on green grass at sunset", "a grey ball"
CPU, SEED, STEPS, GUIDANCE = torch.device("cpu"), 5, 6, 3.0
SIZE = VideoSize(96, 64, 33, Fraction(24))
ASKED = {"prompt": PROMPT, "width": 96, "height": 64, "num_frames": 33, "frame_rate": 24}
SIZES = {
    "five latent frames": SIZE,
    "one frame": VideoSize(96, 64, 1, Fraction(24)),
    "sides and a length that are cut": VideoSize(150, 90, 15, Fraction(25)),
    "one row of latents, a rate that is no whole number": VideoSize(160, 32, 25, Fraction(30000, 1001)),
    "slow": VideoSize(64, 96, 17, Fraction(8)),
}
DISTILLED = [1000.0, 993.0, 987.0, 981.0, 975.0, 909.0, 725.0, 0.03]
BOUND = 1e-5


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SORAGEN_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory, cache: None) -> tuple[Any, Path]:
    """The generation up to 0.9.1, as 0.9.0."""
    pipeline = diffusers.LTXPipeline(**components(VAE_090, first_scheduler()))
    return saved(pipeline, tmp_path_factory.mktemp("first"))


@pytest.fixture(scope="module")
def first_with_timestep(tmp_path_factory: pytest.TempPathFactory, cache: None) -> tuple[Any, Path]:
    """The generation up to 0.9.1, as 0.9.1."""
    pipeline = diffusers.LTXPipeline(**components(VAE_091, first_scheduler()))
    return saved(pipeline, tmp_path_factory.mktemp("first_with_timestep"))


@pytest.fixture(scope="module")
def second(tmp_path_factory: pytest.TempPathFactory, cache: None) -> tuple[Any, Path]:
    """The generation since 0.9.5."""
    pipeline = diffusers.LTXConditionPipeline(**components(VAE_095, second_scheduler()))
    return saved(pipeline, tmp_path_factory.mktemp("second"))


@pytest.fixture
def known_frames_are_means(monkeypatch: pytest.MonkeyPatch) -> None:
    module = __import__("diffusers.pipelines.ltx.pipeline_ltx_image2video", fromlist=["retrieve_latents"])
    monkeypatch.setattr(module, "retrieve_latents", lambda encoded, *args, **kwargs: encoded.latent_dist.mode())


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(SEED)


def picture(seed: int) -> Image.Image:
    pixels = torch.randint(0, 256, (64, 96, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))
    return Image.fromarray(pixels.numpy())


def pixels_of(pictures: Sequence[Image.Image]) -> Tensor:
    return torch.stack([torch.frombuffer(bytearray(p.tobytes()), dtype=torch.uint8) for p in pictures]).view(
        len(pictures), 64, 96, 3
    ) / torch.tensor(255.0)


def run(
    folder: Path,
    schedule: Schedule | None = None,
    guidance: float = GUIDANCE,
    known: KnownFrames | None = None,
    size: VideoSize = SIZE,
) -> Tensor:
    """The final latents [1, C, T, H, W]."""
    family = load_family("ltx_video")
    grid = our_grid(folder, size)
    context, negative = family.load_text_encoder(folder, CPU, torch.float32).encode([PROMPT, NEGATIVE])
    transformer: Any = family.load_transformer(folder, CPU, torch.float32)
    denoiser = guided(transformer.bind(context, grid), transformer.bind(negative, grid), guidance)
    schedule = schedule or flow_dynamic(STEPS, grid.num_tokens, DynamicShift())
    noise = starting_noise(SEED, family.latent_channels(folder), grid)
    return list(denoise(denoiser, noise, schedule, Euler(schedule), known))[-1].latents


def our_grid(folder: Path, size: VideoSize = SIZE) -> Grid:
    return lay_grid(size, load_family("ltx_video").compression(folder))


def unpack(tokens: Tensor, shape: tuple[int, int, int] = (5, 2, 3)) -> Tensor:
    return tokens.unflatten(1, shape).permute(0, 4, 1, 2, 3)


@pytest.mark.parametrize("padded", [128, 256])
def test_text(first: tuple[Any, Path], second: tuple[Any, Path], padded: int) -> None:
    pipeline, folder = first if padded == 128 else second
    [context] = load_family("ltx_video").load_text_encoder(folder, CPU, torch.float32).encode([PROMPT])
    encoder = pipeline.text_encoder
    with torch.inference_mode():
        expected, mask = pipeline.encode_prompt(PROMPT, do_classifier_free_guidance=False, device=CPU)[:2]
        pipeline.text_encoder = copy.deepcopy(encoder).double()
        exact = pipeline.encode_prompt(PROMPT, do_classifier_free_guidance=False, device=CPU, dtype=torch.float64)[0]
        pipeline.text_encoder = encoder
    assert context.embeddings.shape == (padded, 24)
    assert torch.equal(context.mask, mask[0])
    found, expected, exact = context.embeddings[context.mask], expected[0][mask[0]], exact[0][mask[0]]
    # The first generation's words look at the padding, too. More than a hundred times the same token amplify rounding:
    # either side is 0.8e-6 from the reference in float64, and so they are 1.1e-6 from each other.
    assert relative_error(found, expected) <= (1e-6 if padded == 256 else 2e-6)
    assert relative_error(found, exact) <= 1e-6
    assert relative_error(found, exact) <= 1.5 * relative_error(expected, exact)


@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES.keys())
@pytest.mark.parametrize("name", ["first", "first_with_timestep", "second"], ids=["0.9.0", "0.9.1", "0.9.5"])
def test_text_to_video(request: pytest.FixtureRequest, name: str, size: VideoSize) -> None:
    pipeline, folder = request.getfixturevalue(name)
    grid = our_grid(folder, size)
    expected = pipeline(
        prompt=PROMPT, negative_prompt=NEGATIVE, width=grid.width, height=grid.height, num_frames=grid.num_frames,
        frame_rate=float(size.fps), num_inference_steps=STEPS, guidance_scale=GUIDANCE, generator=generator(),
        output_type="latent",
    ).frames  # fmt: skip
    found = run(folder, linear_quadratic(STEPS) if name == "second" else None, size=size)
    # The second generation's pipeline gives latents back in their shape.
    assert relative_error(found, unpack(expected, grid.latent_shape) if expected.ndim == 3 else expected) < BOUND


@pytest.mark.usefixtures("known_frames_are_means")
def test_first_frame_of_the_first_generation(first: tuple[Any, Path]) -> None:
    pipeline, folder = first
    expected = diffusers.LTXImageToVideoPipeline(**pipeline.components)(
        **ASKED, image=picture(1), negative_prompt=NEGATIVE, num_inference_steps=STEPS, guidance_scale=GUIDANCE,
        generator=generator(), output_type="latent",
    ).frames  # fmt: skip
    vae = load_family("ltx_video").load_vae(folder, CPU, torch.float32)
    known = KnownFrames(vae.encode([pixels_of([picture(1)])]).repeat(1, 1, 5, 1, 1), torch.arange(5).clamp(max=1), True)
    assert relative_error(run(folder, known=known), unpack(expected)) < BOUND


def test_distilled_to_the_last_pixel(second: tuple[Any, Path]) -> None:
    pipeline, folder = second
    expected = pipeline(
        **ASKED, timesteps=DISTILLED, guidance_scale=1.0, generator=generator(), output_type="np",
        decode_timestep=0.05, decode_noise_scale=0.025,
    ).frames[0]  # fmt: skip
    latents = run(folder, listed(DISTILLED), guidance=1.0)
    vae = load_family("ltx_video").load_vae(folder, CPU, torch.float32)
    assert relative_error(torch.cat(list(vae.decode(latents, seed=SEED))), torch.from_numpy(expected)) < BOUND


def test_work(first: tuple[Any, Path]) -> None:
    work = load_family("ltx_video").work(first[1], our_grid(first[1]))
    assert work.transformer_flops == 2 * (2 * 30 * 14 * 64**2 + 4 * 30 * 30 * 64)
    assert work.transformer_bytes > 4 * 30 * 64 and work.vae_bytes > 4 * 8 * 6 * 64**2
