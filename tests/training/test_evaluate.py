"""The lists of prompts are sound, clips made side by side are those made alone, and the scores count what they say."""

import json
import random
from fractions import Fraction
from pathlib import Path

import pytest
import torch

from soragen.diffusion.grid import Compression, lay_grid
from soragen.diffusion.schedule import NoiseLevel
from soragen.families.pocket.transformer import PocketTransformer, TransformerConfig
from soragen.families.pocket.vae import GROUP, PATCH, PocketVae, VaeConfig
from soragen.models.family import Context
from soragen.size import VideoSize
from training import clips, evaluate, probe, prompts, sample, vae, views
from training.world.captions import SYNONYMS, caption, describe
from training.world.render import render
from training.world.scene import ATTRIBUTES, SUBJECTS, is_held_out, sample_scene

FREEFORM = prompts.HELD_OUT.with_name("freeform.jsonl")


def test_held_out_prompts_are_many_balanced_and_never_seen_in_training() -> None:
    listed = prompts.read_prompts(prompts.HELD_OUT)
    assert len(listed) >= 300 and len({prompt.caption for prompt in listed}) == len(listed)
    for name, values in ATTRIBUTES.items():
        counts = [sum(prompt.attributes[name] == value for prompt in listed) for value in values]
        assert min(counts) > 0.7 * len(listed) / len(values), name
    for prompt in listed:
        if all(prompt.attributes[name] for name in ("subject", "colour", "ground", "time")):
            assert is_held_out(prompt.scene(random.Random(0)))


def test_free_prompts_are_many_and_use_other_words() -> None:
    listed = prompts.read_prompts(FREEFORM)
    assert len(listed) >= 60
    assert {prompt.attributes["subject"] for prompt in listed} == set(SUBJECTS)
    moving = [prompt for prompt in listed if prompt.attributes["motion"]]
    in_grammar = [p for p in moving if any(w in p.caption for w in SYNONYMS["motion"][str(p.attributes["motion"])])]
    assert len(in_grammar) < 0.6 * len(moving)


def test_a_list_with_an_unknown_value_is_refused(tmp_path: Path) -> None:
    attributes = dict.fromkeys(ATTRIBUTES) | {"subject": "dragon"}
    (tmp_path / "list.jsonl").write_text(json.dumps({"caption": "a dragon", "attributes": attributes}))
    with pytest.raises(ValueError, match=r"list\.jsonl:1"):
        prompts.read_prompts(tmp_path / "list.jsonl")


def test_a_caption_names_what_it_is_told_to() -> None:
    rng = random.Random(5)
    for _ in range(200):
        scene = sample_scene(rng)
        words = describe(scene, rng, dict.fromkeys(ATTRIBUTES, False)).lower()
        assert not any(phrase in words for phrase in SYNONYMS["camera"][scene.camera])
    assert caption(scene, random.Random(3)) == caption(scene, random.Random(3))


def test_clips_made_side_by_side_are_those_made_alone() -> None:
    torch.manual_seed(0)
    config = TransformerConfig(latent_channels=8, width=64, num_layers=2, num_heads=2, mlp_width=64, text_width=16)
    network = PocketTransformer(config).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.normal_(std=0.1)
        network.latent_std.fill_(1.0)
    grid = lay_grid(VideoSize(32, 48, 9, Fraction(12)), Compression((GROUP, PATCH, PATCH), (1, 2, 2)))
    contexts = [Context(torch.randn(n, 16), torch.ones(n, dtype=torch.bool)) for n in (3, 7)]
    noise, level, mask = torch.randn(2, 8, *grid.latent_shape), NoiseLevel(0.3, 0.7, 700.0), torch.tensor([0.0, 1, 1])
    with torch.inference_mode():
        together = sample.bind_all(network, contexts, grid)(noise, level, mask)
        alone = [network.bind(c, grid)(noise[i : i + 1], level, mask) for i, c in enumerate(contexts)]
    torch.testing.assert_close(together, torch.cat(alone), rtol=1e-4, atol=1e-5)
    assert (together[0] - together[1]).abs().max() > 0.1


def test_scores_count_only_what_was_asked_for() -> None:
    asked = torch.tensor([[0, 1, -1, 2, 3, -1], [1, 2, 3, 4, 0, -1]])
    seen = torch.tensor([[0, 1, 7, 2, 3, 5], [1, 0, 3, 4, 0, 5]])
    assert evaluate.score(seen, asked) == {
        "subject": 1.0, "colour": 0.5, "motion": 1.0, "ground": 1.0, "time": 1.0, "all": 0.5,
    }  # fmt: skip
    wrong = evaluate.score_mismatched(seen, asked)
    assert wrong["subject"] == 0 and wrong["all"] == 0
    table = evaluate.to_markdown({"generated": {"subject": 0.5}, "goal": evaluate.GOALS})
    assert table.splitlines()[2].startswith("| generated | 0.500 |  |") and "0.850" in table.splitlines()[3]


def test_every_value_has_a_share_of_its_own() -> None:
    asked = torch.tensor([[0, 0, 1, 0, 0, -1], [0, 0, 1, 0, 0, -1], [0, 0, 2, 0, 0, -1]])
    seen = torch.tensor([[0, 0, 1, 0, 0, 3], [0, 0, 0, 0, 0, 3], [0, 0, 1, 0, 0, 3]])
    lines = evaluate.score_values(seen, asked)
    assert lines["motion"] == "bouncing 0.50, spinning 0.00" and lines["camera"] == ""


def test_the_probe_learns_goes_on_and_scores_a_model(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """From renders to a table, at the smallest size; clips that continue renders get their frames back."""
    threads = torch.get_num_threads()
    monkeypatch.setitem(clips.SIZES, 96, ((32, 32, 1),))
    monkeypatch.setattr(probe, "CLIPS_PER_STEP", 2)
    monkeypatch.setattr(probe, "IMAGES_PER_STEP", 2)
    monkeypatch.setattr(views, "EXTRA", 1)
    try:
        clips.main([str(tmp_path), "--area", "96", "--clips", "8", "--images", "1"])
        clips.main([str(tmp_path), "--area", "96", "--clips", "1", "--held-out"])
        vae.save(PocketVae(VaeConfig()), tmp_path / "vae")
        probe.main([str(tmp_path), "--minutes", "0.01", "--extra", "1"])
        steps = torch.load(tmp_path / "probe" / "state.pt", weights_only=True)["step"]
        probe.main([str(tmp_path), "--minutes", "0.02", "--extra", "1"])
        assert torch.load(tmp_path / "probe" / "state.pt", weights_only=True)["step"] > steps
        for way, row in (("--steps=1", "| generated |"), ("--continue", "| continued |")):
            capsys.readouterr()
            evaluate.main([str(tmp_path), "--count", "2", "--steps", "1", way])
            assert row in capsys.readouterr().out
    finally:
        torch.set_num_threads(threads)
    reports = [json.loads(path.read_text()) for path in (tmp_path / "scores").glob("*.json")]
    assert len(reports) == 2 and all(report["table"]["mismatched"] and len(report["clips"]) == 2 for report in reports)
    assert min(decibels for report in reports for decibels in report["decibels"]) == sample.UNCHANGED


def test_the_probe_that_is_kept_knows_renders(tmp_path: Path) -> None:
    """Where a run has none of its own; on scenes of combinations that no training has."""
    rng = random.Random(1)
    scenes = [sample_scene(rng, held_out=True) for _ in range(16)]
    size = {"width": 96, "height": 96, "num_frames": views.FRAMES, "fps": clips.FPS / views.STRIDE}
    frames = torch.cat([render([scene], **size)[0] for scene in scenes])
    found = probe.answers(probe.load_probe(tmp_path), views.shrink(frames))
    truth = torch.tensor([list(scene.indices().values()) for scene in scenes])
    assert float((found == truth).float().mean()) > 0.93
