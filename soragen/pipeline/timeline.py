"""What a verb comes to in time: which frames are rendered, which of them are given, and what the file is made of.

Every verb is the same denoising over a timeline of rendered frames; they differ in the frames that are given on it and
in what is taken from it. Given frames are context: the file holds the source's own frames, never their copy out of
the VAE.

All later given frames begin where a latent frame begins: the first latent frame of a causal VAE holds one frame, each
further one `stride`. What does not fit evenly is rendered beyond the source's first frames and dropped for them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from soragen.checkpoint import Checkpoint
from soragen.diffusion.grid import Compression
from soragen.errors import InputError
from soragen.request import Edit, Request


@dataclass(frozen=True)
class Given:
    """Frames first .. first + count of source number `source`, which stand at frame `start` of the timeline.

    A source that ends before them holds its last frame.
    """

    source: int
    first: int
    count: int
    start: int


@dataclass(frozen=True)
class Piece:
    """A part of the file: `count` frames from `first` on, of a source, or of the timeline where source is None."""

    first: int
    count: int
    source: int | None = None


@dataclass(frozen=True)
class Timeline:
    """num_frames: rendered. given: context. pieces: of the file, in order.

    from_source: the timeline is source 0 itself, and is denoised from a noisy copy of it (restyle).
    num_cyclic: latent frames after the first that come again at the end, so that the video can follow upon itself.
    grows_backward: the beginning is what is made.
    """

    num_frames: int
    pieces: tuple[Piece, ...]
    given: tuple[Given, ...] = ()
    from_source: bool = False
    num_cyclic: int = 0
    grows_backward: bool = False

    def shows(self, frame: int) -> bool:
        """Whether frame number `frame` of the timeline is in the file, as the VAE gives it back."""
        return any(p.source is None and p.first <= frame < p.first + p.count for p in self.pieces)

    @property
    def has_given_end(self) -> bool:
        return self.num_cyclic > 0 or (not self.grows_backward and any(given.start > 0 for given in self.given))


@dataclass(frozen=True)
class Room:
    """What a checkpoint can take at once.

    window: latent frames it was trained on. single: given frames are single pictures, first and last of the timeline.
    anywhere: it was trained with given frames in any place.
    """

    compression: Compression
    window: int
    single: bool
    anywhere: bool = True

    def prefix(self, available: int, fps: float, *, between: bool = False) -> int:
        """Frames of a source's end as context: its last second, as far as half a window holds it, at least one.

        between: a given end follows, so that a latent frame fewer leaves room to reach it.
        """
        stride = self.compression.stride[0]
        groups = min(max(1, int(fps / stride)), self.window // 2 - between, (available - 1) // stride)
        return 1 if self.single else 1 + max(0, groups) * stride

    def suffix(self, available: int, fps: float, share: int) -> int:
        """Frames of a source's beginning as context: at most `1 / share` of a window, whole latent frames.

        One of them at the least, even where fewer are `available`.
        """
        stride = self.compression.stride[0]
        groups = min(round(fps / stride), self.window // share, available // stride)
        return 1 if self.single else max(1, groups) * stride

    def place(self, frame: int) -> int:
        """Where given frames stand that come at `frame` >= 1 or soon after.

        It is the next first frame of a latent frame; for a single picture the next last one, as that ends the timeline.
        """
        stride = self.compression.stride[0]
        return -(-frame // stride) * stride if self.single else 1 + -(-(frame - 1) // stride) * stride


def room_of(checkpoint: Checkpoint, compression: Compression) -> Room:
    window = compression.latent_frames(checkpoint.native.max_num_frames)
    able = checkpoint.abilities
    return Room(compression, window, single=not able.any_frames and not able.text, anywhere=able.any_frames)


def lay_timeline(request: Request, room: Room) -> Timeline:
    """The timeline of what is asked. Raises InputError for an edit that leaves nothing to make."""
    num_frames, edit = request.size.num_frames, request.edit
    if edit is None:
        return Timeline(num_frames, (Piece(0, num_frames),))
    return LAYOUTS[edit.verb](request, edit, room)


def _extend(request: Request, edit: Edit, room: Room) -> Timeline:
    (source,) = edit.sources
    new, fps = _new_frames(request, edit), float(request.size.fps)
    if not edit.backward:
        context = room.prefix(source.num_frames, fps)
        given = Given(0, source.num_frames - context, context, 0)
        return Timeline(context + new, (Piece(0, source.num_frames, 0), Piece(context, new)), (given,))
    start, context = room.place(new), room.suffix(source.num_frames, fps, share=2)
    pieces = (Piece(start - new, new), Piece(0, source.num_frames, 0))
    return Timeline(start + context, pieces, (Given(0, 0, context, start),), grows_backward=True)


def _connect(request: Request, edit: Edit, room: Room) -> Timeline:
    before, after = edit.sources
    middle, given = _bridge(request, edit, room, before.num_frames, len(edit.sources) - 1)
    pieces = (Piece(0, before.num_frames, 0), middle, Piece(0, after.num_frames, 1))
    return Timeline(given[1].start + given[1].count, pieces, given)


def _loop(request: Request, edit: Edit, room: Room) -> Timeline:
    if edit.sources:
        (source,) = edit.sources
        middle, given = _bridge(request, edit, room, source.num_frames, 0)
        return Timeline(given[1].start + given[1].count, (Piece(0, source.num_frames, 0), middle), given)
    stride, num_frames = room.compression.stride[0], request.size.num_frames
    if num_frames % stride or num_frames < 2 * stride:
        near = max(2, round(num_frames / stride)) * stride
        raise InputError(f"a loop of {num_frames} frames cannot close", f"use --frames {near}: a multiple of {stride}")
    if not room.anywhere or room.window < 4:
        raise InputError(f"{request.checkpoint} cannot be given frames within a clip", "use --model pocket")
    cyclic = max(1, min(room.window // 4, num_frames // stride - 1))
    # Shown is each latent frame once, but the very first, which holds a single frame. Those that come again are shown
    # as they come again: then the video ends with what came before its first frame. It begins with the last frame of a
    # latent frame: those of one follow each other more smoothly than two latent frames do, and the last is the surest.
    start = 1 + cyclic * stride
    return Timeline(start + num_frames, (Piece(start - 1, num_frames),), num_cyclic=cyclic)


def _bridge(request: Request, edit: Edit, room: Room, ends: int, to: int) -> tuple[Piece, tuple[Given, Given]]:
    """What is made between the end of source 0, which has `ends` frames, and the beginning of source `to`."""
    new, fps = _new_frames(request, edit), float(request.size.fps)
    context = room.prefix(ends, fps, between=True)
    start = room.place(context + new)
    skipped = start - (context + new)  # frames of the second source that a latent frame with new ones holds
    context_after = room.suffix(edit.sources[to].num_frames - skipped, fps, share=4)
    return Piece(context, new), (Given(0, ends - context, context, 0), Given(to, skipped, context_after, start))


def _animate(request: Request, edit: Edit, room: Room) -> Timeline:
    num_frames = request.size.num_frames
    first = Given(0, 0, 1, 0)
    if len(edit.sources) == 1:
        return Timeline(num_frames, (Piece(0, num_frames),), (first,))
    if not room.single:  # the latent frame that holds the last frame stands still
        return Timeline(num_frames, (Piece(0, num_frames),), (first, Given(1, 0, 1, num_frames - 1)))
    end = room.place(num_frames - 1)
    pieces = (Piece(0, num_frames - 1), Piece(end, 1))
    return Timeline(end + 1, pieces, (first, Given(1, 0, 1, end)))


def _continue(request: Request, edit: Edit, room: Room) -> Timeline:
    """As `_extend`, for a file of the new frames alone."""
    (source,) = edit.sources
    context, new = room.prefix(source.num_frames, float(request.size.fps)), request.size.num_frames
    given = Given(0, source.num_frames - context, context, 0)
    return Timeline(context + new, (Piece(context, new),), (given,))


def _restyle(request: Request, edit: Edit, room: Room) -> Timeline:
    num_frames = request.size.num_frames
    if edit.strength == 0:
        return Timeline(num_frames, (Piece(0, num_frames, 0),))
    return Timeline(num_frames, (Piece(0, num_frames),), from_source=True)


def _new_frames(request: Request, edit: Edit) -> int:
    new = request.size.num_frames - sum(source.num_frames for source in edit.sources)
    if new < 1:
        raise InputError(f"{edit.verb} has no frame to make", f"use --seconds {1 / request.size.fps} or more")
    return new


LAYOUTS: dict[str, Callable[[Request, Edit, Room], Timeline]] = {
    "extend": _extend,
    "continue": _continue,
    "connect": _connect,
    "loop": _loop,
    "animate": _animate,
    "restyle": _restyle,
}
