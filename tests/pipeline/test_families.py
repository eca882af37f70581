"""Every family from a folder in its published layout to a file, and to diffusers' latents on the way."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import diffusers
import pytest
import torch
from ltx_folder import components, first_scheduler, saved, second_scheduler
from ltx_reference import VAE_090, VAE_091, VAE_095
from safetensors.torch import load_file, save_file
from torch import Tensor
from wan_folder import SHIFT, write_checkpoint
from wan_reference import VAE_22, error

from soragen.catalog import catalog, checkpoint_folder, find
from soragen.diffusion.schedule import make_schedule
from soragen.diffusion.solver import make_solver
from soragen.pipeline import run
from soragen.pipeline.events import Event
from soragen.pipeline.memory import Machine, weigh
from soragen.pipeline.plan import make_plan
from soragen.pipeline.resolve import resolve
from soragen.video.facts import video_facts

PROMPT, NEGATIVE, SEED, STEPS = "a red ball bounces on green grass", "a grey ball", 7, 6
NATIVE = {"width": 64, "height": 64, "num_frames": 9, "min_area": 0.5, "max_area": 2.0, "max_num_frames": 81}
LISTED = {"schedule": "listed", "timesteps": [1000.0, 909.0, 725.0, 0.03], "num_steps": 4}
TOLERANCE = 1e-5


class Model(NamedTuple):
    pipeline: Any
    folder: Path
    asked: dict[str, Any]
    """Of their pipeline, beside the size, the prompts, the steps and the seed."""


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Model]]:
    def wan(name: str, asked: dict[str, Any], **options: Any) -> Model:
        folder = tmp_path_factory.mktemp(name)
        pipeline = write_checkpoint(folder, diffusers.WanPipeline, **options)
        return changed(Model(pipeline, folder, asked), {"shift": SHIFT, "shifts": {}})

    def ltx(name: str, pipeline: Any, vae: dict[str, Any], scheduler: Any, **defaults: Any) -> Model:
        made = saved(pipeline(**components(vae, scheduler)), tmp_path_factory.mktemp(name))
        return changed(Model(*made, {"guidance_scale": 3.0, "frame_rate": 25}), defaults)

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SORAGEN_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield {
            "wan": wan("wan", {"guidance_scale": 6.0}),
            "wan ti2v": wan("ti2v", {"guidance_scale": 6.0}, vae=VAE_22, expand_timesteps=True),
            "wan a14b": wan("a14b", {"guidance_scale": 4.0, "guidance_scale_2": 3.0}, boundary_ratio=0.875),
            "ltx 0.9.0": ltx("0.9.0", diffusers.LTXPipeline, VAE_090, first_scheduler()),
            "ltx 0.9.1": ltx("0.9.1", diffusers.LTXPipeline, VAE_091, first_scheduler()),
            "ltx 0.9.5": ltx(
                "0.9.5", diffusers.LTXConditionPipeline, VAE_095, second_scheduler(), schedule="linear_quadratic"
            ),
        }  # fmt: skip


MODELS = ["wan", "wan ti2v", "wan a14b", "ltx 0.9.0", "ltx 0.9.1", "ltx 0.9.5"]


def changed(model: Model, defaults: dict[str, Any]) -> Model:
    """With values of its own, as a user's folder may have: what is small here was not trained at a large size."""
    (model.folder / "soragen.json").write_text(json.dumps({"native": NATIVE, "defaults": defaults}))
    return model


def our_latents(folder: Path, **options: Any) -> Tensor:
    events: list[Event] = []
    request = resolve(
        PROMPT, negative=NEGATIVE, model=str(folder), size="96x64", frames=9, seed=SEED, listen=events.append, **options
    )
    plan = make_plan(request, find(str(folder)), "cpu")
    context, negative = run.encode_prompts(plan, True, events.append)
    clock = run.Clock(events.append)
    return run.denoise_all(plan, context, negative, run.encode_given(plan, clock), clock)


def their_latents(model: Model, **options: Any) -> Tensor:
    found = model.pipeline(
        prompt=PROMPT, negative_prompt=NEGATIVE, width=96, height=64, num_frames=9, output_type="latent",
        generator=torch.Generator().manual_seed(SEED), **{**model.asked, **options},
    ).frames  # fmt: skip
    return found if found.ndim == 5 else found.unflatten(1, (2, 2, 3)).permute(0, 4, 1, 2, 3)


@pytest.mark.parametrize("name", MODELS)
def test_from_a_sentence_to_a_file(models: dict[str, Model], name: str, cli: Any, home: Path) -> None:
    ended = cli(
        "generate", PROMPT, "--model", str(models[name].folder), "--size", "64x64", "--frames", "5", "--steps", "2"
    )
    assert ended.code == 0, ended.err
    facts = video_facts(home / "a.mp4")
    assert (facts.width, facts.height, facts.num_frames) == (64, 64, 5)
    assert [path.name for path in home.iterdir()] == ["a.mp4"]


@pytest.mark.parametrize("name", MODELS)
def test_the_run_gives_the_latents_of_the_reference(models: dict[str, Model], name: str) -> None:
    model = models[name]
    found = our_latents(model.folder, steps=STEPS)
    assert error(found, their_latents(model, num_inference_steps=STEPS)) <= TOLERANCE


def test_one_scale_for_both_experts(models: dict[str, Model]) -> None:
    model = models["wan a14b"]
    found = our_latents(model.folder, steps=STEPS, guidance=2.5)
    expected = their_latents(model, num_inference_steps=STEPS, guidance_scale=2.5, guidance_scale_2=2.5)
    assert error(found, expected) <= TOLERANCE


def test_both_scales_are_in_the_recipe_and_the_plan(models: dict[str, Model]) -> None:
    folder = models["wan a14b"].folder
    request = resolve(PROMPT, model=str(folder), size="64x64", frames=5, listen=lambda event: None)
    assert (request.guidance_scale, request.low_noise_guidance_scale) == (4.0, 3.0)
    assert type(request).from_dict(request.to_dict()) == request
    plan = make_plan(request, find(str(folder)), "cpu")
    assert "guidance 4, then 3" in "\n".join(plan.lines())
    assert run.make_recipe(plan)["request"]["low_noise_guidance_scale"] == 3.0


@pytest.fixture
def distilled(models: dict[str, Model], tmp_path: Path) -> Model:
    model = models["ltx 0.9.5"]
    folder = shutil.copytree(model.folder, tmp_path / "distilled")
    return changed(model._replace(folder=folder), {**LISTED, "guidance_scale": 1.0})


def test_timesteps_that_a_checkpoint_lists(distilled: Model) -> None:
    expected = their_latents(distilled, timesteps=LISTED["timesteps"], guidance_scale=1.0)
    assert error(our_latents(distilled.folder), expected) <= TOLERANCE


@pytest.mark.parametrize(("option", "said"), [("--steps", "was distilled to 4"), ("--shift", "take no shift")])
def test_listed_timesteps_are_taken_as_they_are(distilled: Model, cli: Any, home: Path, option: str, said: str) -> None:
    ended = cli("generate", PROMPT, "--model", str(distilled.folder), "--steps", "4", option, "3")
    assert ended.code == 2 and said in ended.err and "hint: leave" in ended.err
    assert list(home.iterdir()) == []


@pytest.mark.parametrize("known", [True, False], ids=["by name", "by its files"])
def test_what_needs_an_image_is_refused(
    models: dict[str, Model], tmp_path: Path, cli: Any, home: Path, known: bool
) -> None:
    name = "wan2.1-i2v-14b-480p"
    if not known:
        folder = shutil.copytree(models["wan"].folder, tmp_path / "i2v")
        config = json.loads((folder / "transformer" / "config.json").read_text())
        (folder / "transformer" / "config.json").write_text(json.dumps({**config, "in_channels": 12}))
        name = str(folder)
    for more in ((), ("--dry-run",)):
        ended = cli("generate", PROMPT, "--model", name, *more)
        assert ended.code == 2 and "makes videos from an image, not from a prompt alone" in ended.err
        assert "wan2.1-t2v-1.3b" in ended.err and "wan2.2-i2v-a14b" not in ended.err
    assert list(home.iterdir()) == []


def test_of_networks_that_take_turns_the_larger_counts(models: dict[str, Model], tmp_path: Path) -> None:
    folder = shutil.copytree(models["wan a14b"].folder, tmp_path / "larger")
    cpu = Machine(torch.device("cpu"), torch.float32, torch.bfloat16, torch.float32)
    before = weigh(folder, cpu)
    assert before["transformer"] == 2 * sum(
        weight.numel() for weight in models["wan a14b"].pipeline.transformer.parameters()
    )
    for part, size in {"transformer_2": 2_000_000, "image_encoder": 3_000_000}.items():
        shutil.rmtree(folder / part, ignore_errors=True)
        (folder / part).mkdir()
        save_file({"x": torch.zeros(size)}, folder / part / "model.safetensors")
    assert weigh(folder, cpu) == {**before, "transformer": 4_000_000, "image_encoder": 12_000_000}
    halves = Machine(torch.device("cpu"), torch.bfloat16, torch.bfloat16, torch.float32)
    assert weigh(folder, halves)["image_encoder"] == 12_000_000  # it computes in the type of the VAE


def test_every_known_checkpoint_has_a_schedule_and_a_solver() -> None:
    for checkpoint in catalog().values():
        defaults = checkpoint.defaults
        shift = defaults.shift_for(defaults.width, defaults.height)
        schedule = make_schedule(defaults.schedule, defaults.num_steps, shift, 4096, defaults.timesteps)
        assert len(schedule) == defaults.num_steps + 1
        assert make_solver(defaults.solver, schedule)


def test_the_shift_is_that_of_the_size_which_is_rendered() -> None:
    def shift(size: str) -> float:
        return resolve(PROMPT, model="wan2.1-t2v-14b", size=size, listen=lambda event: None).shift

    assert [shift(size) for size in ("832x480", "1280x720", "1920x1080", "320x180")] == [3.0, 5.0, 5.0, 5.0]


def test_a_small_network_beside_the_transformer_is_weighed_by_itself(tmp_path: Path) -> None:
    pocket, cpu = checkpoint_folder(find("pocket")), Machine(torch.device("cpu"), *[torch.float32] * 3)
    alone = tmp_path / "alone"
    shutil.copytree(pocket, alone, ignore=shutil.ignore_patterns("refiner"))
    refiner = sum(math.prod(t.shape) for t in load_file(next((pocket / "refiner").glob("*.safetensors"))).values())
    assert weigh(pocket, cpu) == {**weigh(alone, cpu), "refiner": 4 * refiner}
    plan = make_plan(resolve(PROMPT, model="pocket", listen=lambda event: None), find("pocket"), "cpu")
    without = replace(plan, weight_bytes={**plan.weight_bytes, "refiner": 0})
    assert plan.peak_bytes["denoise"] - without.peak_bytes["denoise"] == plan.weight_bytes["refiner"] > 0
