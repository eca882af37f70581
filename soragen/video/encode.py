"""Frames → bytes → ffmpeg → a file: the commands, and what went wrong in them."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

from soragen.errors import OutputError, ResourceError, SoragenError
from soragen.size import VideoSize
from soragen.video.audio import Audio, audio_arguments, find_tracks
from soragen.video.ffmpeg import Ffmpeg
from soragen.video.formats import Format, format_of
from soragen.video.pictures import put_comment
from soragen.video.recipe import to_comment, to_ffmetadata
from soragen.video.unfinished import FRAMES, METADATA, PALETTE, writing_in

if TYPE_CHECKING:
    from torch import Tensor

_NO_SPACE = ("No space left on device", "Disk quota exceeded")
_FASTEST_GIF = Fraction(50)  # browsers show a frame of one hundredth of a second for ten


def pixels_of(
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


def encode(
    part: Path,
    pixels: Iterable[memoryview],
    size: VideoSize,
    source: tuple[int, int],
    recipe: dict[str, Any] | None,
    *,
    lossless: bool = False,
    audio: Sequence[Audio] = (),
) -> None:
    """Writes the file `part`, in the format of its ending, with `recipe` in it.

    pixels: RGB bytes, 8 bits each, of frames of `source` (width, height), enlarged to `size`.
    Raises InputError (audio), OutputError, ResourceError (disk full), and whatever `pixels` raises.
    """
    form = format_of(part, size, lossless=lossless)
    if form.palette:
        _encode_with_palette(part, pixels, size, source, form)
    else:
        metadata = part.with_suffix(METADATA)
        inputs = _raw(source, size.fps)
        if recipe is not None:
            with writing_in(part):
                metadata.write_text(to_ffmetadata(recipe), encoding="ascii", newline="\n")
            inputs += ["-f", "ffmetadata", "-i", f"file:{metadata.absolute()}"]
        heard, sound = audio_arguments(
            find_tracks(audio) if form.sounds else [],
            first_input=1 if recipe is None else 2,
            seconds=size.seconds,
            suffix=form.suffix,
            lossless=lossless,
        )
        chosen = ["-map", "0:v", "-map_metadata", "-1" if recipe is None else "1", "-fflags", "+bitexact"]
        chosen += ["-map_chapters", "-1", *sound, "-vf", form.filters(size)]
        _run(part, [*inputs, *heard, *chosen, *form.arguments(size), "-y", _url(part)], pixels)
    if recipe is not None and not form.sounds:
        with writing_in(part):
            put_comment(part, to_comment(recipe), size.width, size.height)


def _encode_with_palette(
    part: Path, pixels: Iterable[memoryview], size: VideoSize, source: tuple[int, int], form: Format
) -> None:
    """Two runs: the palette is known only after the last frame, and the frames wait on disk rather than in memory."""
    frames, palette = part.with_suffix(FRAMES), part.with_suffix(PALETTE)
    slower = replace(size, fps=min(size.fps, _FASTEST_GIF))
    lossless = format_of(frames, slower, lossless=True)
    graph = f"[0:v]{form.filters(slower)},split[a][b];[b]palettegen[p]"
    whole = ["-map", "[a]", *lossless.arguments(slower), "-pix_fmt", "bgr0", "-fflags", "+bitexact", "-y", _url(frames)]
    colours = ["-map", "[p]", "-frames:v", "1", "-c:v", "png", "-f", "image2pipe", "-y", _url(palette)]
    _run(part, [*_raw(source, slower.fps), "-filter_complex", graph, *whole, *colours], pixels)
    # "rectangle": what does not change is not dithered anew, and so is neither restless nor stored
    drawn = ["-filter_complex", "[0:v][1:v]paletteuse=diff_mode=rectangle", "-fps_mode", "passthrough"]
    inputs = ["-f", "matroska", "-i", _url(frames), "-f", "png_pipe", "-i", _url(palette)]
    _run(part, [*inputs, *drawn, *form.arguments(slower), "-y", _url(part)], ())


def _raw(source: tuple[int, int], fps: Fraction) -> list[str]:
    raw = ["-f", "rawvideo", "-pixel_format", "rgb24", "-video_size", f"{source[0]}x{source[1]}"]
    return [*raw, "-framerate", f"{fps.numerator}/{fps.denominator}", "-i", "pipe:0"]


def _url(path: Path) -> str:
    return f"file:{path.absolute()}"


def _run(part: Path, command: list[str], pixels: Iterable[memoryview]) -> None:
    with Ffmpeg(command, stdin=subprocess.PIPE) as ffmpeg:
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
