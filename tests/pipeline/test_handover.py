"""Made frames beside those of a source: no step where nothing moves, nothing left behind where something does."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction

import pytest
import torch
import torch.nn.functional as F
from live import Live
from torch import Tensor

from soragen.pipeline.handover import ARRIVED, FLOW_BYTES, MOST_FRAMES, Join, arrive, fade, hand_over, held_bytes
from soragen.pipeline.timeline import Given, Piece, Timeline
from soragen.size import VideoSize
from soragen.video.flow import flow
from soragen.video.write import to_uint8

HEIGHT, WIDTH = 24, 40


def soft() -> Tensor:
    """A frame as a VAE gives it back."""
    return torch.linspace(0.2, 0.6, WIDTH).expand(HEIGHT, WIDTH)[..., None].repeat(1, 1, 3)


def sharp() -> Tensor:
    """The same frame as it came: with texture, and a little redder."""
    torch.manual_seed(0)
    return soft() + 0.02 * torch.randn(HEIGHT, WIDTH, 1) + torch.tensor([0.02, 0.0, 0.0])


def run(frames: list[Tensor], before: Join | None, after: Join | None, fps: float = 4) -> list[Tensor]:
    chunks = torch.stack(frames).split([1, len(frames) - 1])
    joins = [None if join is None else lambda join=join: join for join in (before, after)]
    return list(torch.cat(list(hand_over(chunks, *joins, fps))))


def test_a_still_scene_goes_on_as_it_came_and_fades_into_the_decoders_own() -> None:
    made = run([soft()] * 6, Join(soft(), sharp()), None)
    torch.testing.assert_close(made[0], sharp(), atol=1e-4, rtol=0)
    assert torch.equal(made[5], soft())
    away = [float((frame - sharp()).abs().mean()) for frame in made]
    assert away == sorted(away)


def test_it_arrives_at_what_follows() -> None:
    made = run([soft()] * 7, None, Join(soft(), sharp()))
    torch.testing.assert_close(made[-1], sharp(), atol=2 / 255, rtol=0)  # it waited in 8 bits, twice
    assert torch.equal(to_uint8(made[0]), to_uint8(soft()))
    assert len(made) == 7


def flat(*values: float) -> list[Tensor]:
    return [to_uint8(torch.full((2, 2, 3), value)) for value in values]


def shades(frames: Iterator[Tensor]) -> list[float]:
    return [float(frame.mean()) for frame in frames]


def test_the_way_to_what_follows_is_spread_over_the_last_frames() -> None:
    source = torch.full((2, 2, 3), 0.8)
    arrived = shades(arrive(flat(0.2, 0.2, 0.2, 0.2), Join(source, source)))
    assert arrived == pytest.approx([0.2 + 0.6 * ARRIVED * i / 3 for i in range(4)], abs=0.003)
    assert shades(arrive(flat(0.4), Join(source, source))) == pytest.approx([0.4], abs=0.003)  # one stays as it is


def test_what_is_on_its_way_already_does_not_stand_still_at_the_end() -> None:
    """A picture that passes by: made frames arrive in its pace, not at its last place before the time."""
    torch.manual_seed(0)
    picture = F.interpolate(torch.rand(1, 3, 12, 12), (64, 64), mode="bicubic").clamp(0, 1)[0].permute(1, 2, 0)
    passing = [picture.roll(2 * i, 1) for i in range(7)]
    here = Join.of(passing[5], passing[5], passing[6])
    for join, least, most in ((here, 0.8, 1.2), (Join(here.decoded, here.source), 0.0, 0.5)):
        *_, last = arrive([to_uint8(frame) for frame in passing[:5]], join)
        steps = [float((passing[5] - frame)[8:-8, 16:-16].abs().mean()) for frame in (last, passing[4])]
        assert least < steps[0] / steps[1] < most


def test_it_arrives_at_the_pace_of_what_arrives() -> None:
    """A source that moves twice as fast as the frames that come to it does not jerk them along at the join."""
    torch.manual_seed(0)
    picture = F.interpolate(torch.rand(1, 3, 12, 12), (64, 64), mode="bicubic").clamp(0, 1)[0].permute(1, 2, 0)
    made = [to_uint8(picture.roll(pixels, 1)) for pixels in range(5)]
    for faster in (1, 2):
        here = picture.roll(5, 1)
        *_, last = arrive(made, Join.of(here, here, picture.roll(5 + faster, 1)))
        steps = [float((here - other)[8:-8, 16:-16].abs().mean()) for other in (last, picture.roll(4, 1))]
        assert 0.7 < steps[0] / steps[1] < 1.35


def test_what_arrives_elsewhere_moves_there() -> None:
    """It does not fade out here and in there."""
    torch.manual_seed(0)
    disc = torch.zeros(1, 3, 64, 64)
    disc[..., 24:40, 20:36] = F.interpolate(torch.rand(1, 3, 4, 4), (16, 16), mode="bicubic").clamp(0.3, 1)
    still = disc[0].permute(1, 2, 0)
    arrived = list(arrive([to_uint8(still)] * 5, Join(still, still.roll(6, 1))))
    for step, frame in enumerate(arrived):
        at = [float((frame - still.roll(pixels, 1)).abs().mean()) for pixels in range(7)]
        assert abs(at.index(min(at)) - 6 * ARRIVED * step / 4) < 0.6
        assert min(at) < 0.25 * float((still - still.roll(6, 1)).abs().mean())


def test_both_ends_of_a_short_passage() -> None:
    made = run([soft()] * 2, Join(soft(), sharp()), Join(soft(), sharp()), fps=30)
    assert len(made) == 2
    assert float((made[0] - sharp()).abs().max()) < 0.2


def test_what_moves_away_leaves_nothing_behind() -> None:
    """The right half shows something else in the made frames: there they stay as they are."""
    other = soft()
    other[:, WIDTH // 2 :] = 0.95
    made = run([other] * 2, Join(soft(), sharp()), None)
    assert float((made[0] - other)[:, WIDTH // 2 + 16 :].abs().max()) < 1e-3
    torch.testing.assert_close(made[0][:, : WIDTH // 2 - 16], sharp()[:, : WIDTH // 2 - 16], atol=1e-3, rtol=0)


def test_few_frames_wait_for_the_end() -> None:
    taken = 0

    def stream() -> object:
        nonlocal taken
        for _ in range(100):
            taken += 1
            yield soft()[None]

    joined = hand_over(stream(), None, lambda: Join(soft(), sharp()), 60)  # type: ignore[arg-type]
    next(joined)
    assert taken == MOST_FRAMES + 1


def test_frames_wait_in_a_quarter_of_their_memory_as_the_plan_has_it() -> None:
    side, bridge = 320, (Piece(0, 4, 0), Piece(5, 40), Piece(0, 4, 0))
    timeline = Timeline(49, bridge, (Given(0, 0, 5, 0), Given(0, 0, 4, 45)))
    frame = 3 * side**2
    with Live() as live:
        join = Join(torch.rand(side, side, 3), torch.rand(side, side, 3))
        joined = hand_over((torch.rand(1, side, side, 3) for _ in range(40)), lambda: join, lambda: join, 60)
        next(joined)
        # both of the join, the one given, the one taken, and that before
        assert live.now < frame * (MOST_FRAMES + 4 * 5)
        for made in joined:
            assert made.dtype == torch.float32 and float(made.min()) >= 0 and float(made.max()) <= 1
    planned = held_bytes(timeline, VideoSize(side, side, 48, Fraction(60)))
    assert live.peak <= planned < 4 * frame * (MOST_FRAMES + 4) + FLOW_BYTES
    assert held_bytes(Timeline(9, (Piece(0, 9),), (Given(0, 0, 1, 0),)), VideoSize(side, side, 9, Fraction(60))) == 0


@pytest.mark.parametrize("length", [1, 4, 16])
def test_the_fade_is_whole_at_the_join_and_ends(length: int) -> None:
    assert fade(1, length) == 1
    assert fade(length + 1, length) == 0


def test_texture_goes_along_with_what_moves() -> None:
    """What the source has more is not left lying where it was."""
    torch.manual_seed(0)
    coarse = F.interpolate(torch.rand(1, 3, 8, 20), (64, 160), mode="bicubic").clamp(0.1, 0.9)[0].permute(1, 2, 0)
    fine = 0.05 * F.interpolate(torch.randn(1, 1, 32, 80), (64, 160))[0, 0, :, :, None]

    def view(picture: Tensor, at: int) -> Tensor:
        return picture[:, 40 - at : 120 - at]

    join = Join(view(coarse, 0), view(coarse + fine, 0))
    made = run([view(coarse, 2 * i) for i in range(1, 4)], join, None, fps=12)
    for i, frame in enumerate(made[:2], 1):
        there, left_behind = ((frame - other)[8:-8, 8:-8].abs().mean() for other in (
            view(coarse + fade(i, 12) * fine, 2 * i), view(coarse, 2 * i) + fade(i, 12) * view(fine, 0),
        ))  # fmt: skip
        assert there < 0.3 * left_behind


def test_what_sets_out_slowly_keeps_the_movement_of_the_source() -> None:
    """A source that moves on by two pixels a frame, and made frames whose first step is half a pixel."""
    torch.manual_seed(0)
    picture = F.interpolate(torch.rand(1, 3, 8, 20), (128, 320), mode="bicubic").clamp(0.1, 0.9)[0].permute(1, 2, 0)

    def view(at: float) -> Tensor:
        left = F.interpolate(picture.permute(2, 0, 1)[None], scale_factor=(1, 2), mode="bilinear")[0].permute(1, 2, 0)
        start = round(160 - 2 * at)
        return left[:, start : start + 256 : 2]

    frames = [view(0.5 + 2 * i) for i in range(3)]
    still = run(frames, Join(view(0), view(0)), None, fps=12)
    going = run(frames, Join.of(view(0), view(0), view(-2)), None, fps=12)

    def step(made: list[Tensor]) -> float:
        return float(flow(made[0], view(0))[0, 0].median()) * 128 / 2

    assert step(still) == pytest.approx(-0.5, abs=0.3)
    assert step(going) < -0.9  # a part of the made frame itself stays
