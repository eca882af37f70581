"""From decoded frames, and those of the sources, to the frames of the file in their order, one chunk at a time."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from soragen.models.family import Upscaler
from soragen.pipeline.clock import Clock
from soragen.pipeline.events import Listener, Note
from soragen.pipeline.handover import Join, hand_over, neighbours
from soragen.pipeline.plan import Plan
from soragen.pipeline.timeline import Given, Piece
from soragen.request import Edit, Request
from soragen.size import VideoSize
from soragen.video.audio import Audio
from soragen.video.motion import seam_score
from soragen.video.read import read_video
from soragen.video.write import to_uint8


def file_frames(plan: Plan, decoded: Iterator[Tensor], upscaler: Upscaler | None, clock: Clock) -> Iterator[Tensor]:
    """The frames of the file, uint8 chunks [t, H, W, 3].

    decoded: chunks [t, H, W, 3] in 0..1 of the grid. All frames are of the size of the file where frames of a source
    are among them; otherwise of the size that `Plan.scale_from` says, as ffmpeg scales them while it writes.
    """
    made = _Made(plan, decoded, upscaler, clock)
    edit = plan.request.edit
    for piece in plan.timeline.pieces:
        if piece.source is None:
            yield from made.piece(piece)
        else:
            assert edit is not None
            yield from source_frames(edit, piece.source, plan.request.size)


def source_frames(edit: Edit, number: int, size: VideoSize) -> Iterator[Tensor]:
    """All frames of a source. Those of the first are never scaled: `size` is its own, but for an odd side."""
    path = edit.sources[number].path
    if number:
        _, chunks = read_video(path, width=size.width, height=size.height, fps=size.fps, fit=edit.fit)
    else:
        _, chunks = read_video(path, fps=size.fps)
    for chunk in chunks:
        yield chunk[:, : size.height, : size.width]


def source_frame(plan: Plan, given: Given, number: int, height: int, width: int) -> Tensor:
    """Frame `number` of a given source [height, width, 3] in 0..1, as the file has it where it has that source."""
    edit, size = plan.request.edit, plan.request.size
    assert edit is not None
    source = edit.sources[given.source]
    sides = {} if plan.has_source_pieces and not given.source else {"width": width, "height": height}
    number = min(number, source.num_frames - 1)
    _, chunks = read_video(source.path, fps=size.fps, fit=edit.fit, first=number, count=1, **sides)
    return torch.cat(list(chunks))[0, :height, :width].float() / 255


class _Made:
    """The frames of the timeline, which come once and in order."""

    def __init__(self, plan: Plan, decoded: Iterator[Tensor], upscaler: Upscaler | None, clock: Clock) -> None:
        self.plan, self.clock = plan, clock
        pictures = (plan.grid.crop_frames(chunk) for chunk in decoded)
        self.chunks = upscaler(pictures) if upscaler is not None else pictures
        self.waiting: Tensor | None = None
        self.next = 0

    def piece(self, piece: Piece) -> Iterator[Tensor]:
        """Chunks uint8 [t, H, W, 3] of a piece; beside given frames that the file has from a source, it is joined."""
        before, after = neighbours(self.plan.timeline, piece)
        chunks = self.frames(piece.first, piece.count)
        if before is not None or after is not None:
            chunks = hand_over(
                chunks,
                None if before is None else partial(self.join, before, piece.first - 1, -1),
                None if after is None else partial(self.join, after, after.start, 1),
                float(self.plan.request.size.fps),
            )
        while True:
            with self.clock.timed("decode"):
                chunk = next(chunks, None)
                frames = None if chunk is None else to_uint8(chunk)
            if frames is None:
                return
            yield frames

    def join(self, given: Given, number: int, away: int) -> Join:
        """Frame `number` of the timeline, which is a given one, as it is decoded and as it came.

        away: 1 where the source lies after the join, -1 where before.
        """
        decoded = next(self.frames(number, 1))[0]
        here, edit = given.first + number - given.start, self.plan.request.edit
        assert edit is not None
        source = source_frame(self.plan, given, here, *decoded.shape[:2]).to(decoded)
        if not 0 <= here + away < edit.sources[given.source].num_frames:
            return Join(decoded, source)
        return Join.of(decoded, source, source_frame(self.plan, given, here + away, *decoded.shape[:2]).to(decoded))

    def frames(self, first: int, count: int) -> Iterator[Tensor]:
        """Frames first .. first + count as floats in 0..1; those before them are passed over."""
        end = first + count
        while self.next < end:
            chunk = self.waiting if self.waiting is not None else next(self.chunks, None)
            if chunk is None:
                return  # `write_video` tells how many are missing
            taken = chunk[: end - self.next]
            self.waiting = chunk[len(taken) :] if len(taken) < len(chunk) else None
            shown = taken[max(0, first - self.next) :]
            self.next += len(taken)
            if len(shown):
                yield from self._sized(shown)

    def _sized(self, frames: Tensor) -> Iterator[Tensor]:
        """Of the size of the file where frames of a source have it; scaled one by one, as they may grow large."""
        size = self.plan.request.size
        if not self.plan.has_source_pieces or frames.shape[1:3] == (size.height, size.width):
            yield frames
            return
        for picture in frames.permute(0, 3, 1, 2).split(1):
            scaled = F.interpolate(picture, (size.height, size.width), mode="bicubic", antialias=True)
            yield scaled.clamp_(0, 1).permute(0, 2, 3, 1)


def audio_of(plan: Plan) -> list[Audio]:
    """The sound of the sources, each where its frames stand. A restyled video keeps that of what it was."""
    edit, size = plan.request.edit, plan.request.size
    if edit is None or edit.verb == "animate":
        return []
    if plan.timeline.from_source:
        return [Audio(edit.sources[0].path, Fraction(0))]
    tracks, done = [], 0
    for piece in plan.timeline.pieces:
        if piece.source is not None:
            tracks.append(Audio(edit.sources[piece.source].path, done / size.fps))
        done += piece.count
    return tracks


def seam_of(request: Request, path: Path, listen: Listener) -> float | None:
    """How visible the step from the last frame of a loop back to its first is, as players show the file at `path`.

    See `seam_score`. It is told, too. None where the video is no loop.
    """
    if request.edit is None or request.edit.verb != "loop":
        return None
    seam = round(seam_score(read_video(path)[1]), 2)
    listen(Note(f"seam {seam:.2f}: the step from the last frame to the first, in usual steps; 1 or less is not seen"))
    return seam
