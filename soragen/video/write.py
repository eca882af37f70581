"""Frames → a video file or a picture, through ffmpeg's pipe. It appears under its name when it is whole, or never."""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
from collections.abc import Callable, Iterable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

from soragen.errors import NumericalError, OutputError, ResourceError
from soragen.size import VideoSize, num_frames_for
from soragen.video.audio import Audio
from soragen.video.encode import encode, pixels_of
from soragen.video.facts import video_facts
from soragen.video.formats import format_of
from soragen.video.naming import next_free
from soragen.video.unfinished import unfinished, writing_in

if TYPE_CHECKING:
    from torch import Tensor

_SPARE_BYTES = 16 << 20
_TRIAL_SECONDS = Fraction(1, 2)


def check_output(
    path: Path,
    *,
    size: VideoSize | None = None,
    overwrite: bool = False,
    bytes_beside: int = 0,
    lossless: bool = False,
    audio: Sequence[Audio] = (),
) -> None:
    """Finds out before any work whether a video of `size` can be written to `path`, by writing one black frame there.

    That frame goes the way of a whole video: same folder, ffmpeg, encoder, size and frame rate; then it is removed.
    With `audio` it is half a second of them. bytes_beside: of other files that the run writes into the same folder.
    Raises InputError (ending, odd side, audio), OutputError (folder, existing file, ffmpeg) or ResourceError (disk).
    """
    size = size or VideoSize(64, 64, 1, Fraction(24))
    form = format_of(path, size, lossless=lossless)
    folder = path.absolute().parent
    try:
        found = path.lstat()
    except FileNotFoundError:
        found = None
    except NotADirectoryError:
        raise OutputError(f"{folder} is not a folder", "give another folder with -o") from None
    except (OSError, ValueError) as error:  # a name that is too long, or has characters that this system refuses
        reason = error.strerror if isinstance(error, OSError) else error
        raise OutputError(f"cannot write {str(path)!r}: {reason}", "give another name with -o") from None
    if found is not None and stat.S_ISDIR(found.st_mode):
        raise OutputError(f"output {path} is a folder", f"give a file in it, such as {path / 'video.mp4'}")
    if found is not None and not overwrite:
        raise OutputError(f"output {path} exists already", "give another name with -o, or move it away")
    if found is not None and not (stat.S_ISREG(found.st_mode) or stat.S_ISLNK(found.st_mode)):
        raise OutputError(f"output {path} is not an ordinary file", "give another name with -o")
    if not folder.is_dir():
        raise OutputError(f"the folder {folder} does not exist", f"run `mkdir -p {folder}`, or give another with -o")
    length = num_frames_for(_TRIAL_SECONDS, size.fps) if audio and form.sounds else 1
    trial = VideoSize(size.width, size.height, length, size.fps)
    black = [memoryview(bytes(16 * 16 * 3))] * length
    with unfinished(path) as part:
        encode(part, black, trial, (16, 16), recipe={}, lossless=lossless, audio=audio)
    needed = int(size.area * size.num_frames * form.bytes_per_pixel) + _SPARE_BYTES + bytes_beside
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise ResourceError(
            f"the video may need {needed / 1e9:.2f} GB, and {folder} has {free / 1e9:.2f} GB free",
            "free some space, or give a folder on another disk with -o",
        )


def write_video(
    path: Path,
    frames: Iterable[Tensor],
    size: VideoSize,
    *,
    recipe: dict[str, Any] | None,
    scale_from: tuple[int, int] | None = None,
    on_frames: Callable[[int], None] | None = None,
    overwrite: bool = False,
    lossless: bool = False,
    audio: Sequence[Audio] = (),
) -> Path:
    """Writes `frames` to `path` as they come, and returns where they are.

    frames: chunks [t, H, W, 3] uint8, `size.num_frames` in all, of H, W = `size` or of `scale_from` (width, height);
    then ffmpeg enlarges them in the same stream. recipe: kept in the file, see `recipe.py`; None leaves no trace.
    on_frames: called with the number of frames written so far. lossless: every pixel comes back as it was, in .mkv.
    audio: sound of other files, mixed; it ends with the video at the latest. A GIF or a picture has none.

    A GIF repeats for ever. It counts hundredths of a second: each frame begins at the one nearest to its time, and what
    is faster than 50 frames a second plays at 50.

    If `path` has been taken by now and `overwrite` is off, the video goes to the next free name (`x-2.mp4`): it may
    have taken hours. On any exception, Ctrl-C too, ffmpeg is ended and nothing is left behind. Raises OutputError,
    ResourceError (disk full), SoragenError (frames that are not as said), and whatever `frames` raises.
    """
    source = scale_from or (size.width, size.height)
    with unfinished(path) as part:
        pixels = pixels_of(frames, source, size.num_frames, on_frames)
        encode(part, pixels, size, source, recipe, lossless=lossless, audio=audio)
        form, written = format_of(part, size, lossless=lossless), video_facts(part)
        in_time = form.still or abs(1 / written.fps - 1 / size.fps) <= form.clock
        whole = (written.width, written.height, written.num_frames) == (size.width, size.height, size.num_frames)
        if not (whole and in_time):
            raise OutputError(f"ffmpeg wrote {written} where {size} was asked", "set IMAGEIO_FFMPEG_EXE to another one")
        with writing_in(part):
            return publish(part, path, overwrite)


def to_uint8(frames: Tensor) -> Tensor:
    """Floats in 0..1 to 0..255, rounded; what lies outside is cut off. Raises NumericalError for nan or infinity."""
    import torch

    if not bool(torch.isfinite(frames).all()):
        raise NumericalError("the decoder returned frames that are not finite", "try --dtype float32, or another seed")
    return frames.float().clamp(0, 1).mul(255).round().to(torch.uint8)


def publish(part: Path, path: Path, overwrite: bool) -> Path:
    """Gives a whole file its name, once its bytes are on the disk. Returns the name."""
    with part.open("r+b") as file:
        os.fsync(file.fileno())
    while not overwrite:
        path = next_free(path)
        try:
            os.link(part, path)  # in one step, and only if nobody else has made such a file
            break
        except FileExistsError:
            continue
        except OSError:  # a disk that has no links (exFAT, some network folders): take the name, then fill it
            with contextlib.suppress(FileExistsError):
                os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
                overwrite = True
    if overwrite:
        part.replace(path)
    if os.name == "posix":
        folder = os.open(path.absolute().parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    return path
