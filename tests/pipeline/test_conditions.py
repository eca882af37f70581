"""Given frames, from clips to what a checkpoint takes; the networks are pocket's own, or stand-ins that can be read."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from soragen.catalog import catalog, checkpoint_folder
from soragen.diffusion.grid import Compression, Grid, lay_grid
from soragen.diffusion.windows import Window
from soragen.errors import InputError
from soragen.families import load_family
from soragen.families.pocket import Pocket
from soragen.models.family import Context, ImageCondition, ImageFamily, Keyframe
from soragen.pipeline.conditions import REPEATS, Clip, Conditions, bind, needed, note_on, read_conditions
from soragen.size import VideoSize

CPU, F32 = torch.device("cpu"), torch.float32
COMPRESSION = Compression(stride=(4, 8, 8), patch_size=(1, 1, 1))
GRID = lay_grid(VideoSize(24, 16, 25, Fraction(12)), COMPRESSION)  # 7 latent frames
VIDEO = torch.rand(25, 16, 24, 3, generator=torch.Generator().manual_seed(0))


def cut(start: int, count: int) -> Clip:
    return Clip(VIDEO[start : start + count], start)


class MeanVae:
    """A latent frame is the mean of its frames: one channel."""

    def encode(self, frames: Iterable[Tensor]) -> Tensor:
        video = torch.cat(list(frames))
        assert len(video) % 4 == 1
        means = [video[:1].mean(), *(video[n : n + 4].mean() for n in range(1, len(video), 4))]
        return torch.stack(means).view(1, 1, -1, 1, 1).expand(-1, -1, -1, 2, 3)


class FakeImageFamily(Pocket):
    def __init__(self) -> None:
        self.seen: dict[int, Tensor] = {}

    def takes_images(self, folder: Path) -> bool:
        return True

    def check_images(self, folder: Path, num_images: int) -> None: ...

    def read_images(self, folder: Path, images: Mapping[int, Tensor], *rest: Any, **more: Any) -> ImageCondition:
        self.seen = dict(images)
        return ImageCondition(torch.zeros(1))


def read(
    *clips: Clip, name: str = "pocket", family: Any = None, load_vae: Callable[[], Any] = MeanVae, grid: Grid = GRID
) -> Conditions:
    return read_conditions(
        catalog()[name], Path(), family or Pocket(), clips, grid, load_vae=load_vae, device=CPU, dtype=F32
    )


def means(conditions: Conditions) -> dict[int, float]:
    """Of the known latent frames."""
    known = conditions.known
    assert known is not None and known.latents.shape == (1, 1, 7, 2, 3)
    return {n: float(known.latents[0, 0, n, 0, 0]) for n in range(7) if not known.mask[n]}


def mean(first: int, last: int) -> Any:
    return pytest.approx(float(VIDEO[first : last + 1].mean()))


def test_no_clip_is_no_condition_and_loads_nothing() -> None:
    conditions = read(load_vae=lambda: pytest.fail("loaded"))
    assert (conditions.known, conditions.keyframes, conditions.image) == (None, (), None)
    assert all(note_on(checkpoint, ()) == "" for checkpoint in catalog().values())


def test_clips_in_their_place() -> None:
    conditions = read(cut(0, 6), cut(13, 11))  # the last frames of either fill no latent frame
    assert means(conditions) == {0: mean(0, 0), 1: mean(1, 4), 4: mean(13, 16), 5: mean(17, 20)}
    assert conditions.known is not None and conditions.known.native and conditions.known.repeats == 1
    assert not conditions.keyframes and not note_on(catalog()["pocket"], [cut(0, 6), cut(13, 11)])


def test_single_frames_stand_still_for_a_latent_frame() -> None:
    assert means(read(cut(0, 1), cut(10, 1), cut(24, 1))) == {0: mean(0, 0), 3: mean(10, 10), 6: mean(24, 24)}


def test_latents_of_a_later_clip_are_those_of_the_whole_video() -> None:
    checkpoint, family = catalog()["pocket"], load_family("pocket")
    folder = checkpoint_folder(checkpoint)
    grid = lay_grid(VideoSize(64, 64, 25, Fraction(12)), family.compression(folder))
    video = torch.rand(25, 64, 64, 3, generator=torch.Generator().manual_seed(1))
    vaes: list[weakref.ref[Any]] = []

    def load_vae() -> Any:
        vae = family.load_vae(folder, CPU, F32)
        vaes.append(weakref.ref(vae))
        return vae

    clips = [Clip(video[:5], 0), Clip(video[13:], 13)]
    known = read_conditions(checkpoint, folder, family, clips, grid, load_vae=load_vae, device=CPU, dtype=F32).known
    assert known is not None and known.mask.tolist() == [0, 0, 1, 1, 0, 0, 0]
    assert len(vaes) == 1 and vaes[0]() is None  # freed before the transformer comes
    whole = family.load_vae(folder, CPU, F32).encode([video])
    torch.testing.assert_close(known.latents[:, :, [0, 1, 4, 5, 6]], whole[:, :, [0, 1, 4, 5, 6]], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "clips",
    [
        (cut(12, 8),),  # in the middle of a latent frame
        (cut(0, 5), cut(4, 1)),
        (Clip(VIDEO[:8], 21),),
        (Clip(VIDEO[:0], 0),),
        (Clip(VIDEO[:1, :8], 0),),
    ],
    ids=["begins within a latent frame", "overlap", "past the end", "empty", "another size"],
)
def test_clips_that_do_not_lie_on_the_timeline(clips: tuple[Clip, ...]) -> None:
    with pytest.raises(ValueError):
        read(*clips)


@pytest.mark.parametrize("name", ["wan2.1-t2v-1.3b", "wan2.2-t2v-a14b"])
def test_a_model_for_prompts_alone_takes_noisy_ones_and_says_so(name: str) -> None:
    clips = (cut(0, 5), cut(21, 4))
    conditions = read(*clips, name=name)
    assert conditions.known is not None and not conditions.known.native and conditions.known.repeats == REPEATS > 1
    assert name in note_on(catalog()[name], clips) and "less closely" in note_on(catalog()[name], clips)


def test_a_model_for_a_first_frame_takes_a_clip_there_and_says_so() -> None:
    for count, noted in ((1, False), (9, True)):
        conditions = read(cut(0, count), name="ltx-video-0.9.1")
        assert conditions.known is not None and conditions.known.native
        assert ("less closely" in note_on(catalog()["ltx-video-0.9.1"], [cut(0, count)])) == noted


def test_pictures_for_a_model_that_sees_images() -> None:
    family = FakeImageFamily()
    assert isinstance(family, ImageFamily)
    conditions = read(cut(0, 1), name="wan2.1-i2v-14b-480p", family=family, load_vae=lambda: pytest.fail("loaded"))
    assert conditions.image is not None and conditions.known is None
    assert list(family.seen) == [0] and torch.equal(family.seen[0], VIDEO[0])
    with pytest.raises(ValueError, match="the first, the last"):
        read(cut(9, 1), name="pocket", family=family)


@pytest.mark.parametrize(
    ("name", "clips", "able", "unable"),
    [
        ("wan2.1-i2v-14b-480p", (cut(0, 1), cut(24, 1)), "pocket", "wan2.1-i2v-14b-720p"),
        ("ltx-video-0.9.1", (cut(24, 1),), "ltx-video-0.9.5", "wan2.1-t2v-1.3b"),
        ("wan2.2-i2v-a14b", (cut(0, 5),), "wan2.2-ti2v-5b", "ltx-video-0.9.1"),
    ],
)
def test_a_model_that_cannot_names_those_that_can(name: str, clips: tuple[Clip, ...], able: str, unable: str) -> None:
    with pytest.raises(InputError, match=name) as raised:
        needed(catalog()[name], clips)
    names = (raised.value.hint or "").replace(",", "").split()
    assert able in names and unable not in names and name not in names
    with pytest.raises(InputError):
        read(*clips, name=name)


@pytest.mark.parametrize("name", ["pocket", "wan2.2-ti2v-5b", "ltx-video-0.9.5", "wan2.1-t2v-14b"])
def test_models_that_take_frames_anywhere(name: str) -> None:
    needed(catalog()[name], (cut(0, 5), cut(13, 8)))


class Bound:
    """A transformer that gives back what it was bound with."""

    def bind(self, context: Any, grid: Any, **more: Any) -> Any:
        return more


def test_what_a_transformer_is_bound_with() -> None:
    context, latents = Context(torch.zeros(1, 1), torch.ones(1).bool()), torch.zeros(1, 1, 2, 1, 1)
    image = ImageCondition(torch.zeros(1))

    def bound(conditions: Conditions, window: Window) -> Any:
        return bind(Bound(), context, GRID, conditions, window)

    assert bound(Conditions(None), Window(0, 7, 0, 7)) == {}
    assert bound(Conditions(None, image=image), Window(0, 7, 0, 7)) == {"image": image}
    keyframes = tuple(Keyframe(latents, frame) for frame in (3, 20, 40))
    for start, frames in ((0, [3, 20]), (5, [0, 20]), (6, [16]), (20, [])):
        more = bound(Conditions(None, keyframes), Window(start, start + 7, start, start + 7))
        assert [keyframe.frame for keyframe in more["keyframes"]] == frames
