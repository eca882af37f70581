"""Videos longer than a checkpoint was trained on: windows of the trained length, each continuing the one before."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Window:
    """Latent frames start .. stop of the video; the first `num_known` of them were made by the window before."""

    start: int
    stop: int
    num_known: int

    @property
    def frames(self) -> slice:
        return slice(self.start, self.stop)


def lay_windows(latent_frames: int, length: int, overlap: int) -> tuple[Window, ...]:
    """The fewest windows of `length` that cover `latent_frames` and share at least `overlap` with their neighbour.

    What is left over is shared evenly, so that no window has much less to add than another. A video that fits is one
    window. Raises ValueError for an overlap that is not shorter than a window.
    """
    if not 0 < overlap < length:
        raise ValueError(f"windows of {length} cannot share {overlap} frames")
    if latent_frames <= length:
        return (Window(0, latent_frames, 0),)
    way = latent_frames - length  # from the start of the first window to that of the last
    num_moves = -(-way // (length - overlap))
    starts = [way * move // num_moves for move in range(num_moves + 1)]
    stops = [0, *(start + length for start in starts)]
    return tuple(Window(start, start + length, stop - start) for start, stop in zip(starts, stops, strict=False))
