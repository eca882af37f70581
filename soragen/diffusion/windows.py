"""Videos longer than a checkpoint was trained on: windows of the trained length, each continuing what is there already.

What a window finds given, or made by the windows before it, is known to it; the rest it makes. So a video grows forward
from a given beginning, backward from a given end, and towards both where both are given.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Window:
    """Latent frames start .. stop of the video are denoised at once, of which new_start .. new_stop are kept."""

    start: int
    stop: int
    new_start: int
    new_stop: int

    @property
    def frames(self) -> slice:
        return slice(self.start, self.stop)

    @property
    def new(self) -> slice:
        return slice(self.new_start, self.new_stop)

    @property
    def new_in_window(self) -> slice:
        """The same frames, counted from the window's own first one."""
        return slice(self.new_start - self.start, self.new_stop - self.start)


def lay_windows(latent_frames: int, length: int, overlap: int) -> tuple[Window, ...]:
    """The fewest windows of `length` that cover `latent_frames` and share at least `overlap` with their neighbour.

    What is left over is shared evenly, so that no window has much less to add than another. A video that fits is one
    window. Raises ValueError for an overlap that is not shorter than a window.
    """
    if not 0 < overlap < length:
        raise ValueError(f"windows of {length} cannot share {overlap} frames")
    if latent_frames <= length:
        return (Window(0, latent_frames, 0, latent_frames),)
    way = latent_frames - length  # from the start of the first window to that of the last
    num_moves = -(-way // (length - overlap))
    starts = [way * move // num_moves for move in range(num_moves + 1)]
    stops = [0, *(start + length for start in starts)]
    pairs = zip(starts, stops, strict=False)
    return tuple(Window(start, start + length, stop, start + length) for start, stop in pairs)


def lay_windows_between(
    latent_frames: int, length: int, overlap: int, known_end: int, *, at_once: bool = True
) -> tuple[Window, ...]:
    """As `lay_windows`, where the last `known_end` frames are given: the last window gets all its room to reach them.

    It begins `overlap` frames before what it makes. at_once: the end is known from the start, so that a video that fits
    is one window; otherwise only after the first one. Raises ValueError where the end leaves nothing to make.
    """
    if overlap + known_end >= min(length, latent_frames):
        raise ValueError(f"windows of {length} have no room between {overlap} known frames and {known_end}")
    if latent_frames <= length and at_once:
        return lay_windows(latent_frames, length, overlap)
    length = min(length, latent_frames)
    start = latent_frames - length
    last = Window(start, latent_frames, start + overlap, latent_frames)
    if last.new_start <= length:  # one window comes before it, and makes more than it may keep
        return (Window(0, length, 0, last.new_start), last)
    return (*lay_windows(last.new_start, length, overlap), last)


def lay_windows_backward(latent_frames: int, length: int, overlap: int) -> tuple[Window, ...]:
    """As `lay_windows`, for a video whose end is given: the last window comes first.

    A causal VAE holds a single frame in the first latent frame of a video. A window begins like a video, so what it
    makes of its first latent frame is left to the window before it, which makes a whole one of it.
    """
    forward = lay_windows(latent_frames, length, overlap)
    windows, made_from = [], latent_frames
    for window in reversed(forward):
        new_start = window.start + 1 if window.start else 0
        windows.append(Window(window.start, window.stop, new_start, made_from))
        made_from = new_start
    return tuple(windows)
