"""The whole recipe at the smallest size: every stage runs, resumes, and what it exports makes a video."""

import importlib
import math
import os
import random
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from soragen.families.pocket import FAMILY
from soragen.families.pocket.refiner import PocketRefiner, RefinerConfig
from soragen.pipeline.resolve import resolve
from soragen.pipeline.run import generate
from soragen.video.facts import video_facts
from training import clips, export, latents, refiner, resample, restore, text, transformer, vae
from training.pool import Pool, draw_known
from training.world.captions import caption
from training.world.motion import place, subject_pose
from training.world.render import render
from training.world.scene import ATTRIBUTES, SUBJECTS, is_held_out, sample_scene
from training.world.subjects import subject as build

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run in which every stage has been through once."""
    run = tmp_path_factory.mktemp("run")
    threads = torch.get_num_threads()
    try:
        clips.main([str(run), "--area", "96", "--clips", "8", "--images", "1"])
        clips.main([str(run), "--area", "96", "--clips", "1", "--held-out"])
        text.main([str(run), "--steps", "3", "--batch", "4", "--captions", "300"])
        vae.main([str(run), "--minutes", "0.02", "--batch", "1", "--crop", "32", "--frames", "5"])
        latents.main([str(run)])
        transformer.main([str(run), "--minutes", "0.02", "--width", "64", "--layers", "1", "--tokens", "64"])
        refiner.main([str(run), "--minutes", "0.02", "--tokens", "64"])
        export.main([str(run), str(run / "checkpoint")])
    finally:
        torch.set_num_threads(threads)
    return run


def test_what_is_exported_makes_a_video(run: Path, tmp_path: Path) -> None:
    request = resolve(
        "a red ball", listen=lambda _: None, model=str(run / "checkpoint"), size="96x96", frames=5, steps=2, seed=1
    )
    result = generate(request, tmp_path / "video.mp4", listen=lambda _: None)
    facts = video_facts(result.path)
    assert (facts.width, facts.height, facts.num_frames) == (96, 96, 5)
    assert FAMILY.load_transformer(run / "checkpoint", torch.device("cpu"), torch.float32).refiner is not None


def test_every_stage_goes_on_where_it_was(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shards = {path: path.stat().st_mtime_ns for path in (run / "pixels").iterdir()}
    clips.main([str(run), "--area", "96", "--clips", "8", "--images", "1"])
    assert {path: path.stat().st_mtime_ns for path in (run / "pixels").iterdir()} == shards

    text.main([str(run), "--steps", "4", "--batch", "4", "--captions", "300"])
    assert torch.load(run / "text" / "state.pt", weights_only=True)["step"] == 4

    before = torch.load(run / "transformer" / "state.pt", weights_only=True)
    minutes = before["seconds"] / 60 + 0.01
    transformer.main([str(run), "--minutes", str(minutes), "--width", "64", "--layers", "1", "--tokens", "64"])
    after = torch.load(run / "transformer" / "state.pt", weights_only=True)
    assert after["step"] > before["step"] and after["seen"] > before["seen"]

    before = torch.load(run / "refiner" / "state.pt", weights_only=True)
    refiner.main([str(run), "--minutes", str(before["seconds"] / 60 + 0.02), "--tokens", "64"])
    assert torch.load(run / "refiner" / "state.pt", weights_only=True)["step"] > before["step"]
    assert "told {'detail': " in capsys.readouterr().out

    before = torch.load(run / "vae" / "state.pt", weights_only=True)
    minutes = str(before["seconds"] / 60 + 0.02)
    vae.main([str(run), "--minutes", minutes, "--batch", "1", "--crop", "32", "--frames", "5"])
    after = torch.load(run / "vae" / "state.pt", weights_only=True)
    assert after["step"] > before["step"]
    for name in vae.CODEC:  # latents that were made stay valid
        assert torch.equal(after["vae"][name], before["vae"][name])


def test_the_decoder_can_learn_from_what_the_transformer_leaves(run: Path) -> None:
    resample.main([str(run), "--model", str(run / "checkpoint"), "--clips", "4"])
    (made,) = (load_file(path) for path in (run / "sampled").iterdir())
    count, channels, *_ = made["latents"].shape
    assert made["frames"].shape[:2] == (count, clips.CLIP_FRAMES) and made["latents"].shape[2] == 7
    pick = vae.draw(random.Random(0), {}, next((run / "sampled").iterdir()), crop=32, num_frames=5)
    assert pick.latents is not None and pick.latents.shape == (channels, 2, 4, 4)
    assert pick.frames.shape == (5, 32, 32, 3) and pick.mask.shape == (5, 32, 32)

    before = torch.load(run / "vae" / "state.pt", weights_only=True)
    minutes = str(before["seconds"] / 60 + 0.02)
    vae.main([str(run), "--minutes", minutes, "--batch", "2", "--crop", "32", "--frames", "5",
              "--sampled", "1"])  # fmt: skip
    after = torch.load(run / "vae" / "state.pt", weights_only=True)
    assert after["step"] > before["step"]
    assert not torch.equal(after["vae"]["decoder_out.weight"], before["vae"]["decoder_out.weight"])

    sampled = refiner.Sampled(run, vae.load_vae(run), num_coarse=16)
    true, mask, coarse = sampled.draw(random.Random(0), tokens=64)
    assert true.shape[:3] == (1, channels, 7) and coarse.shape[1] == 16 and mask.shape == true[:, 0].shape
    off = (coarse - true[:, :16]).abs().mean() / true[:, :16].abs().mean()
    assert 0.01 < off < 2  # the same clip, not the same latents
    before = torch.load(run / "refiner" / "state.pt", weights_only=True)
    minutes = str(before["seconds"] / 60 + 0.02)
    refiner.main([str(run), "--minutes", minutes, "--tokens", "64", "--sampled", "1"])
    assert torch.load(run / "refiner" / "state.pt", weights_only=True)["step"] > before["step"]


def test_given_frames_stay_as_they_are_where_the_others_were_made() -> None:
    network = PocketRefiner(RefinerConfig(3, 2, width=8, num_blocks=1))
    looked: list[torch.Tensor] = []
    look = network.look
    network.look = lambda latents, *rest: looked.append(latents) or look(latents, *rest)  # type: ignore[func-returns-value, method-assign]
    latents, coarse = torch.randn(1, 3, 3, 4, 4), torch.randn(1, 2, 3, 4, 4)
    refiner.tell(network, latents, torch.tensor([[0.0, 1.0, 1.0]]), coarse)
    assert torch.equal(looked[0][:, :, 0], latents[:, :, 0])
    torch.testing.assert_close(looked[0][:, :2, 1:], coarse[:, :, 1:])
    assert torch.equal(looked[0][:, 2], latents[:, 2])


def test_a_lost_run_is_made_again_of_what_was_exported(run: Path, tmp_path: Path) -> None:
    restore.main([str(tmp_path), str(run / "checkpoint")])
    for source, part, name in (entry for entry in export.PARTS if entry[0] != "upscaler"):  # of which there is none
        exported = load_file(run / "checkpoint" / part / name)
        restored = load_file(tmp_path / source / "model.safetensors")
        assert restored.keys() == exported.keys()
        assert all(torch.equal(restored[key], tensor.float()) for key, tensor in exported.items())
    (tmp_path / "latents").symlink_to(run / "latents")
    (tmp_path / "held_out_latents").symlink_to(run / "held_out_latents")
    transformer.main([str(tmp_path), "--minutes", "0.01", "--width", "64", "--layers", "1", "--tokens", "64"])
    trained = torch.load(tmp_path / "transformer" / "state.pt", weights_only=True)["network"]["patch_in.weight"]
    began = load_file(run / "checkpoint" / "transformer" / export.PARTS[1][2])["patch_in.weight"].float()
    assert (trained - began).abs().mean() < 0.1 * began.abs().mean()


def test_what_a_training_cost_and_reached_is_plotted(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "docs")
    scaling = importlib.import_module("scaling")
    point = scaling.measure(run, "small")
    assert point.flops > 6 * transformer.TOKENS_PER_STEP * 10_000 and point.samples > 0  # six a weight and token
    assert set(point.losses) == set(scaling.CURVES) and min(point.losses.values()) > 0
    plotted = scaling.plot([point, replace(point, name="more", flops=16 * point.flops)])
    assert plotted.size == (scaling.WIDTH, scaling.HEIGHT)


def in_two_processes(*arguments: str) -> str:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_processes_agree_and_average_their_gradients(tmp_path: Path) -> None:
    (tmp_path / "team.py").write_text(
        "import pathlib, sys, torch\n"
        "from training.transformer import Team\n"
        "team, network = Team(), torch.nn.Linear(1, 1, bias=False)\n"
        "(network.weight * (team.rank + 1)).sum().backward()\n"
        "team.average_gradients(network)\n"
        "said = f'{team.size} {team.agree(5.0 + team.rank)} {network.weight.grad.item()}'\n"
        "pathlib.Path(sys.argv[1], f'{team.rank}.txt').write_text(said)\n"
    )
    in_two_processes(str(tmp_path / "team.py"), str(tmp_path))  # a file each: two processes' lines may mix
    assert [(tmp_path / f"{rank}.txt").read_text() for rank in (0, 1)] == ["2 5.0 1.5"] * 2


def test_processes_share_out_what_muon_turns(tmp_path: Path) -> None:
    (tmp_path / "turn.py").write_text(
        "import pathlib, sys, torch\n"
        "from training.muon import orthogonalise, orthogonalise_together\n"
        "from training.transformer import Team\n"
        "team, how = Team(), ((3.4445, -4.7750, 2.0315), 5)\n"
        "sets = [torch.randn(n, 6, 9, generator=torch.Generator().manual_seed(n)) for n in (1, 2, 5)]\n"
        "pairs = ((orthogonalise_together(each, *how), orthogonalise(each, *how)) for each in sets)\n"
        "same = [torch.allclose(*pair, atol=1e-5) for pair in pairs]\n"
        "pathlib.Path(sys.argv[1], f'{team.rank}.txt').write_text(f'{team.size} {same}')\n"
    )
    in_two_processes(str(tmp_path / "turn.py"), str(tmp_path))
    assert [(tmp_path / f"{rank}.txt").read_text() for rank in (0, 1)] == ["2 [True, True, True]"] * 2


def test_two_processes_train_together(run: Path, tmp_path: Path) -> None:
    for name in ("latents", "held_out_latents", "text", "vae"):
        (tmp_path / name).symlink_to(run / name)
    small = ["--minutes", "0.02", "--width", "64", "--layers", "1", "--tokens", "64"]
    said = in_two_processes("-m", "training.transformer", str(tmp_path), *small)
    assert said.count("held out") == 1  # the first one alone keeps and tells
    state = torch.load(tmp_path / "transformer" / "state.pt", weights_only=True)
    assert state["step"] > 0 and state["seen"] % 2 == 0


def test_the_linear_codec_is_orthonormal(run: Path) -> None:
    trained = vae.load_vae(run)
    for basis in (trained.static_basis, trained.motion_basis):
        torch.testing.assert_close(basis @ basis.T, torch.eye(len(basis)), rtol=0, atol=1e-4)


@pytest.mark.parametrize("num_frames", [2, 3, 7])
@pytest.mark.parametrize("start", [0, 2])
def test_some_frames_are_given_and_some_are_free(num_frames: int, start: int) -> None:
    rng = random.Random(0)
    drawn = [draw_known(rng, num_frames, start) for _ in range(300)]
    assert all(len(free) == num_frames and any(free) for free in drawn)
    if start:  # a window that continues a clip is always told how it begins
        assert all(free[0] == 0 for free in drawn)
    else:
        assert any(all(free) for free in drawn) and any(free[0] == 0 for free in drawn)
        assert any(free[-1] == 0 and free[0] == 1 for free in drawn)


def test_held_out_combinations_are_never_drawn_for_training() -> None:
    rng = random.Random(0)
    assert not any(is_held_out(sample_scene(rng)) for _ in range(500))
    assert all(is_held_out(sample_scene(rng, held_out=True)) for _ in range(50))


def test_a_mirrored_scene_says_so() -> None:
    rng = random.Random(1)
    scenes = [sample_scene(rng) for _ in range(200)]
    assert any(scene.mirrored() != scene for scene in scenes)
    for scene in scenes:
        swapped = scene.motion.replace("left", "?").replace("right", "left").replace("?", "right")
        assert scene.mirrored().motion == swapped
        assert scene.mirrored().mirrored() == scene


def test_what_turns_or_swings_begins_at_one_place_and_goes_one_way() -> None:
    """A sentence names no phase: two scenes that differ in their random numbers alone move alike."""
    rng, seconds = random.Random(2), torch.tensor([0.0, 0.25, 0.5])
    for name in ("bouncing", "swaying"):
        for _ in range(8):
            scene = replace(sample_scene(rng), subject="cone", motion=name, ground="grass")
            position = subject_pose(scene, seconds, build("cone"), 1.0).position
            moved = position[:, 1 if name == "bouncing" else 0] - position[0, 1 if name == "bouncing" else 0]
            assert 0 < moved[1] < moved[2]
    plain = replace(scene, motion="still", camera="static")
    handed = [replace(plain, motion="spinning"), replace(plain, camera="orbit")]
    handed += [replace(plain, subject=subject) for subject in ("duck", "house")]
    assert not plain.is_handed and all(scene.is_handed for scene in handed)


def test_what_spins_shows_the_same_side_at_the_same_time() -> None:
    rng, seconds = random.Random(3), torch.tensor([0.0, 0.25, 0.5])
    sides = []
    for _ in range(8):
        scene = replace(sample_scene(rng), subject="robot", motion="spinning", camera="static")
        pose, camera = place(scene, seconds, build("robot"), 1.0)
        front = pose.linear[:, :, 2]
        sides.append(torch.atan2((front * camera.right).sum(-1), -(front * camera.forward).sum(-1)))
    turned = torch.tensor([0.0, 0.25, 0.5]) * math.pi  # half a turn a second
    torch.testing.assert_close(torch.stack(sides), turned.expand(8, 3), atol=0.05, rtol=0)


def test_some_scenes_are_drawn_more_often(run: Path) -> None:
    pool = Pool(run / "latents", {("still",): 0.0, ("growing", "static"): 0.0})
    pool.refresh()
    drawn = [s for seed in range(8) for s in pool.draw(random.Random(seed), "images", slice(0, 1), 512)[2]]
    assert drawn and all(scene.motion != "still" for scene in drawn)
    assert not any((scene.motion, scene.camera) == ("growing", "static") for scene in drawn)


def test_what_changes_counts_more_than_what_stays() -> None:
    spread, error = torch.tensor([1.0, 0.5, 0.0625]), torch.randn(2, 3, 1, 4, 4).expand(2, 3, 6, 4, 4)
    changing = torch.randn(2, 3, 6, 4, 4)
    changing = changing - changing.mean(dim=2, keepdim=True)
    plain, emphasis = transformer.MEASURED, transformer.Emphasis(spread=2.0, change=4.0)
    still, moving = (transformer.emphasise(e, spread, emphasis) for e in (error, changing))
    channel = (spread**2 / (spread**2).mean()).view(1, 3, 1, 1, 1)
    torch.testing.assert_close(still, error**2 * channel)
    torch.testing.assert_close(moving, 4 * changing**2 * channel)
    torch.testing.assert_close(
        transformer.emphasise(changing, spread, plain), changing**2 * (spread / spread.mean()).view(1, 3, 1, 1, 1)
    )


def test_what_has_a_side_is_not_drawn_mirrored(run: Path) -> None:
    pool = Pool(run / "latents")
    pool.refresh()
    shards = [path for path in (run / "latents").iterdir() if path.name.startswith("clips")]
    scenes = [scene for path in shards for scene in clips.read_shard(path)[1]]
    assert pool.count("clips") == 2 * len(scenes) - sum(scene.is_handed for scene in scenes)


@pytest.mark.parametrize("subject", SUBJECTS)
def test_every_subject_is_seen_whole_and_in_its_colour(subject: str) -> None:
    """The mask is inside the frame, large enough to recognise, and differs from a scene of another colour."""
    rng = random.Random(SUBJECTS.index(subject))
    scene = next(s for s in iter(lambda: sample_scene(rng), None) if s.subject == subject and s.colour == "red")
    frames, mask = render([scene], width=64, height=64, num_frames=2, fps=1, supersample=1.0)
    assert frames.shape == (1, 2, 64, 64, 3) and mask.shape == (1, 2, 64, 64)
    inside = mask[0] > 127
    assert 0.02 < inside.float().mean() < 0.5
    assert (
        not inside[:, 0].any() and not inside[:, -1].any() and not inside[:, :, 0].any() and not inside[:, :, -1].any()
    )
    red, green, blue = frames[0][inside].float().mean(0)
    assert red > 1.05 * max(green, blue)


def test_captions_name_what_is_there() -> None:
    rng = random.Random(2)
    counts = dict.fromkeys(ATTRIBUTES, 0)
    from training.world.captions import SYNONYMS

    for _ in range(300):
        scene = sample_scene(rng)
        words = caption(scene, rng).lower()
        for name in ("subject", "colour", "ground"):
            counts[name] += any(phrase in words for phrase in SYNONYMS[name][getattr(scene, name)])
    assert counts["subject"] > 270 and counts["colour"] > 240 and counts["ground"] > 200


def test_movement_is_learnt_from_what_stands_before_and_after() -> None:
    """A ramp of brightness that moves on: the network learns from three means which way, and how far."""
    torch.manual_seed(0)
    network = PocketRefiner(RefinerConfig(2, 1, width=16, num_blocks=1))
    network.latent_std.requires_grad_(False)
    optimizer = torch.optim.AdamW(network.parameters(), lr=5e-3)
    for _ in range(200):
        speed = torch.randn(16, 1, 1, 1, 1).expand(-1, -1, 7, 4, 4)
        latents = torch.cat([speed * torch.arange(7).view(1, 1, -1, 1, 1), speed], dim=1)
        noisy = latents[:, :1] + 0.01 * torch.randn(16, 1, 7, 4, 4)
        told, true = refiner.tell(network, latents, torch.ones(16, 7), noisy)
        optimizer.zero_grad()
        loss = (told - true).square().mean()
        loss.backward()
        optimizer.step()
    assert told.shape == true.shape == (16, 1, 7, 4, 4)
    assert float(loss.detach()) < 0.1


def test_what_cannot_be_seen_is_learnt_from_given_frames() -> None:
    """The coarse tells nothing of the fine, which stays; where it was given before, it goes on from there."""
    torch.manual_seed(0)
    network = PocketRefiner(RefinerConfig(2, 1, width=16, num_blocks=1))
    network.latent_std.requires_grad_(False)
    optimizer = torch.optim.AdamW(network.parameters(), lr=5e-3)
    rng = random.Random(0)

    def told(count: int, free: torch.Tensor) -> torch.Tensor:
        """The squared error of each frame [count, T]."""
        fine = torch.randn(count, 1, 1, 1, 1).expand(-1, -1, 7, 4, 4)
        latents = torch.cat([torch.randn(count, 1, 7, 4, 4), fine], dim=1)
        told, true = refiner.tell(network, latents, free)
        return (told - true).square().mean(dim=(1, 3, 4))

    for _ in range(200):
        free = torch.tensor([refiner.draw_free(rng) for _ in range(16)])
        optimizer.zero_grad()
        (told(16, free) * free).mean().backward()
        optimizer.step()
    given_before = torch.ones(400, 7)
    given_before[:, 2] = 0
    with torch.no_grad():
        error = told(400, given_before).mean(dim=0).tolist()
    assert max(error[1], error[3]) < 0.15
    assert min(error[0], *error[4:]) > 0.7
