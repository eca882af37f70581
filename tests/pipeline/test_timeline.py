"""What a verb comes to in time: every frame of the file once and in order, every given frame where it belongs."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from itertools import product
from pathlib import Path

import pytest

from soragen.catalog import catalog, find
from soragen.diffusion.grid import Compression
from soragen.errors import InputError
from soragen.pipeline.plan import make_plan
from soragen.pipeline.timeline import Given, Piece, Room, Timeline, lay_timeline, room_of
from soragen.request import Edit, Request, Source
from soragen.size import VideoSize

FOUR = Compression((4, 8, 8), (1, 1, 1))
EIGHT = Compression((8, 32, 32), (1, 1, 1))
ROOMS = {
    "pocket": Room(FOUR, 7, single=False),
    "long": Room(EIGHT, 33, single=False),
    "short": Room(FOUR, 4, single=False),
    "pictures": Room(FOUR, 21, single=True, anywhere=False),
}


def request(verb: str, num_frames: int, *sources: int, fps: int = 12, **edit: object) -> Request:
    """num_frames: of the file."""
    given = tuple(Source(Path(f"{n}.mp4"), "", count) for n, count in enumerate(sources))
    size = VideoSize(64, 64, num_frames, Fraction(fps))
    return Request("", "", size, 1, 2, 1.0, 1.0, 1.0, "euler", "pocket", Edit(verb, given, **edit))  # type: ignore[arg-type]


def frames_of(timeline: Timeline, asked: Request) -> list[tuple[int | None, int]]:
    """(source, frame) of each frame of the file; all of them are there."""
    found = [(piece.source, n) for piece in timeline.pieces for n in range(piece.first, piece.first + piece.count)]
    assert len(found) == asked.size.num_frames
    assert all(n < timeline.num_frames for source, n in found if source is None)
    return found


def check(timeline: Timeline, room: Room) -> None:
    """Given frames lie apart from each other on the rendered timeline, later ones where a latent frame begins."""
    stride, end = room.compression.stride[0], 0
    rendered = room.compression.num_frames(room.compression.latent_frames(timeline.num_frames))
    for given in timeline.given:
        assert given.start >= end and given.count >= 1 and given.first >= 0
        end = given.start + given.count
        if room.single:
            assert given.count == 1 and given.start in (0, rendered - 1)
        elif given.start:
            assert (given.start - 1) % stride == given.count % stride == 0
    assert end <= timeline.num_frames
    free = timeline.num_frames - sum(given.count for given in timeline.given)
    assert free > 0


CASES = list(product(ROOMS.values(), (1, 2, 3, 4, 5, 9, 40), (1, 2, 3, 7, 8, 9, 60)))


@pytest.mark.parametrize("fps", [3, 12, 60])
def test_forward(fps: int) -> None:
    for room, old, new in CASES:
        asked = request("extend", old + new, old, fps=fps)
        timeline = lay_timeline(asked, room)
        check(timeline, room)
        (given,) = timeline.given
        assert given.start == 0 and given.first + given.count == old
        assert (given.count - 1) % room.compression.stride[0] == 0 and given.count <= 1 + max(
            room.compression.stride[0], fps
        )
        made = [(None, given.count + n) for n in range(new)]
        assert frames_of(timeline, asked) == [(0, n) for n in range(old)] + made
        assert timeline.num_frames == given.count + new and not timeline.has_given_end


@pytest.mark.parametrize("fps", [3, 12, 60])
def test_backward(fps: int) -> None:
    for room, old, new in CASES:
        asked = request("extend", old + new, old, fps=fps, backward=True)
        timeline = lay_timeline(asked, room)
        check(timeline, room)
        (given,) = timeline.given
        assert given.first == 0 and given.count <= max(room.compression.stride[0], old)
        made = [(None, given.start - new + n) for n in range(new)]
        assert frames_of(timeline, asked) == made + [(0, n) for n in range(old)]
        assert timeline.num_frames == given.start + given.count
        assert timeline.grows_backward and not timeline.has_given_end


@pytest.mark.parametrize("verb", ["connect", "loop"])
def test_between_two_ends(verb: str) -> None:
    for room, old, new in CASES:
        sources = (old, 6) if verb == "connect" else (old,)
        asked = request(verb, sum(sources) + new, *sources)
        timeline = lay_timeline(asked, room)
        check(timeline, room)
        before, after = timeline.given
        assert (before.source, after.source) == (0, len(sources) - 1)
        assert before.start == 0 and before.first + before.count == old
        # The file and the timeline tell the same time: so many frames after the new ones comes the first given one.
        assert after.start - (before.count + new) == after.first
        made = [(None, before.count + n) for n in range(new)]
        rest = [(1, n) for n in range(6)] if verb == "connect" else []
        assert frames_of(timeline, asked) == [(0, n) for n in range(old)] + made + rest
        assert timeline.has_given_end


def test_a_loop_shows_whole_latent_frames_up_to_the_last_that_comes_again() -> None:
    for name, room in ROOMS.items():
        stride = room.compression.stride[0]
        for groups in range(2, 60):
            asked = request("loop", groups * stride)
            if name == "pictures":
                with pytest.raises(InputError, match="cannot be given frames within a clip"):
                    lay_timeline(asked, room)
                continue
            timeline = lay_timeline(asked, room)
            assert 1 <= timeline.num_cyclic < groups
            assert timeline.pieces == (Piece(timeline.num_cyclic * stride, groups * stride),)
            assert room.compression.latent_frames(timeline.num_frames) == 1 + groups + timeline.num_cyclic


@pytest.mark.parametrize(("num_frames", "near"), [(1, 8), (4, 8), (9, 8), (10, 8), (11, 12), (25, 24)])
def test_a_loop_that_cannot_close_names_the_nearest_that_can(num_frames: int, near: int) -> None:
    with pytest.raises(InputError, match=f"a loop of {num_frames} frames cannot close") as raised:
        lay_timeline(request("loop", num_frames), ROOMS["pocket"])
    assert f"--frames {near}:" in (raised.value.hint or "")


@pytest.mark.parametrize("num_frames", [1, 2, 3, 5, 8, 26])
def test_pictures_at_the_ends(num_frames: int) -> None:
    for room in ROOMS.values():
        asked = request("animate", num_frames, 1)
        timeline = lay_timeline(asked, room)
        assert timeline.given == (Given(0, 0, 1, 0),)
        assert frames_of(timeline, asked) == [(None, n) for n in range(num_frames)]
        if num_frames > 1:
            asked = request("animate", num_frames, 1, 1)
            timeline = lay_timeline(asked, room)
            first, last = timeline.given
            shown = frames_of(timeline, asked)
            assert (first, last.source) == (Given(0, 0, 1, 0), 1)
            assert shown[0] == (None, first.start) and shown[-1] == (None, last.start)
            rendered = room.compression.num_frames(room.compression.latent_frames(timeline.num_frames))
            assert last.start == (rendered - 1 if room.single else num_frames - 1)


def test_a_restyled_video_is_its_own_timeline() -> None:
    asked = request("restyle", 10, 10, strength=0.5)
    timeline = lay_timeline(asked, ROOMS["pocket"])
    assert (timeline.num_frames, timeline.from_source, timeline.given) == (10, True, ())
    untouched = lay_timeline(request("restyle", 10, 10, strength=0.0), ROOMS["pocket"])
    assert untouched.pieces == (Piece(0, 10, 0),) and not untouched.from_source


def test_a_continued_shot_is_a_file_of_its_new_frames() -> None:
    asked = request("continue", 7, 20)
    timeline = lay_timeline(asked, ROOMS["pocket"])
    assert timeline.given == (Given(0, 7, 13, 0),) and timeline.pieces == (Piece(13, 7),) and timeline.num_frames == 20


def test_the_context_is_the_last_second() -> None:
    """As whole latent frames; less of it where another end is given, which a window has to reach."""
    for verb, context in (("extend", 13), ("continue", 13), ("loop", 9)):
        before = lay_timeline(request(verb, 40 + 12, 40), ROOMS["pocket"]).given[0]
        assert (before.first, before.count) == (40 - context, context)


@pytest.mark.parametrize(("verb", "sources"), [("extend", (5,)), ("connect", (5, 4)), ("loop", (5,))])
def test_nothing_to_make_is_refused(verb: str, sources: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match=f"{verb} has no frame to make"):
        lay_timeline(request(verb, sum(sources), *sources), ROOMS["pocket"])


def test_what_checkpoints_can_take() -> None:
    rooms = {name: room_of(checkpoint, FOUR) for name, checkpoint in catalog().items()}
    assert rooms["pocket"] == Room(FOUR, 7, single=False, anywhere=True)
    assert rooms["wan2.1-i2v-14b-480p"].single and not rooms["wan2.1-i2v-14b-480p"].anywhere
    assert not rooms["wan2.1-t2v-1.3b"].single and not rooms["wan2.1-t2v-1.3b"].anywhere


@pytest.mark.parametrize("max_num_frames", [13, 17, 25, 29, 49])
def test_the_first_window_of_a_loop_makes_all_that_comes_again(max_num_frames: int) -> None:
    pocket = find("pocket")
    checkpoint = replace(pocket, native=replace(pocket.native, max_num_frames=max_num_frames))
    for num_frames in range(8, 100, 4):
        plan = make_plan(request("loop", num_frames), checkpoint, "cpu")
        first, *others = plan.windows
        assert first.new_stop >= 1 + plan.timeline.num_cyclic and others
        assert first.new_stop <= plan.grid.latent_shape[0] - plan.timeline.num_cyclic
        assert others[-1].new_stop == plan.grid.latent_shape[0]


@pytest.mark.parametrize(
    ("verb", "sources", "able"), [("connect", (9, 9), "ltx-video-0.9.5"), ("extend", (9,), "pocket")]
)
def test_a_model_that_cannot_is_refused_before_anything_is_loaded(
    verb: str, sources: tuple[int, ...], able: str
) -> None:
    pocket = find("pocket")
    abilities = replace(pocket.abilities, any_frames=False, last_frame=False, first_frame=True)
    asked = request(verb, sum(sources) + 8, *sources, backward=verb == "extend")
    with pytest.raises(InputError, match="takes given frames at the start alone") as raised:
        make_plan(asked, replace(pocket, abilities=abilities), "cpu")
    assert able in (raised.value.hint or "")
