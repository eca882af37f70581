"""Given frames from the clips to the final latents, as the reference pipeline since 0.9.5 takes them."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import torch
from ltx_folder import components, saved, second_scheduler
from ltx_reference import VAE_095, relative_error
from PIL import Image
from torch import Tensor

from soragen.catalog import catalog
from soragen.diffusion.grid import lay_grid
from soragen.diffusion.guidance import guided
from soragen.diffusion.noise import starting_noise
from soragen.diffusion.sampler import denoise
from soragen.diffusion.schedule import linear_quadratic
from soragen.diffusion.solver import Euler
from soragen.diffusion.windows import Window
from soragen.families import load_family
from soragen.models.family import KeyframeFamily
from soragen.pipeline.conditions import Clip, Conditions, bind, read_conditions
from soragen.size import VideoSize

diffusers = pytest.importorskip("diffusers")

CPU, F32, SEED, STEPS, GUIDANCE, BOUND = torch.device("cpu"), torch.float32, 5, 6, 3.0, 1e-5
PROMPT, NEGATIVE = "a red ball bounces on green grass at sunset", "a grey ball"
SIZE = VideoSize(96, 64, 33, Fraction(24))
CASES: dict[str, dict[int, int]] = {
    "first and last frame": {0: 1, 32: 1},
    "a clip at the start, a frame between, a clip at the end": {0: 9, 13: 1, 16: 17},
}
"""The frame at which each clip stands: how many frames it has."""


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Any, Path]]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SORAGEN_CACHE", str(tmp_path_factory.mktemp("cache")))
        pipeline = diffusers.LTXConditionPipeline(**components(VAE_095, second_scheduler()))
        yield saved(pipeline, tmp_path_factory.mktemp("ltx"))


@pytest.fixture
def reference_draws_as_we_do(monkeypatch: pytest.MonkeyPatch) -> None:
    """Given frames are taken as their mean, where it would draw; noise on them comes from a generator like ours."""
    module = __import__("diffusers.pipelines.ltx.pipeline_ltx_condition", fromlist=["LTXConditionPipeline"])
    monkeypatch.setattr(module, "retrieve_latents", lambda encoded, *args, **kwargs: encoded.latent_dist.mode())
    theirs, generator = module.LTXConditionPipeline.add_noise_to_image_conditioning_latents, torch.Generator()
    generator.manual_seed(0)

    def add(t: Any, init: Tensor, latents: Tensor, scale: float, mask: Tensor, _: torch.Generator) -> Any:
        return theirs(t, init, latents, scale, mask, generator)

    monkeypatch.setattr(module.LTXConditionPipeline, "add_noise_to_image_conditioning_latents", staticmethod(add))


def pictures(start: int, count: int) -> list[Image.Image]:
    generator = torch.Generator().manual_seed(start)
    pixels = torch.randint(0, 256, (count, 64, 96, 3), dtype=torch.uint8, generator=generator)
    return [Image.fromarray(frame.numpy()) for frame in pixels]


def clip(start: int, count: int) -> Clip:
    frames = [torch.frombuffer(bytearray(p.tobytes()), dtype=torch.uint8) for p in pictures(start, count)]
    return Clip(torch.stack(frames).view(count, 64, 96, 3) / torch.tensor(255.0), start)


def read(folder: Path, clips: list[Clip], name: str = "ltx-video-0.9.5") -> Conditions:
    family = load_family("ltx_video")
    grid = lay_grid(SIZE, family.compression(folder))
    return read_conditions(
        catalog()[name], folder, family, clips, grid,
        load_vae=lambda: family.load_vae(folder, CPU, F32), device=CPU, dtype=F32,
    )  # fmt: skip


def run(folder: Path, conditions: Conditions) -> Tensor:
    """Final latents [1, C, T, H, W]."""
    family = load_family("ltx_video")
    grid = lay_grid(SIZE, family.compression(folder))
    contexts = family.load_text_encoder(folder, CPU, F32).encode([PROMPT, NEGATIVE])
    transformer, whole = family.load_transformer(folder, CPU, F32), Window(0, 5, 0, 5)
    cond, uncond = (bind(transformer, context, grid, conditions, whole) for context in contexts)
    noise, schedule = starting_noise(SEED, family.latent_channels(folder), grid), linear_quadratic(STEPS)
    *_, last = denoise(guided(cond, uncond, GUIDANCE), noise, schedule, Euler(schedule), conditions.known)
    return last.latents


@pytest.mark.usefixtures("reference_draws_as_we_do")
@pytest.mark.parametrize("given", CASES.values(), ids=CASES.keys())
def test_final_latents(checkpoint: tuple[Any, Path], given: dict[int, int]) -> None:
    pipeline, folder = checkpoint
    from diffusers.pipelines.ltx.pipeline_ltx_condition import LTXVideoCondition

    expected = pipeline(
        conditions=[LTXVideoCondition(video=pictures(*item), frame_index=item[0]) for item in given.items()],
        prompt=PROMPT, negative_prompt=NEGATIVE, width=96, height=64, num_frames=33, frame_rate=24,
        num_inference_steps=STEPS, guidance_scale=GUIDANCE, output_type="latent",
        generator=torch.Generator().manual_seed(SEED),
    ).frames  # fmt: skip
    conditions = read(folder, [clip(*item) for item in given.items()])
    assert conditions.known is not None
    found, free = run(folder, conditions), conditions.known.mask.bool()
    # Theirs leaves the noise of the last step on the given frames; ours gives them back as they are.
    assert relative_error(found[:, :, free], expected[:, :, free]) < BOUND
    assert torch.equal(found[:, :, ~free], conditions.known.latents[:, :, ~free])


def test_where_clips_end_up(checkpoint: tuple[Any, Path]) -> None:
    folder = checkpoint[1]
    conditions = read(folder, [clip(0, 9), clip(13, 1), clip(16, 17)])
    assert conditions.known is not None and conditions.known.native
    assert conditions.known.mask.tolist() == [0, 0, 1, 1, 0]
    assert [(k.frame, k.latents.shape[2]) for k in conditions.keyframes] == [(13, 1), (16, 2)]
    # One that begins like a latent frame: nine frames at once, and the rest where latent frames lie.
    conditions = read(folder, [clip(9, 24)])
    assert conditions.known is not None and conditions.known.mask.tolist() == [1, 1, 1, 1, 0]
    assert [(k.frame, k.latents.shape[2]) for k in conditions.keyframes] == [(9, 2), (16, 2)]
    assert read(folder, [clip(32, 1)]).known is None


def test_the_first_generation_takes_no_keyframes(checkpoint: tuple[Any, Path], tmp_path: Path) -> None:
    family = load_family("ltx_video")
    assert isinstance(family, KeyframeFamily) and family.takes_keyframes(checkpoint[1])
    assert family.load_transformer(checkpoint[1], CPU, F32).given_noise_scale == 0.15  # type: ignore[attr-defined]
    (tmp_path / "vae").mkdir()
    (tmp_path / "vae" / "config.json").write_text('{"_class_name": "AutoencoderKLLTXVideo"}')
    assert not family.takes_keyframes(tmp_path)


def test_keyframes_move_with_the_window(checkpoint: tuple[Any, Path]) -> None:
    """A window begins like a video, so its first frame is the last one of the latent frame that it begins with."""
    folder = checkpoint[1]
    family = load_family("ltx_video")
    (context,) = family.load_text_encoder(folder, CPU, F32).encode([PROMPT])
    transformer = family.load_transformer(folder, CPU, F32)
    grid = lay_grid(VideoSize(96, 64, 17, Fraction(24)), family.compression(folder))
    latents, level = starting_noise(1, 16, grid), linear_quadratic(STEPS)[2]

    def made(clips: list[Clip], window: Window) -> Tensor:
        return bind(transformer, context, grid, read(folder, clips), window)(latents, level)

    at_its_end, alone = made([clip(16, 1)], Window(0, 3, 0, 3)), made([], Window(0, 3, 0, 3))
    later = Clip(clip(16, 1).frames, 32)
    assert torch.equal(made([later], Window(2, 5, 3, 5)), at_its_end)
    assert torch.equal(made([later], Window(0, 3, 0, 3)), alone)
    assert not torch.allclose(at_its_end, alone, atol=1e-3)
