"""From a saved folder to final latents: soragen against diffusers' pipelines, which the `test` extra installs."""

from __future__ import annotations

import gc
import json
import weakref
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import WanImageToVideoPipeline, WanPipeline
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor
from wan_folder import SHIFT, image_encoder, image_processor, write_checkpoint
from wan_reference import IMAGE_TRANSFORMER, PUBLISHED_TRANSFORMERS, PUBLISHED_VAES, VAE_22, error, randn

from soragen.diffusion.condition import KnownFrames
from soragen.diffusion.grid import Grid, lay_grid
from soragen.diffusion.guidance import Denoiser, guided
from soragen.diffusion.noise import starting_noise
from soragen.diffusion.sampler import denoise
from soragen.diffusion.schedule import NoiseLevel, flow_truncated
from soragen.diffusion.solver import UniPC
from soragen.errors import InputError, WeightsError
from soragen.families import load_family
from soragen.families.wan.clip import MEAN, STD, middle_square
from soragen.families.wan.experts import Experts
from soragen.families.wan.text import clean
from soragen.families.wan.transformer import WanTransformer
from soragen.models.family import Family, ImageCondition, ImageFamily
from soragen.size import VideoSize

TOLERANCE = 1e-5
CPU, F32 = torch.device("cpu"), torch.float32
PROMPT = "  a red “fox” &amp;amp; a café,\n jumping!  "
NEGATIVE = "blurry. it’s a still"
SEED, STEPS, GUIDANCE = 7, 6, 5.0


@pytest.fixture(autouse=True)
def no_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SORAGEN_CACHE", str(tmp_path / "cache"))


def wan() -> Family:
    return load_family("wan")


def lay(folder: Path, size: VideoSize) -> Grid:
    return lay_grid(size, wan().compression(folder))


def size(width: int, height: int, num_frames: int) -> VideoSize:
    return VideoSize(width, height, num_frames, Fraction(16))


def final_latents(
    folder: Path,
    grid: Grid,
    known: KnownFrames | None = None,
    image: ImageCondition | None = None,
    guide: Callable[[Any, Denoiser, Denoiser], Denoiser] = lambda _, cond, uncond: guided(cond, uncond, GUIDANCE),
) -> Tensor:
    context, negative = wan().load_text_encoder(folder, CPU, F32).encode([PROMPT, NEGATIVE])
    transformer = wan().load_transformer(folder, CPU, F32)
    beside = (image,) if image is not None else ()
    denoiser = guide(transformer, transformer.bind(context, grid, *beside), transformer.bind(negative, grid, *beside))
    schedule = flow_truncated(STEPS, SHIFT)
    noise = starting_noise(SEED, wan().latent_channels(folder), grid)
    *_, last = denoise(denoiser, noise, schedule, UniPC(schedule), known)
    return last.latents


def their_latents(pipe: Any, video: VideoSize, **more: Any) -> Tensor:
    return pipe(
        prompt=PROMPT, negative_prompt=NEGATIVE, width=video.width, height=video.height, num_frames=video.num_frames,
        num_inference_steps=STEPS, guidance_scale=GUIDANCE, generator=torch.Generator().manual_seed(SEED),
        output_type="latent", **more,
    ).frames  # fmt: skip


def test_text_embeddings(tmp_path: Path) -> None:
    pipe = write_checkpoint(tmp_path, WanPipeline)
    encoder = wan().load_text_encoder(tmp_path, CPU, F32)
    with torch.no_grad():
        # Six hundred times the same word amplify rounding: in float64 the reference moves as far.
        for prompt, tolerance in ((PROMPT, 1e-6), (NEGATIVE, 1e-6), ("", 1e-6), ("a " * 600, 1e-5)):
            expected, _ = pipe.encode_prompt(prompt, do_classifier_free_guidance=False, max_sequence_length=512)
            (context,) = encoder.encode([prompt])
            assert error(context.embeddings, expected[0]) <= tolerance
            assert not context.embeddings[~context.mask].any()
    assert encoder.dropped(PROMPT) == ""
    assert encoder.dropped("a " * 600).split() == ["a"] * 345  # a word is two tokens, and the end has one of 512


def test_cleaning_of_prompts() -> None:
    assert clean(PROMPT) == 'a red "fox" & a café, jumping!'
    assert clean("sch\u00c3\u00b6n &lt;b&gt;") == "schön <b>"  # UTF-8 that was read as Latin-1


@pytest.mark.parametrize("video", [size(80, 48, 9), size(32, 64, 13), size(48, 32, 1)], ids=str)
def test_text_to_video(tmp_path: Path, video: VideoSize) -> None:
    pipe = write_checkpoint(tmp_path, WanPipeline)
    expected = their_latents(pipe, video)
    found = final_latents(tmp_path, lay(tmp_path, video))
    assert error(found, expected) <= TOLERANCE

    frames = pipe.vae.decode(
        expected * torch.tensor(pipe.vae.config.latents_std).view(1, -1, 1, 1, 1)
        + torch.tensor(pipe.vae.config.latents_mean).view(1, -1, 1, 1, 1)
    ).sample.detach()[0].permute(1, 2, 3, 0) * 0.5 + 0.5  # fmt: skip
    assert error(torch.cat(list(wan().load_vae(tmp_path, CPU, F32).decode(found))), frames.clamp(0, 1)) <= TOLERANCE


def test_a_timestep_for_each_token_without_known_frames(tmp_path: Path) -> None:
    pipe = write_checkpoint(tmp_path, WanPipeline, vae=VAE_22, expand_timesteps=True)
    video = size(160, 96, 9)
    assert error(final_latents(tmp_path, lay(tmp_path, video)), their_latents(pipe, video)) <= TOLERANCE


@pytest.mark.parametrize("num_frames", [13, 1])
def test_first_frame_by_timesteps(tmp_path: Path, num_frames: int) -> None:
    pipe = write_checkpoint(tmp_path, WanImageToVideoPipeline, vae=VAE_22, expand_timesteps=True)
    video = size(160, 96, num_frames)
    image = torch.rand(96, 160, 3, generator=torch.Generator().manual_seed(3))
    expected = their_latents(pipe, video, image=image.permute(2, 0, 1)[None])

    grid = lay(tmp_path, video)
    first = wan().load_vae(tmp_path, CPU, F32).encode([image[None]])
    mask = torch.ones(grid.latent_shape[0])
    mask[0] = 0
    known = KnownFrames(first.expand(-1, -1, len(mask), -1, -1), mask, native=True)
    assert error(final_latents(tmp_path, grid, known), expected) <= TOLERANCE


def test_two_experts_with_a_guidance_of_their_own(tmp_path: Path) -> None:
    pipe = write_checkpoint(tmp_path, WanPipeline, boundary_ratio=0.875)
    video = size(48, 32, 9)
    resident: list[bool | None] = []

    def guide(experts: Experts, cond: Denoiser, uncond: Denoiser) -> Denoiser:
        high, low = guided(cond, uncond, GUIDANCE), guided(cond, uncond, 3.0)

        def denoiser(latents: Tensor, level: NoiseLevel, mask: Tensor | None = None) -> Tensor:
            clean = (high if experts.is_high(level) else low)(latents, level, mask)
            resident.append(experts.resident)
            return clean

        return denoiser

    found = final_latents(tmp_path, lay(tmp_path, video), guide=guide)
    assert error(found, their_latents(pipe, video, guidance_scale_2=3.0)) <= TOLERANCE
    assert resident == [True, True, False, False, False, False]  # timesteps 999, 937, 857, ..


def test_only_one_expert_is_in_memory(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, WanPipeline, boundary_ratio=0.875)
    grid = lay(tmp_path, size(32, 32, 5))
    (context,) = wan().load_text_encoder(tmp_path, CPU, F32).encode([PROMPT])
    experts = wan().load_transformer(tmp_path, CPU, F32)
    assert isinstance(experts, Experts) and experts.resident is None
    alive: list[weakref.ref[Any]] = []
    for high, load in list(experts.load.items()):

        def watched(load: Callable[[], Any] = load) -> Any:
            gc.collect()
            assert not any(reference() for reference in alive)
            network = load()
            alive.append(weakref.ref(network))
            return network

        experts.load[high] = watched
    cond, uncond = experts.bind(context, grid), experts.bind(context, grid)
    latents = torch.randn(1, 4, *grid.latent_shape)
    for timestep in (999.0, 875.0, 874.0, 10.0, 999.0):  # the last one as in a second window
        for denoiser in (cond, uncond):
            denoiser(latents, NoiseLevel(1 - timestep / 1000, timestep / 1000, timestep))
    assert len(alive) == 3


@pytest.mark.parametrize(("ratio", "second"), [(None, True), (0.9, False), (1.5, True), ("0.9", True)])
def test_an_index_that_does_not_fit_the_transformers(tmp_path: Path, ratio: object, second: bool) -> None:
    write_checkpoint(tmp_path, WanPipeline)
    if second:
        (tmp_path / "transformer_2").mkdir()
    (tmp_path / "model_index.json").write_text(json.dumps({"boundary_ratio": ratio}))
    with pytest.raises(WeightsError, match="boundary_ratio"):
        wan().load_transformer(tmp_path, CPU, F32)


def test_16_bits(tmp_path: Path) -> None:
    """The same parts stay in float32 as when diffusers loads the folder; stored norms that are not used are let be."""
    pipe = write_checkpoint(tmp_path, WanPipeline)
    path = tmp_path / "transformer" / "diffusion_pytorch_model.safetensors"
    save_file({**load_file(path), "blocks.0.attn2.norm_added_q.weight": torch.ones(56)}, path)
    ours, theirs = wan().load_transformer(tmp_path, CPU, torch.bfloat16), pipe.transformer
    kept = set(theirs._keep_in_fp32_modules)
    for name, weight in theirs.named_parameters():
        weight.data = weight.data.to(F32 if kept & set(name.split(".")) else torch.bfloat16)
    assert isinstance(ours, WanTransformer)
    assert {name: w.dtype for name, w in ours.named_parameters()} == {
        name: w.dtype for name, w in theirs.named_parameters()
    }
    (context,) = wan().load_text_encoder(tmp_path, CPU, F32).encode([PROMPT])
    grid, latents = lay(tmp_path, size(80, 48, 9)), randn(1, 4, 3, 6, 10)
    with torch.no_grad():
        expected = theirs(
            latents.bfloat16(), torch.tensor([701]), context.embeddings[None].bfloat16(), return_dict=False
        )[0]
    found = (latents - ours.bind(context, grid)(latents, NoiseLevel(0.3, 0.7, 701.0))) / 0.7
    assert error(found, expected) <= 1e-3


def picture(video: VideoSize, seed: int) -> Image.Image:
    pixels = torch.randint(0, 256, (video.height, video.width, 3), generator=torch.Generator().manual_seed(seed))
    return Image.fromarray(pixels.to(torch.uint8).numpy())


def pixels(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(image)).float() / 255


I2V = {**IMAGE_TRANSFORMER, "image_dim": None, "added_kv_proj_dim": None}
I2V_CASES: dict[str, tuple[dict[str, Any], bool, dict[str, Any]]] = {
    "first frame": (IMAGE_TRANSFORMER, False, {}),
    "first and last frame": ({**IMAGE_TRANSFORMER, "pos_embed_seq_len": 34}, True, {}),
    "first frame, two experts": (I2V, False, {"boundary_ratio": 0.9}),
    "first and last frame, two experts": (I2V, True, {"boundary_ratio": 0.9}),
}


@pytest.mark.parametrize(("transformer", "has_last", "extra"), I2V_CASES.values(), ids=I2V_CASES.keys())
def test_image_to_video(tmp_path: Path, transformer: dict[str, Any], has_last: bool, extra: dict[str, Any]) -> None:
    clip = transformer["image_dim"] is not None
    pipe = write_checkpoint(
        tmp_path, WanImageToVideoPipeline, transformer=transformer, **extra,
        image_encoder=image_encoder() if clip else None, image_processor=image_processor() if clip else None,
    )  # fmt: skip
    video = size(48, 32, 9)
    images = {0: picture(video, 1), **({8: picture(video, 2)} if has_last else {})}
    expected = their_latents(pipe, video, image=images[0], last_image=images.get(8))

    family, grid = wan(), lay(tmp_path, video)
    assert isinstance(family, ImageFamily) and family.takes_images(tmp_path)
    given = {n: pixels(image) for n, image in images.items()}
    condition = family.read_images(
        tmp_path, given, grid, load_vae=lambda: family.load_vae(tmp_path, CPU, F32), device=CPU, dtype=F32
    )
    assert error(final_latents(tmp_path, grid, image=condition), expected) <= TOLERANCE


def test_images_that_do_not_fit(tmp_path: Path) -> None:
    write_checkpoint(
        tmp_path, WanImageToVideoPipeline, transformer=IMAGE_TRANSFORMER, image_encoder=image_encoder(),
        image_processor=image_processor(),
    )  # fmt: skip
    family, grid = wan(), lay(tmp_path, size(48, 32, 9))
    assert isinstance(family, ImageFamily)
    image = torch.rand(32, 48, 3)
    for images in ({}, {9: image}, {0: image[:16]}, {0: image, 8: image}):
        with pytest.raises(InputError):
            family.read_images(tmp_path, images, grid, load_vae=lambda: pytest.fail("loaded"), device=CPU, dtype=F32)
    with pytest.raises(InputError, match="from an image"):
        final_latents(tmp_path, grid)


@pytest.mark.parametrize("sides", [(70, 53), (112, 48), (20, 20), (832, 480), (1280, 720)], ids=str)
def test_pictures_are_cut_as_clip_does(sides: tuple[int, int]) -> None:
    """To the shade, also where many values fall half-way between two."""
    image = picture(size(*sides, 1), 1)
    (expected,) = image_processor()(image, return_tensors="pt").pixel_values
    found = (middle_square(pixels(image), 32) - torch.tensor(MEAN)) / torch.tensor(STD)
    shades = (found.permute(2, 0, 1) - expected).abs() * torch.tensor(STD)[:, None, None] * 255
    assert shades.max() < 1e-3


@pytest.mark.parametrize(
    ("transformer", "vae", "video", "teraflops"),
    [
        ("wan2.1-t2v-1.3b", "wan2.1", size(832, 480, 81), 283.0),
        ("wan2.1-t2v-14b, wan2.2-t2v-a14b", "wan2.1", size(1280, 720, 81), 6523.3),
        ("wan2.2-ti2v-5b", "wan2.2-ti2v-5b", size(1280, 704, 121), 516.9),
    ],
)
def test_work_of_the_published_sizes(
    tmp_path: Path, transformer: str, vae: str, video: VideoSize, teraflops: float
) -> None:
    """One forward, as torch counts it in the reference, which makes keys and values of the text again each time."""
    z = PUBLISHED_VAES[vae]["z_dim"]
    configs = {
        "transformer": PUBLISHED_TRANSFORMERS[transformer],
        "vae": {**PUBLISHED_VAES[vae], "latents_mean": [0.0] * z, "latents_std": [1.0] * z},
    }
    for part, config in configs.items():
        (tmp_path / part).mkdir()
        (tmp_path / part / "config.json").write_text(json.dumps({"_class_name": "Wan", **config}))
    grid = lay(tmp_path, video)
    assert grid.is_exact and wan().latent_channels(tmp_path) == z
    assert wan().work(tmp_path, grid).transformer_flops / 1e12 == pytest.approx(teraflops, rel=2e-3)


def test_what_a_grid_costs_grows_with_it(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, WanPipeline)
    small, long, wide = (lay(tmp_path, size(*sides)) for sides in ((64, 64, 9), (64, 64, 33), (128, 64, 9)))
    work = [wan().work(tmp_path, grid) for grid in (small, long, wide)]
    assert work[0].transformer_flops < work[2].transformer_flops < work[1].transformer_flops
    assert work[0].vae_bytes == work[1].vae_bytes == work[2].vae_bytes // 2  # decoding streams in time
