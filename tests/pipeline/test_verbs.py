"""The verbs on files: which frames stand in the result, and what the model is given."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import torch
from footage import film, moving, picture, read, sounding, uneven
from torch import Tensor

from soragen.catalog import find
from soragen.diffusion.schedule import NoiseLevel
from soragen.errors import InputError
from soragen.families.pocket.transformer import PocketTransformer
from soragen.families.pocket.vae import PocketVae
from soragen.pipeline import edits, run
from soragen.pipeline.clock import Clock
from soragen.pipeline.events import Event, Note
from soragen.pipeline.frames import audio_of
from soragen.pipeline.latents import load_latents
from soragen.pipeline.plan import make_plan
from soragen.request import Edit, Request
from soragen.video.audio import Audio
from soragen.video.facts import video_facts
from soragen.video.motion import differences
from soragen.video.recipe import read_recipe
from soragen.video.write import to_uint8

Make = Callable[..., run.Result]


@pytest.fixture
def edit(tiny: Path) -> Callable[..., Request]:
    """edit("extend", path, frames=5): on the tiny checkpoint, one step, as for a lossless file."""

    def ask(verb: str, *arguments: Any, **options: Any) -> Request:
        said = {"model": str(tiny), "steps": 1, "seed": 1, "listen": lambda event: None, **options}
        if verb != "animate":
            said = {"odd_sides": True, **said}
        arguments = (*arguments, "a ball") if verb != "loop" else (*arguments, None)
        return getattr(edits, verb)(*arguments, **said)  # type: ignore[no-any-return]

    return ask


def latents_of(request: Request) -> tuple[Tensor, Any]:
    """(the latents, what was given) of a request; nothing is decoded."""
    plan = make_plan(request, find(request.checkpoint), "cpu")
    clock = Clock(lambda event: None)
    context = run.encode_prompts(plan, False, clock.listen)
    given = run.encode_given(plan, clock)
    return run.denoise_all(plan, *context, given, clock), given[0]


def test_extending_leaves_the_source_as_it_is(edit: Any, make: Make) -> None:
    source = film("a.mkv", 11)
    result = make(edit("extend", source, frames=6), "b.mkv", lossless=True)
    frames = read(result.path)
    assert len(frames) == 17 and torch.equal(frames[:11], read(source))
    assert all(step > 0 for step in differences([frames]))  # no frame comes twice
    back = read(make(edit("extend", source, frames=6, backward=True), "c.mkv", lossless=True).path)
    assert len(back) == 17 and torch.equal(back[6:], read(source))
    assert not torch.equal(back[:6], frames[11:])


def test_in_mp4_all_frames_are_there_in_order(edit: Any, make: Make) -> None:
    film("a.mkv", 7)
    for name, backward in (("b.mp4", False), ("c.mp4", True)):
        frames = read(make(edit("extend", Path("a.mkv"), frames=3, backward=backward), name).path)
        facts = video_facts(Path(name))
        assert (facts.num_frames, facts.fps, facts.codec) == (10, 12, "h264")
        for n, frame in enumerate(read("a.mkv")):
            apart = (frames.short() - frame.short()).abs().float().mean((1, 2, 3))
            assert int(apart.argmin()) == n + 3 * backward and float(apart.min()) < 4


def test_sound_stays_with_its_pictures(edit: Any, make: Make) -> None:
    source, path = sounding("a.mp4"), Path("a.mp4")
    for options, start in (({}, Fraction(0)), ({"backward": True}, Fraction(6, 12))):
        request = edit("extend", source, frames=6, **options)
        assert audio_of(make_plan(request, find(request.checkpoint), "cpu")) == [Audio(path, start)]
    request = edit("connect", source, film("b.mkv"), frames=6)
    sounds = audio_of(make_plan(request, find(request.checkpoint), "cpu"))
    assert sounds == [Audio(path, Fraction(0)), Audio(Path("b.mkv"), Fraction(18, 12))]
    for strength in (0.0, 0.5):
        request = edit("restyle", source, strength=strength)
        assert audio_of(make_plan(request, find(request.checkpoint), "cpu")) == [Audio(path, Fraction(0))]
    request = edit("animate", picture("p.png"), frames=5)
    assert audio_of(make_plan(request, find(request.checkpoint), "cpu")) == []
    made = make(edit("extend", source, frames=6, backward=True, odd_sides=False), "c.mp4").path
    facts = video_facts(made)
    assert facts.has_audio and facts.num_frames == 18


def test_connecting_leaves_both_as_they_are(edit: Any, make: Make) -> None:
    one, other = film("a.mkv", 6), film("b.mkv", 10, 96, 96, fps="24", shade=60)
    frames = read(make(edit("connect", one, other, frames=7, fit="pad"), "c.mkv", lossless=True).path)
    after = read(other, width=64, height=48, fps=Fraction(12), fit="pad")
    assert len(frames) == 6 + 7 + len(after) and len(after) == 5
    assert torch.equal(frames[:6], read(one)) and torch.equal(frames[-5:], after)


def test_a_clip_and_a_bridge_to_its_beginning(edit: Any, make: Make, events: list[Event]) -> None:
    source = film("a.mkv", 9)
    request = edit("loop", str(source), frames=5)
    result = make(request, "b.mkv", lossless=True)
    frames = read(result.path)
    assert len(frames) == 14 and torch.equal(frames[:9], read(source))
    assert result.seam is not None and result.seam > 0
    assert any(isinstance(event, Note) and event.text.startswith(f"seam {result.seam:.2f}:") for event in events)
    _, given = latents_of(request)
    assert given.known.mask.tolist() == [0, 0, 0, 1, 1, 0]  # nine frames of the end, five new and the rest of a
    # latent frame, then the clip from its fourth frame on


@pytest.mark.parametrize("num_frames", [8, 12, 24, 40])
def test_a_loop_of_a_prompt_comes_back_to_where_it_began(edit: Any, num_frames: int) -> None:
    request = edit("loop", "a wheel", frames=num_frames, size="64x64")
    plan = make_plan(request, find(request.checkpoint), "cpu")
    latents, _ = latents_of(request)
    cyclic, groups = plan.timeline.num_cyclic, num_frames // 4
    assert latents.shape[2] == 1 + groups + cyclic
    assert torch.equal(latents[:, :, 1 + groups :], latents[:, :, 1 : 1 + cyclic])
    made = latents[:, :, 1 : 1 + groups]
    assert all(bool(made[:, :, n].abs().sum() > 0) for n in range(groups))
    assert all(not torch.equal(made[:, :, a], made[:, :, b]) for a, b in itertools.combinations(range(groups), 2))


def test_a_loop_of_a_prompt_says_how_it_closes(edit: Any, make: Make, events: list[Event]) -> None:
    result = make(edit("loop", "a wheel", frames=8, size="64x64"))
    assert video_facts(result.path).num_frames == 8 and result.seam is not None
    assert sum(isinstance(event, Note) and event.text.startswith("seam ") for event in events) == 1
    with pytest.raises(InputError, match="a loop of 9 frames cannot close"):
        make(edit("loop", "a wheel", frames=9))
    assert make(edit("extend", film("a.mkv"), frames=3), "b.mkv").seam is None


def test_the_first_frame_is_what_the_vae_makes_of_the_picture(edit: Any, make: Make) -> None:
    request = edit("animate", picture("p.png"), frames=6, size="128x128")
    frames = read(make(request, "a.mkv", lossless=True).path)
    plan = make_plan(request, find(request.checkpoint), "cpu")
    vae = run.load_vae(plan)
    (shown,) = vae.decode(vae.encode([moving(1, 128, 128).float() / 255]))
    assert len(frames) == 6 and torch.equal(frames[:1], to_uint8(shown))


def test_the_last_frame_too(edit: Any) -> None:
    first, last = picture("p.png"), picture("q.png", shade=90)
    request = edit("animate", first, last=last, frames=12, size="128x128")
    latents, given = latents_of(request)
    assert given.known.mask.tolist() == [0, 1, 1, 0]
    vae = run.load_vae(make_plan(request, find(request.checkpoint), "cpu"))
    for name, place in (("p.png", 0), ("q.png", 3)):
        still = read(name).float().expand(5, -1, -1, -1) / 255
        torch.testing.assert_close(latents[:, :, place], vae.encode([still])[:, :, min(1, place)], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("verb", "options"),
    [("extend", {"frames": 30}), ("extend", {"frames": 30, "backward": True}), ("loop", {"frames": 30})],
)
def test_what_is_given_is_in_the_latents_and_all_else_is_made(verb: str, options: Any, edit: Any) -> None:
    source = film("a.mkv", 20)
    request = edit(verb, str(source) if verb == "loop" else source, **options)
    assert len(make_plan(request, find(request.checkpoint), "cpu").windows) > 1
    latents, given = latents_of(request)
    known = given.known.mask == 0
    assert torch.equal(latents[:, :, known], given.known.latents[:, :, known]) and known.sum() >= 3
    assert bool((latents[:, :, ~known].abs().sum((0, 1, 3, 4)) > 0).all())


def test_restyling_from_nothing_to_all(edit: Any, make: Make, ask: Any) -> None:
    source = film("a.mkv", 9, 128, 128)
    untouched = read(make(edit("restyle", source, strength=0.0), "0.mkv", lossless=True).path)
    assert torch.equal(untouched, read(source))
    latents = {x: latents_of(edit("restyle", source, strength=x, steps=4))[0] for x in (0.25, 0.5, 0.75, 1.0)}
    plain, _ = latents_of(ask("a ball", steps=4))
    assert torch.equal(latents[1.0], plain)
    vae = run.load_vae(make_plan(ask(), find(ask().checkpoint), "cpu"))
    own = vae.encode([read(source).float() / 255])
    apart = [float((latents[x] - own).abs().mean()) for x in (0.25, 0.5, 0.75, 1.0)]
    assert apart == sorted(apart) and apart[0] < apart[-1]


def test_a_restyle_holds_what_is_not_asked_for(edit: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also without guidance: then the negative prompt is read for this alone."""
    source = film("a.mkv", 9, 128, 128)
    request = edit("restyle", source, strength=0.75, steps=4, guidance=1)
    assert not request.is_guided and request.needs_negative
    plan = make_plan(request, find(request.checkpoint), "cpu")
    own = run.load_vae(plan).encode([read(source).float() / 255])
    apart, flops = [], []
    for share in (1.0, 0.5, 0.0):
        monkeypatch.setattr(type(request), "held", share)
        apart.append(float((latents_of(request)[0] - own).abs().mean()))
        flops.append(plan.flops)
    assert apart == sorted(apart) and apart[0] < 0.9 * apart[2]
    assert flops == [2 * flops[2], 2 * flops[2], flops[2]]


def test_pocket_doubts_what_it_makes_and_not_a_source(edit: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """What lies below the noise of a restyle is the video's own."""
    asked: list[bool] = []

    def told(self: PocketTransformer, level: NoiseLevel, given: bool) -> NoiseLevel:
        asked.append(given)
        return level

    monkeypatch.setattr(PocketTransformer, "told", told)
    source = film("a.mkv", 9)
    latents_of(edit("restyle", source, strength=0.5, steps=4))
    assert not asked
    latents_of(edit("extend", source, frames=4))
    assert asked and all(asked)
    asked.clear()
    latents_of(edit("loop", "a ball", frames=8))
    assert asked and not all(asked)


def test_a_long_video_is_restyled_in_windows(edit: Any, make: Make) -> None:
    """They agree: nothing jumps where one ends more than where a latent frame does."""
    asked = edit("restyle", film("a.mkv", 41), strength=0.5, steps=4, model="pocket")
    windows = make_plan(asked, find("pocket"), "cpu").windows
    steps = differences([read(make(asked, "b.mkv", lossless=True).path)])
    assert len(steps) == 40 and len(windows) == 2
    joins = [4 * (window.new_start - 1) for window in windows[1:]]
    others = [step for at, step in enumerate(steps) if at % 4 == 0 and at not in joins]
    assert max(steps[at] for at in joins) < 1.5 * max(others)


@pytest.mark.parametrize(("verb", "what"), [("extend", "gone"), ("connect", "changed"), ("restyle", "gone")])
def test_a_source_that_is_not_there_any_more_loses_no_latents(
    verb: str, what: str, edit: Any, make: Make, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = film("a.mkv")
    request = edit("connect", source, film("b.mkv"), frames=4) if verb == "connect" else (
        edit(verb, source, **({"frames": 4} if verb == "extend" else {}))
    )  # fmt: skip
    denoise = run.denoise_windows

    def then(*arguments: Any) -> Tensor:
        latents = denoise(*arguments)
        source.rename("away.mkv")
        if what == "changed":
            film("a.mkv", shade=7)
        return latents

    with monkeypatch.context() as patch:
        patch.setattr(run, "denoise_windows", then)
        words = "is gone, which" if what == "gone" else "is not the file that this video was made of"
        with pytest.raises(InputError, match=words) as raised:
            make(request, "c.mkv", lossless=True)
    assert "run `soragen decode" in raised.value.__notes__[0] and not Path("c.mkv").exists()
    left = home / "c.latents.safetensors"
    with pytest.raises(InputError, match=words):
        run.decode(left, None, device="cpu", listen=lambda event: None)
    Path("away.mkv").replace("a.mkv")
    done = run.decode(left, None, device="cpu", listen=lambda event: None)
    assert done.path.name == "c.mkv" and not left.exists()
    frames = read(done.path)
    assert len(frames) == request.size.num_frames
    assert verb == "restyle" or torch.equal(frames[:9], read("a.mkv"))


def test_an_interrupt_while_decoding_keeps_all_that_is_needed(
    edit: Any, make: Make, home: Path, events: list[Event], monkeypatch: pytest.MonkeyPatch
) -> None:
    request = edit("loop", str(film("a.mkv", 9, 65, 47)), frames=5)
    whole = read(make(request, "whole.mkv", lossless=True).path)

    def interrupted(self: PocketVae, latents: Tensor, *, seed: int = 0) -> Iterator[Tensor]:
        raise KeyboardInterrupt
        yield

    with monkeypatch.context() as patch:
        patch.setattr(PocketVae, "decode", interrupted)
        with pytest.raises(KeyboardInterrupt):
            make(request, "b.mkv", lossless=True)
    left = home / "b.latents.safetensors"
    assert f"`soragen decode {left}`" in str(events[-1]) and load_latents(left).lossless
    result = run.decode(left, None, device="cpu", listen=events.append)
    assert torch.equal(read(result.path), whole) and result.seam is not None
    recipe = read_recipe(result.path) or {}
    assert Request.from_dict(recipe["request"]).edit.verb == "loop"  # type: ignore[union-attr]


def test_odd_sides_are_kept_where_the_file_can_hold_them(edit: Any, make: Make) -> None:
    source = film("a.mkv", 5, 65, 47)
    kept = read(make(edit("extend", source, frames=3), "b.mkv", lossless=True).path)
    assert torch.equal(kept[:5], read(source)) and kept.shape == (8, 47, 65, 3)
    facts = video_facts(make(edit("extend", source, frames=3, odd_sides=False), "c.mp4").path)
    assert (facts.width, facts.height, facts.num_frames) == (64, 46, 8)


@pytest.mark.parametrize(
    ("num_frames", "width", "height", "fps"), [(1, 64, 48, "12"), (7, 16, 16, "60"), (3, 2, 2, "24000/1001")]
)
def test_unusual_sources(num_frames: int, width: int, height: int, fps: str, edit: Any, make: Make) -> None:
    source = film("a.mkv", num_frames, width, height, fps)
    for name, request in (
        ("f", edit("extend", source, frames=5)),
        ("b", edit("extend", source, frames=5, backward=True)),
    ):
        assert request.size.fps == Fraction(fps)
        frames = read(make(request, f"{name}.mkv", lossless=True).path)
        assert frames.shape == (num_frames + 5, height, width, 3)
        assert torch.equal(frames[:num_frames] if name == "f" else frames[5:], read(source))
    latents_of(edit("loop", str(source), frames=5))
    latents_of(edit("restyle", source, strength=0.5))


def test_a_varying_rate_is_made_even(edit: Any, make: Make) -> None:
    source = uneven("a.mp4")
    request = edit("extend", source, frames=4)
    assert not video_facts(source).constant_fps
    frames = read(make(request, "b.mkv", lossless=True).path)
    assert torch.equal(frames[:-4], read(source, fps=request.size.fps)) and len(frames) == request.size.num_frames


def test_the_recipe_names_files_but_not_where_they_are(edit: Any, make: Make, home: Path) -> None:
    source = film(str(home / "a.mkv"))
    path = make(edit("extend", source, frames=3), "b.mkv").path
    recipe = read_recipe(path) or {}
    assert str(home) not in str(recipe["request"]["edit"])
    assert Request.from_dict(recipe["request"]).edit.sources[0].path == Path("a.mkv")  # type: ignore[union-attr]
    assert Edit.from_dict(recipe["request"]["edit"]).verb == "extend"


def test_a_file_without_sound_says_so(edit: Any, make: Make, events: list[Event]) -> None:
    make(edit("extend", sounding("a.mp4"), frames=4, odd_sides=False), "b.gif")
    make(edit("extend", film("c.mp4"), frames=4, odd_sides=False), "d.gif")
    said = [event.text for event in events if isinstance(event, Note) and "sound" in event.text]
    assert said == ["a file that ends in .gif has no sound: that of the source is left out"]
