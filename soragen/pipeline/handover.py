"""Joins without a jump: what a VAE loses of a source's frame is handed over to the made frames beside it, and fades.

The file holds the source's own frames, and next to them frames that a VAE has decoded, which are softer and a little
off in colour. That step would be seen. The frame at the join exists twice, as it came and as the VAE gives it back;
both are followed along the movement of the made frames near it, and what they differ in is added to those: whole beside
the join, nothing `LENGTH` seconds away, and only where a made frame still shows what the frame at the join does.
There the made frame itself is drawn towards what was followed, since the two are never quite the same; and right beside
the join that moves on as the source moved, since made frames set out more slowly than what they follow.
"""

from __future__ import annotations

import itertools
import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from statistics import median

import torch
import torch.nn.functional as F
from torch import Tensor

from soragen.pipeline.timeline import Given, Piece, Timeline
from soragen.size import VideoSize
from soragen.video.flow import calm, flow, follow, moved
from soragen.video.write import to_uint8

LENGTH = 1.0
"""Seconds that the difference takes to fade."""
MOST_FRAMES = 16
"""That may be held back before a join: frames are large."""
PREDICTED = 0.7
"""How much of a made frame beside the join is what was followed to there. It fades faster than the difference."""
INERTIA = (1.0, 0.7, 0.4)
"""Of the first made frames beside the join: how much of the movement along which it is followed is the source's own."""
SAME = 0.1
"""Of the range of a colour: where the mean of a block changes by this much, the scene has changed."""
BLOCK = 8
"""Pixels of a block's side."""
ARRIVING, ARRIVED = 8, 0.95
"""Frames over which made ones change into a source's that they arrive at, and how much of the last one has done so."""
PACES, PACE_STEPS, STANDING = (0.5, 1.4), 4, 0.01
"""Least and most of the source's pace at which they arrive, over how many of their last steps theirs is measured, and
what counts as well in both, in halves of the frame's sides: so that stillness compares with stillness."""
ARRIVING_SIDE = 64
"""At which what is seen is looked for over that step: twice as far away as from frame to frame."""
WORKING = 6
"""Frames of floats that are there at most while one is joined."""
FLOW_BYTES = 4_000_000
"""Of the errors of blocks that are looked for, in small frames of any size."""


@dataclass(frozen=True)
class Join:
    """The frame at a join, [H, W, 3] in 0..1: as the VAE gives it back, and as it came.

    Beyond it, away from the join, lies the next frame of the source. going: where what is seen in it is there, a flow,
    as most blocks around have it. None where the source has no other frame. pace: how far that is, see `mean_length`.
    """

    decoded: Tensor
    source: Tensor
    going: Tensor | None = None
    pace: float = 0.0

    @classmethod
    def of(cls, decoded: Tensor, source: Tensor, beyond: Tensor) -> Join:
        along = flow(source, beyond)
        return cls(decoded, source, calm(along), mean_length(along))


class Trail:
    """The frame at a join, followed from made frame to made frame."""

    def __init__(self, join: Join) -> None:
        self.join, self.before = join, join.decoded
        self.along: Tensor | None = None
        self.inertia = iter(INERTIA)

    def applied(self, frame: Tensor, share: float) -> Tensor:
        """The next made frame [H, W, 3] in 0..1, and `share` (0..1) of what the join's is more, where it shows that."""
        step = flow(frame, self.before)
        if self.join.going is not None:
            step = step.lerp(self.join.going, next(self.inertia, 0.0))
        self.along = step if self.along is None else follow(step, self.along)
        self.before = frame
        decoded = moved(self.join.decoded, self.along)
        more = moved(self.join.source, self.along).sub_(decoded)
        change = torch.sub(frame, decoded, out=decoded)
        height, width = frame.shape[:2]
        size = math.ceil(height / BLOCK), math.ceil(width / BLOCK)
        blocks = F.adaptive_avg_pool2d(change.permute(2, 0, 1)[None], size)
        blocks = F.max_pool2d(blocks.abs().amax(dim=1, keepdim=True), 3, 1, 1)
        same = F.interpolate(torch.exp(-((blocks / SAME) ** 2)), (height, width), mode="bilinear")
        more.sub_(change, alpha=PREDICTED * share).mul_(share * same[0, 0, :, :, None])
        return more.add_(frame).clamp_(0, 1)


def arrive(frames: Sequence[Tensor], join: Join) -> Iterator[Tensor]:
    """The last made frames [H, W, 3] uint8 before the join's, which they arrive at; they come in 0..1.

    What is seen moves to where the source has it, and changes into what the source shows there, less so the earlier:
    the last frame by `ARRIVED`, the first not at all. The source's frame is followed back along its own movement,
    one step for each frame, so that nothing stands still at the end; and at the pace of those that arrive, since the
    source's own would be a jerk after slower ones, and a halt after faster ones.
    """
    last, pace = to_float(frames[-1]), arriving_pace(frames, join)

    def source(steps: int) -> Tensor:
        return join.source if join.going is None else moved(join.source, pace * steps * join.going)

    along = calm(flow(source(1), last, ARRIVING_SIDE))
    for i, frame in enumerate(frames):
        if i == 0:
            yield to_float(frame)
            continue
        part = ARRIVED * i / (len(frames) - 1)
        change = moved(source(len(frames) - i), (part - 1) * along).sub_(moved(last, part * along))
        yield change.mul_(part).add_(moved(to_float(frame), part * along)).clamp_(0, 1)


def arriving_pace(frames: Sequence[Tensor], join: Join) -> float:
    """That of the last of some frames [H, W, 3] uint8, in steps of the source at the join, within `PACES`."""
    last = list(frames)[-1 - PACE_STEPS :]
    if join.going is None or len(last) < 2:
        return 1.0
    steps = itertools.pairwise(map(to_float, last))
    made = median(mean_length(flow(after, before)) for before, after in steps)
    least, most = PACES
    return min(max((made + STANDING) / (join.pace + STANDING), least), most)


def mean_length(along: Tensor) -> float:
    """The mean of a flow's lengths, in halves of the frame's sides."""
    return float(along.norm(dim=1).mean())


def fade(distance: int, length: int) -> float:
    """Share of the difference at `distance` >= 1 frames from the join: 1 beside it, 0 from length + 1 on."""
    return max(0.0, 1 - (distance - 1) / length)


def neighbours(timeline: Timeline, piece: Piece) -> tuple[Given | None, Given | None]:
    """Given frames right before a made piece of the file, and after it, that are in the file as they came."""
    outside = [given for given in timeline.given if not timeline.shows(given.start)]
    before = next((given for given in outside if given.start + given.count == piece.first), None)
    after = next((given for given in outside if given.start >= piece.first + piece.count), None)
    return before, after


def num_held(fps: float) -> int:
    """How many frames a join reaches over, and how many are held back where one follows."""
    return max(1, min(MOST_FRAMES, round(LENGTH * fps)))


def held_bytes(timeline: Timeline, size: VideoSize) -> int:
    """Of all that the joins of a file hold at once: both frames of each, one that is joined, those held back."""
    frame, most = 3 * size.area, 0
    for piece in (piece for piece in timeline.pieces if piece.source is None):
        before, after = neighbours(timeline, piece)
        if num_joins := (before is not None) + (after is not None):
            waiting = 0 if after is None else min(piece.count, num_held(float(size.fps)))
            most = max(most, frame * (4 * (2 * num_joins + WORKING) + waiting) + FLOW_BYTES)
    return most


def hand_over(
    chunks: Iterable[Tensor], before: Callable[[], Join] | None, after: Callable[[], Join] | None, fps: float
) -> Iterator[Tensor]:
    """Chunks [1, H, W, 3] of the made frames, of any chunks in 0..1: joined to what is before the first and after the
    last of them.

    before, after: called before the first frame is taken, and once all have come: the frames they need stand there in
    the same stream. At most MOST_FRAMES are held back for the latter, in 8 bits as the file has them.
    """
    length = num_held(fps)
    first = Trail(before()) if before is not None else None
    waiting: deque[Tensor] = deque()
    for i, frame in enumerate(itertools.chain.from_iterable(chunks), start=1):
        if first is not None:
            frame = first.applied(frame, fade(i, length))
            first = first if i < length else None
        if after is None:
            yield frame[None]
            continue
        waiting.append(to_uint8(frame))
        if len(waiting) > length:
            yield to_float(waiting.popleft())[None]
    if waiting and after is not None:
        join = after()
        last, num_waiting = Trail(join), len(waiting)
        for distance in range(1, num_waiting + 1):  # from the join back
            waiting[-distance] = to_uint8(last.applied(to_float(waiting[-distance]), fade(distance, length)))
        early = max(0, num_waiting - ARRIVING)
        yield from (to_float(waiting.popleft())[None] for _ in range(early))
        yield from (frame[None] for frame in arrive(waiting, join))


def to_float(frame: Tensor) -> Tensor:
    """8 bits to 0..1."""
    return frame.float().div_(255)
