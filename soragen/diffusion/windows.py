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
    """Windows of `length` that cover `latent_frames` and share `overlap` latent frames with their neighbour.

    The last one is of full length too, and shares more where it must. A video that fits is one window.
    """
    if not 0 < overlap < length:
        raise ValueError(f"windows of {length} cannot share {overlap} frames")
    if latent_frames <= length:
        return (Window(0, latent_frames, 0),)
    windows = [Window(0, length, 0)]
    while (done := windows[-1].stop) < latent_frames:
        stop = min(done - overlap + length, latent_frames)
        windows.append(Window(stop - length, stop, done - (stop - length)))
    return tuple(windows)
