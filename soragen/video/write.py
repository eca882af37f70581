"""Frames → a video file or a picture, through ffmpeg's pipe. It appears under its name when it is whole, or never."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import stat
import subprocess
from collections.abc import Callable, Iterable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

from soragen.errors import NumericalError, OutputError, ResourceError, SoragenError
from soragen.leftovers import leftover
from soragen.size import VideoSize
from soragen.video.facts import video_facts
from soragen.video.ffmpeg import Ffmpeg
from soragen.video.formats import format_of
from soragen.video.naming import next_free
from soragen.video.pictures import put_comment
from soragen.video.recipe import to_comment, to_ffmetadata

if TYPE_CHECKING:
    from torch import Tensor

_SPARE_BYTES = 16 << 20
_NO_SPACE = ("No space left on device", "Disk quota exceeded")


def check_output(path: Path, *, size: VideoSize | None = None, overwrite: bool = False, bytes_beside: int = 0) -> None:
    """Finds out before any work whether a video of `size` can be written to `path`, by writing one black frame there.

    That frame goes the way of a whole video: same folder, ffmpeg, encoder, size and frame rate; then it is removed.
    bytes_beside: of other files that the run writes into the same folder.
    Raises InputError (ending, odd side), OutputError (folder, existing file, ffmpeg) or ResourceError (disk).
    """
    size = size or VideoSize(64, 64, 1, Fraction(24))
    form = format_of(path, size)
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
    trial = VideoSize(size.width, size.height, 1, size.fps)
    with _unfinished(path) as part:
        _encode(part, [memoryview(bytes(16 * 16 * 3))], trial, (16, 16), recipe={})
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
) -> Path:
    """Writes `frames` to `path` as they come, and returns where they are.

    frames: chunks [t, H, W, 3] uint8, `size.num_frames` in all, of H, W = `size` or of `scale_from` (width, height);
    then ffmpeg enlarges them in the same stream. recipe: kept in the file, see `recipe.py`; None leaves no trace.
    on_frames: called with the number of frames written so far.

    If `path` has been taken by now and `overwrite` is off, the video goes to the next free name (`x-2.mp4`): it may
    have taken hours. On any exception, Ctrl-C too, ffmpeg is ended and nothing is left behind. Raises OutputError,
    ResourceError (disk full), SoragenError (frames that are not as said), and whatever `frames` raises.
    """
    source = scale_from or (size.width, size.height)
    with _unfinished(path) as part:
        _encode(part, _pixels(frames, source, size.num_frames, on_frames), size, source, recipe)
        still = format_of(part, size).still
        if still and recipe is not None:
            with _writing_in(part):
                put_comment(part, to_comment(recipe), size.width, size.height)
        written = video_facts(part)
        fps = size.fps if still else written.fps
        asked = (size.width, size.height, size.num_frames, size.fps)
        if (written.width, written.height, written.num_frames, fps) != asked:
            raise OutputError(f"ffmpeg wrote {written} where {size} was asked", "set IMAGEIO_FFMPEG_EXE to another one")
        with _writing_in(part):
            return publish(part, path, overwrite)


def to_uint8(frames: Tensor) -> Tensor:
    """Floats in 0..1 to 0..255, rounded; what lies outside is cut off. Raises NumericalError for nan or infinity."""
    import torch

    if not bool(torch.isfinite(frames).all()):
        raise NumericalError("the decoder returned frames that are not finite", "try --dtype float32, or another seed")
    return frames.float().clamp(0, 1).mul(255).round().to(torch.uint8)


def _pixels(
    frames: Iterable[Tensor], source: tuple[int, int], num_frames: int, on_frames: Callable[[int], None] | None
) -> Iterator[memoryview]:
    """The bytes of each chunk, checked. Raises SoragenError: a wrong frame is a bug of the program, not of its user."""
    import torch

    done = 0
    for chunk in frames:
        if chunk.ndim != 4 or tuple(chunk.shape[1:]) != (source[1], source[0], 3) or chunk.dtype != torch.uint8:
            expected = f"[t, {source[1]}, {source[0]}, 3] uint8"
            raise SoragenError(f"frames are {list(chunk.shape)} {chunk.dtype} where {expected} was promised")
        if done + len(chunk) > num_frames:
            raise SoragenError(f"more than the {num_frames} frames that were promised")
        if len(chunk):
            yield chunk.cpu().contiguous().numpy().data.cast("B")
            done += len(chunk)
            if on_frames is not None:
                on_frames(done)
    if done != num_frames:
        raise SoragenError(f"{done} frames where {num_frames} were promised")


def _encode(
    part: Path,
    pixels: Iterable[memoryview],
    size: VideoSize,
    source: tuple[int, int],
    recipe: dict[str, Any] | None,
) -> None:
    form = format_of(part, size)
    raw = ["-f", "rawvideo", "-pixel_format", "rgb24", "-video_size", f"{source[0]}x{source[1]}"]
    rate = f"{size.fps.numerator}/{size.fps.denominator}"
    metadata = _metadata_file(part)
    inputs = [*raw, "-framerate", rate, "-i", "pipe:0"]
    if recipe is not None:
        with _writing_in(part):
            metadata.write_text(to_ffmetadata(recipe), encoding="ascii", newline="\n")
        inputs += ["-f", "ffmetadata", "-i", f"file:{metadata.absolute()}"]
    chosen = ["-map", "0:v", "-map_metadata", "-1" if recipe is None else "1", "-fflags", "+bitexact"]
    output = ["-vf", form.filters(size), *form.arguments(size), "-y", f"file:{part.absolute()}"]
    with Ffmpeg([*inputs, *chosen, *output], stdin=subprocess.PIPE) as ffmpeg:
        assert ffmpeg.process.stdin is not None
        for chunk in pixels:
            try:
                ffmpeg.process.stdin.write(chunk)
            except OSError:  # ffmpeg has ended: it says why below
                break
        failure = ffmpeg.failure()
    if failure is not None:
        if any(words in failure for words in _NO_SPACE):
            raise ResourceError(f"the disk is full: {part.absolute().parent}", "free some space")
        raise OutputError(f"ffmpeg could not write the video: {failure}", "run `soragen doctor`")


@contextlib.contextmanager
def _writing_in(part: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise OutputError(
            f"cannot write in {part.absolute().parent}: {error.strerror}", "use another folder"
        ) from error


def _metadata_file(part: Path) -> Path:
    return part.with_suffix(".txt")


@contextlib.contextmanager
def _unfinished(path: Path) -> Iterator[Path]:
    """A hidden name beside `path`, so that the last step is a rename; removed in any case at the end."""
    part = path.with_name(f".{path.stem[:40]}.{secrets.token_hex(4)}.part{path.suffix}")

    def remove() -> None:
        for file in (part, _metadata_file(part)):
            with contextlib.suppress(OSError):
                file.unlink(missing_ok=True)

    try:
        with leftover(remove):
            yield part
    finally:
        remove()


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
