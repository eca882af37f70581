"""The files that can be written: one row of a table for each ending."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

from soragen.errors import InputError
from soragen.size import VideoSize

# ffmpeg's parser rounds a frame rate whose numerator or denominator is larger (av_parse_video_rate).
_LARGEST_FPS_PART = 1_001_000


@dataclass(frozen=True)
class Format:
    """How ffmpeg writes one kind of file.

    filters: from RGB of any size to the pixels that are stored. arguments: codec, tags and container.
    bytes_per_pixel: more than a real video takes, for the question whether the disk is large enough.
    still: a picture, of one frame. palette: of 256 colours, which are chosen when all frames have been seen.
    ffmpeg keeps no comment in either, `pictures.py` does.
    clock: how far, in seconds, the time of one frame may come back from what was asked.
    """

    suffix: str
    filters: Callable[[VideoSize], str]
    arguments: Callable[[VideoSize], list[str]]
    even_sides: bool
    bytes_per_pixel: float
    still: bool = False
    palette: bool = False
    clock: Fraction = Fraction(0)

    @property
    def sounds(self) -> bool:
        """Whether it can hold audio."""
        return not (self.still or self.palette)


def _mp4_filters(size: VideoSize) -> str:
    # bt709, limited range: converted here and tagged below. Colour at half size lies on the left pixel of each two and
    # between two rows, which is where players look for it when nothing is said.
    return (
        f"scale={size.width}:{size.height}:flags=lanczos+accurate_rnd+full_chroma_int+full_chroma_inp"
        ":in_range=full:out_range=limited:out_color_matrix=bt709:out_h_chr_pos=0:out_v_chr_pos=128,format=yuv420p,setsar=1"
        ",setparams=colorspace=bt709:color_primaries=bt709:color_trc=bt709:range=tv"
    )


def _h264(size: VideoSize) -> list[str]:
    codec = ["-c:v", "libx264", "-profile:v", "high", "-preset", "medium", "-crf", "17", "-pix_fmt", "yuv420p"]
    tags = ["-colorspace", "bt709", "-color_primaries", "bt709", "-color_trc", "bt709", "-color_range", "tv"]
    inner_tags = ["-x264-params", "colorprim=bt709:transfer=bt709:colormatrix=bt709:range=tv"]
    return [*codec, *tags, *inner_tags]


def _mp4_arguments(size: VideoSize) -> list[str]:
    ticks = size.fps.numerator * math.ceil(1000 / size.fps.numerator)  # a second in which each frame is whole ticks
    return [*_h264(size), "-movie_timescale", str(ticks), "-movflags", "+faststart", "-f", "mp4"]


def _mkv_arguments(size: VideoSize) -> list[str]:
    return [*_h264(size), "-f", "matroska"]


def _ffv1_arguments(size: VideoSize) -> list[str]:
    # Every frame a key frame, in version 3 with a checksum in each slice (RFC 9043), which is what archives ask for;
    # a frame that is too small for slices, in version 1.
    version = ["-level", "3", "-slicecrc", "1"] if min(size.width, size.height) >= 16 else ["-level", "1"]
    return ["-c:v", "ffv1", *version, "-g", "1", "-f", "matroska"]


def _gif_arguments(size: VideoSize) -> list[str]:
    return ["-c:v", "gif", "-loop", "0", "-f", "gif"]


def _picture_filters(pixels: str) -> Callable[[VideoSize], str]:
    return lambda size: (
        f"scale={size.width}:{size.height}:flags=lanczos+accurate_rnd+full_chroma_int+full_chroma_inp"
        f":in_range=full:{pixels},setsar=1"
    )


def _picture_arguments(*codec: str) -> Callable[[VideoSize], list[str]]:
    # "image2pipe" writes the bytes of the picture as they are; "image2" would look for "%d" in its name
    return lambda size: ["-frames:v", "1", "-flags:v", "+bitexact", "-c:v", *codec, "-f", "image2pipe"]


# A JPEG is bt601 in full range (JFIF), a WebP bt601 in limited range (RFC 6386, 9.2); neither has a tag for it.
_RGB = _picture_filters("out_range=full,format=rgb24")
_JPEG = _picture_filters("out_range=full:out_color_matrix=bt601,format=yuv444p")
_WEBP = _picture_filters("out_range=limited:out_color_matrix=bt601,format=yuv420p")
_AS_PNG = _picture_arguments("png", "-pred", "mixed")
_AS_JPEG = _picture_arguments("mjpeg", "-q:v", "2", "-huffman", "optimal", "-color_range", "pc")
_AS_WEBP = _picture_arguments("libwebp", "-lossless", "0", "-quality", "95", "-compression_level", "6")

_NANOSECONDS = Fraction(2, 10**9)  # Matroska says how long a frame is in whole ones
_LOSSLESS = Format(
    ".mkv", _picture_filters("out_range=full,format=bgr0"), _ffv1_arguments, False, 4, clock=_NANOSECONDS
)
FORMATS = {
    form.suffix: form
    for form in (
        Format(".mp4", _mp4_filters, _mp4_arguments, True, 0.15),
        Format(".mkv", _mp4_filters, _mkv_arguments, True, 0.15, clock=_NANOSECONDS),
        # bytes_per_pixel: of the lossless file between the two runs that a palette takes
        Format(".gif", _RGB, _gif_arguments, False, 4, palette=True, clock=Fraction(1, 50)),
        Format(".png", _RGB, _AS_PNG, False, 4, still=True),
        Format(".jpg", _JPEG, _AS_JPEG, False, 4, still=True),
        Format(".jpeg", _JPEG, _AS_JPEG, False, 4, still=True),
        Format(".webp", _WEBP, _AS_WEBP, False, 4, still=True),
    )
}
PICTURE_SUFFIXES = tuple(suffix for suffix, form in FORMATS.items() if form.still)


def format_of(path: Path, size: VideoSize, *, lossless: bool = False) -> Format:
    """The format that `path` ends in, able to hold `size`. Raises InputError."""
    form = FORMATS.get(path.suffix.lower())
    if form is None:
        known = ", ".join(FORMATS)
        ending = f"ends in {path.suffix!r}" if path.suffix else "has no ending"
        raise InputError(f"output {path.name!r} {ending}, which is not a video format here", f"use one of: {known}")
    if lossless and form.suffix != _LOSSLESS.suffix:
        wrong = f"output {path.name!r} cannot hold a lossless video"
        raise InputError(wrong, f"use {path.with_suffix(_LOSSLESS.suffix).name}, or leave --lossless out")
    form = _LOSSLESS if lossless else form
    if form.still and size.num_frames > 1:
        wrong = f"output {path.name!r} is a picture, which cannot hold {size.num_frames} frames"
        raise InputError(wrong, "use .mp4, or soragen image for one frame")
    if form.even_sides and (size.width % 2 or size.height % 2):
        raise InputError(f"{size.width}x{size.height} has an odd side: {form.suffix} needs even ones", "add one pixel")
    if max(size.fps.numerator, size.fps.denominator) > _LARGEST_FPS_PART:
        plain = size.fps.limit_denominator(1001)
        raise InputError(f"the frame rate {size.fps} has too many digits to be stored exactly", f"use {plain}")
    return form
