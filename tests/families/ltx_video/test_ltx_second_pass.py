"""Two passes with the latent upsampler between them, as the reference's two pipelines make them of the same seed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import torch
from ltx_folder import components, saved, second_scheduler
from ltx_reference import VAE_095, randomise, relative_error
from PIL import Image
from torch import Tensor

from soragen.catalog import find
from soragen.pipeline import edits, run, second_pass
from soragen.pipeline.clips import read_clips
from soragen.pipeline.clock import Clock
from soragen.pipeline.conditions import Conditions
from soragen.pipeline.contexts import Contexts
from soragen.pipeline.events import Event, Stage
from soragen.pipeline.plan import Plan, make_plan
from soragen.request import Request
from soragen.size import VideoSize
from soragen.video.facts import video_facts
from soragen.video.recipe import read_recipe
from soragen.video.write import write_video

diffusers = pytest.importorskip("diffusers")

PROMPT, NEGATIVE, SEED, BOUND = "a red ball bounces on green grass at sunset", "a grey ball", 5, 1e-5
FIRST_PASS, SECOND_PASS = [1000.0, 909.0, 725.0, 0.03], [909.0, 725.0, 421.0]
OWN: dict[str, Any] = {
    "native": {"width": 64, "height": 64, "num_frames": 9, "min_area": 0.4, "max_area": 2.0, "max_num_frames": 81},
    "defaults": {
        "schedule": "listed", "timesteps": FIRST_PASS, "num_steps": 4, "second_pass": SECOND_PASS, "solver": "euler",
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Any, Any, Path]]:
    """Both of their pipelines, and the folder of a checkpoint with latent_upsampler/."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SORAGEN_CACHE", str(tmp_path_factory.mktemp("cache")))
        folder = tmp_path_factory.mktemp("ltx")
        pipeline, _ = saved(diffusers.LTXConditionPipeline(**components(VAE_095, second_scheduler())), folder)
        from diffusers.pipelines.ltx.modeling_latent_upsampler import LTXLatentUpsamplerModel

        network = LTXLatentUpsamplerModel(in_channels=16, mid_channels=32, num_blocks_per_stage=1).eval()
        randomise(network)
        network.save_pretrained(folder / "latent_upsampler")
        (folder / "soragen.json").write_text(json.dumps(OWN))
        yield pipeline, diffusers.LTXLatentUpsamplePipeline(vae=pipeline.vae, latent_upsampler=network), folder


def ask(folder: Path, width: int = 144, height: int = 96, num_frames: int = 17, **more: Any) -> Request:
    size, guidance = VideoSize(width, height, num_frames, Fraction(24)), 3.0
    request = Request(PROMPT, NEGATIVE, size, SEED, 4, guidance, guidance, 1.0, "euler", str(folder))
    return replace(request, **more)


def plan_of(request: Request) -> Plan:
    return make_plan(request, find(request.checkpoint), "cpu")


NOTHING = (Conditions(None), None)


def made(plan: Plan, given: tuple[Conditions, Tensor | None] = NOTHING) -> Tensor:
    context, negative = run.encode_prompts(plan, True, lambda event: None)
    return run.denoise_all(plan, context, negative, given, Clock(lambda event: None))


GIVEN_NOISE = torch.Generator()


def theirs(pipeline: Any, **asked: Any) -> Tensor:
    GIVEN_NOISE.manual_seed(0)
    found: Tensor = pipeline(
        prompt=PROMPT, negative_prompt=NEGATIVE, num_frames=17, frame_rate=24, guidance_scale=3.0, output_type="latent",
        generator=torch.Generator().manual_seed(SEED), **asked,
    ).frames  # fmt: skip
    return found


def test_final_latents_are_those_of_the_reference(checkpoint: tuple[Any, Any, Path]) -> None:
    pipeline, upsample, folder = checkpoint
    small = theirs(pipeline, width=96, height=64, timesteps=FIRST_PASS)
    upsampled = upsample(latents=small, height=64, width=96, adain_factor=1.0, output_type="latent").frames
    expected = theirs(
        pipeline, width=192, height=128, latents=upsampled, timesteps=[1000, *SECOND_PASS, 0], denoise_strength=0.999
    )
    plan = plan_of(ask(folder))
    found = made(plan)
    assert found.shape == plan.latent_shape == (1, 16, 3, 4, 6)
    assert relative_error(found, expected) <= BOUND
    assert relative_error(upsampled, expected) > 0.1  # the second pass does something


@pytest.fixture
def reference_draws_as_we_do(monkeypatch: pytest.MonkeyPatch) -> None:
    """Given frames are taken as their mean, where it would draw; noise on them comes from a generator like ours."""
    module = __import__("diffusers.pipelines.ltx.pipeline_ltx_condition", fromlist=["LTXConditionPipeline"])
    monkeypatch.setattr(module, "retrieve_latents", lambda encoded, *args, **kwargs: encoded.latent_dist.mode())
    add = module.LTXConditionPipeline.add_noise_to_image_conditioning_latents
    draw = staticmethod(lambda *asked: add(*asked[:-1], GIVEN_NOISE))
    monkeypatch.setattr(module.LTXConditionPipeline, "add_noise_to_image_conditioning_latents", draw)


@pytest.fixture
def edit(checkpoint: tuple[Any, Any, Path], tmp_path: Path) -> Any:
    """edit("animate") and so on: 144x96, on a checkpoint that was trained with given frames."""
    folder = shutil.copytree(checkpoint[2], tmp_path / "able")
    (folder / "soragen.json").write_text(json.dumps({**OWN, "like": "ltx-video-0.9.5"}))
    pixels = torch.randint(0, 256, (9, 96, 144, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(2))
    clip, pictures = tmp_path / "clip.mkv", [tmp_path / f"{number}.png" for number in (0, 1)]
    write_video(clip, [pixels], VideoSize(144, 96, 9, Fraction(24)), recipe=None, lossless=True)
    for path, frame in zip(pictures, pixels, strict=False):
        Image.fromarray(frame.numpy()).save(path)
    asked: dict[str, Any] = {
        "model": str(folder), "negative": NEGATIVE, "seed": SEED, "steps": 4, "guidance": 3.0,
        "listen": lambda event: None,
    }  # fmt: skip

    def ask_for(verb: str) -> Request:
        match verb:
            case "animate":
                sized = {"size": "144x96", "frames": 17, "fps": "24"}
                return edits.animate(pictures[0], PROMPT, last=pictures[1], **sized, **asked)
            case "loop":
                return edits.loop(PROMPT, None, size="144x96", frames=16, fps="24", **asked)
            case "backward":
                return edits.extend(clip, PROMPT, frames=8, backward=True, **asked)
            case "connect":
                return edits.connect(clip, clip, PROMPT, frames=8, **asked)
            case "restyle":
                return edits.restyle(clip, PROMPT, **asked)
        return edits.extend(clip, PROMPT, frames=8, **asked)

    return ask_for


@pytest.mark.usefixtures("reference_draws_as_we_do")
@pytest.mark.parametrize("verb", ["animate", "extend"])
def test_given_frames_are_known_to_both_passes(verb: str, edit: Any, checkpoint: tuple[Any, Any, Path]) -> None:
    pipeline, upsample, _ = checkpoint
    from diffusers.pipelines.ltx.pipeline_ltx_condition import LTXVideoCondition

    def given(part: Plan) -> list[Any]:
        clips = [(clip.start, (clip.frames * 255).round().byte().numpy()) for clip in read_clips(part)]
        return [LTXVideoCondition(video=list(map(Image.fromarray, frames)), frame_index=at) for at, frames in clips]

    plan = plan_of(edit(verb))
    assert plan.first is not None and plan.timeline.num_frames == 17
    small = theirs(pipeline, width=96, height=64, timesteps=FIRST_PASS, conditions=given(plan.first))
    upsampled = upsample(latents=small, height=64, width=96, adain_factor=1.0, output_type="latent").frames
    expected = theirs(
        pipeline, width=192, height=128, latents=upsampled, timesteps=[1000, *SECOND_PASS, 0], denoise_strength=0.999,
        conditions=given(plan),
    )  # fmt: skip
    conditions, source = run.encode_given(plan, Clock(lambda event: None))
    found, known = made(plan, (conditions, source)), conditions.known
    assert found.shape == plan.latent_shape == (1, 16, 3, 4, 6) and known is not None
    assert relative_error(found, expected) <= BOUND
    free = known.mask.bool()
    assert torch.equal(found[:, :, ~free], known.latents[:, :, ~free])  # those of the second pass, not upsampled ones
    assert relative_error(upsampled[:, :, ~free], known.latents[:, :, ~free]) > 0.1


@pytest.mark.parametrize("verb", ["backward", "connect"])
def test_every_verb_is_given_its_frames_twice(verb: str, edit: Any, tmp_path: Path) -> None:
    plan = plan_of(edit(verb))
    given = run.encode_given(plan, Clock(lambda event: None))
    assert plan.first is not None and given[0].first is not None
    for part, conditions in ((plan.first, given[0].first), (plan, given[0])):
        latents = [known.latents for known in (conditions.known, *conditions.keyframes) if known is not None]
        assert latents and all(each.shape[3:] == part.latent_shape[3:] for each in latents)
    found, contexts = made(plan, given), Contexts(tmp_path)
    assert found.shape == plan.latent_shape and bool(torch.isfinite(found).all())
    contexts.write_given("job", *given)
    assert torch.equal(found, made(plan, contexts.read_given("job", torch.device("cpu"))))  # as in a batch


def test_a_loop_closes_in_the_second_pass(edit: Any) -> None:
    plan = plan_of(edit("loop"))
    assert plan.first is not None and plan.timeline.num_cyclic == 1 and len(plan.windows) == 2
    found = made(plan)
    assert torch.equal(found[:, :, -1], found[:, :, 1]) and not torch.equal(found[:, :, 2], found[:, :, 1])


def test_the_plan_and_the_recipe_say_it(checkpoint: tuple[Any, Any, Path]) -> None:
    plan = plan_of(ask(checkpoint[2], 160, 90))
    assert plan.first is not None and plan.passes == (plan.first, plan)
    assert (plan.first.rendered.width, plan.first.rendered.height) == (107, 60)
    assert (plan.first.grid.width, plan.first.grid.height) == (128, 64)  # multiples of 32 hold it: it is cropped
    assert (plan.rendered.width, plan.rendered.height, plan.scale_from) == (214, 120, (214, 120))
    notes = "\n".join(plan.notes())
    assert "rendered at 107x60 first" in notes and "upsampled to 214x120" in notes and "3 steps more" in notes
    assert "reduced to 160x90" in notes
    said = {"from": {"width": 107, "height": 60}, "timesteps": SECOND_PASS}
    assert run.make_recipe(plan)["second_pass"] == plan.to_dict()["second_pass"] == said
    each = [part.work.transformer_flops * part.num_steps for part in plan.passes]
    assert plan.flops == 2 * sum(each) and plan.num_steps == 3 and plan.first.num_steps == 4


def test_memory_counts_what_is_larger(checkpoint: tuple[Any, Any, Path]) -> None:
    plan = plan_of(ask(checkpoint[2]))
    weights = sum(path.stat().st_size for path in (checkpoint[2] / "latent_upsampler").glob("*.safetensors"))
    wide = 4 * 32 * 3 * 4 * 6  # one tensor inside of it
    assert weights < plan.upsampler_bytes < weights + 8 * wide
    more = replace(plan, upsampler_bytes=plan.work.transformer_bytes + 10**9)
    assert more.peak_bytes["denoise"] == plan.peak_bytes["denoise"] + more.upsampler_bytes - max(
        plan.work.transformer_bytes, plan.upsampler_bytes
    )


def test_one_pass_where_two_are_of_no_use(checkpoint: tuple[Any, Any, Path], edit: Any, tmp_path: Path) -> None:
    folder = checkpoint[2]
    assert plan_of(ask(folder, 96, 64)).first is None, "a size that it was trained on"
    assert plan_of(ask(folder, 32, 32)).first is None, "one that is enlarged, but small"
    assert plan_of(ask(folder, direct=True)).first is None, "asked to render at once"
    assert plan_of(edit("restyle")).first is None, "its own strength says where it begins"
    bare = shutil.copytree(folder, tmp_path / "bare", ignore=shutil.ignore_patterns("latent_upsampler"))
    plan = plan_of(ask(bare))
    assert plan.first is None and plan.upsampler_bytes == 0 and plan.to_dict()["second_pass"] is None
    assert "second_pass" not in run.make_recipe(plan) and "first" not in "\n".join(plan.notes())
    (folder / "soragen.json").write_text(json.dumps({**OWN, "defaults": {**OWN["defaults"], "second_pass": []}}))
    try:
        assert plan_of(ask(folder)).first is None, "no steps are known for it"
    finally:
        (folder / "soragen.json").write_text(json.dumps(OWN))


def test_far_too_large_begins_at_the_trained_area(checkpoint: tuple[Any, Any, Path]) -> None:
    plan = plan_of(ask(checkpoint[2], 640, 640))
    assert plan.first is not None
    assert (plan.first.rendered.width, plan.rendered.width) == (64, 128)
    assert "enlarged to 640x640" in "\n".join(plan.notes())


def test_from_a_sentence_to_a_file(checkpoint: tuple[Any, Any, Path], tmp_path: Path) -> None:
    events: list[Event] = []
    result = run.generate(ask(checkpoint[2], 160, 90, 9), tmp_path / "a.mp4", device="cpu", listen=events.append)
    facts, recipe = video_facts(result.path), read_recipe(result.path)
    assert (facts.width, facts.height, facts.num_frames) == (160, 90, 9)
    assert recipe is not None and recipe["second_pass"]["timesteps"] == SECOND_PASS
    stages = [event.detail for event in events if isinstance(event, Stage) and event.name == "denoise"]
    assert stages == ["4 steps, 16 tokens", "upsampling the latents", "3 steps, 64 tokens"]


def test_a_long_one_is_upsampled_window_by_window(checkpoint: tuple[Any, Any, Path], tmp_path: Path) -> None:
    """The frames that windows share come from the one before, in the second pass, too."""
    folder = shutil.copytree(checkpoint[2], tmp_path / "short")
    own = {**OWN, "like": "ltx-video-0.9.5", "native": {**OWN["native"], "max_num_frames": 17}}
    (folder / "soragen.json").write_text(json.dumps(own))
    long, short = plan_of(ask(folder, num_frames=33)), plan_of(ask(folder))
    assert len(long.windows) > 1 and len(short.windows) == 1
    found = made(long)
    assert found.shape == long.latent_shape and bool(torch.isfinite(found).all())
    small = torch.randn(1, 16, 5, 2, 3, generator=torch.Generator().manual_seed(1))
    window, last = long.windows[0], long.windows[-1]
    larger = second_pass.upsample(long, small)
    assert (window.start, window.stop) == (0, 3)
    assert torch.equal(larger[:, :, :3], second_pass.upsample(short, small[:, :, :3]))
    alone = second_pass.upsample(short, small[:, :, last.frames])
    assert torch.equal(larger[:, :, last.new], alone[:, :, last.new_in_window])


def test_single_files_tell_the_upsampler(checkpoint: tuple[Any, Any, Path]) -> None:
    from soragen.families.ltx_video.keys import upsampler_config

    network = checkpoint[1].latent_upsampler
    shapes = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    config = upsampler_config(shapes)
    assert config is not None and {key: config[key] for key in config if key[0] != "_"} == {
        "in_channels": 16, "mid_channels": 32, "num_blocks_per_stage": 1,
    }  # fmt: skip
    shapes["upsampler.0.weight"] = (64, 32, 3, 3, 3)
    assert upsampler_config(shapes) is None, "that is the one for time"
