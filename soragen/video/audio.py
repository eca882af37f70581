"""The sound of other files, beside new pictures: copied as it is where that can be, else mixed and encoded once."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

from soragen.errors import InputError
from soragen.video.ffmpeg import INPUT, Ffmpeg, local_file, named_input
from soragen.video.whole import check_whole

# What players take in each container (MP4), or ffmpeg can put there (Matroska).
_COPIED = {
    ".mp4": {"aac", "mp3", "ac3", "opus"},
    ".mkv": {"aac", "mp3", "mp2", "ac3", "eac3", "dts", "truehd", "opus", "vorbis", "flac", "alac"}
    | {"pcm_u8", "pcm_s16le", "pcm_s24le", "pcm_s32le", "pcm_f32le"},
}
_ENCODED = ["-c:a", "aac", "-b:a", "192k"]
_ENCODED_LOSSLESS = ["-c:a", "flac"]
_FEW_PACKETS = 4  # a video that is shorter: nothing is lost by encoding
_UNHEARD = Fraction(1, 20)


@dataclass(frozen=True)
class Audio:
    """The sound of the file at `path`, if it has any: its first audio stream.

    start: seconds from the start of the output at which that file begins, its pictures and its sound alike. The sound
    stays beside the pictures as it is in the file; what a negative start puts before the output is cut off.
    """

    path: Path
    start: Fraction


@dataclass(frozen=True)
class Track:
    """A file that does have sound. codec: ffmpeg's name. packet: seconds that the longest of its packets lasts.

    begin: seconds after the first picture of the file at which its sound begins; may be negative.
    before: seconds after the file's start at which its first picture is shown, which is mostly 0.
    """

    audio: Audio
    codec: str
    packet: Fraction
    begin: Fraction
    before: Fraction


def find_tracks(audio: Sequence[Audio]) -> list[Track]:
    """The files that have sound. Raises InputError for one that is missing, cut off, or not readable."""
    return [track for one in audio if (track := _track(one)) is not None]


def _track(audio: Audio) -> Track | None:
    check_whole(local_file(audio.path))
    heard, said, failure = _begin(audio.path, "-map", "0:a:0", "-frames:a", "8")  # decoded: what is silent is skipped
    codec = re.search(r"^  Stream #0:\S+ Audio: (\w+)", said, re.MULTILINE)
    if codec is None and "Input #0" in said:
        return None
    if codec is None or failure is not None:
        raise InputError(f"the sound of {audio.path} cannot be read: {failure}", "give a file without sound")
    if not heard:
        return None
    seen, _, _ = _begin(audio.path, "-map", "0:v:0", "-c", "copy", "-frames:v", "1")
    before = seen[0][0] if seen else Fraction(0)
    packet = max(seconds for _, seconds in heard)
    return Track(audio=audio, codec=codec[1], packet=packet, begin=heard[0][0] - before, before=before)


def _begin(path: Path, *arguments: str) -> tuple[list[tuple[Fraction, Fraction]], str, str | None]:
    """(time and length in seconds of the first packets of a stream, ffmpeg's words on the file, what went wrong)."""
    found: list[tuple[Fraction, Fraction]] = []
    clock = Fraction(1)
    command = [*INPUT, *arguments, "-f", "framecrc", "pipe:1"]
    with path.open("rb") as file, Ffmpeg(command, stdin=file, stdout=subprocess.PIPE, level="info") as ffmpeg:
        assert ffmpeg.process.stdout is not None
        for raw in ffmpeg.process.stdout:
            line = raw.decode("ascii", "replace").strip()
            if line.startswith("#tb 0: "):
                clock = Fraction(line.removeprefix("#tb 0: "))
            elif not line.startswith("#"):  # stream, dts, pts, duration, size, checksum, flags
                shown_at, duration = (int(column) for column in line.split(",")[2:4])
                found.append((shown_at * clock, duration * clock))
        failure = ffmpeg.failure()
    return found, "\n".join(ffmpeg.log).partition("\nOutput #0")[0], failure


def audio_arguments(
    tracks: Sequence[Track], *, first_input: int, seconds: Fraction, suffix: str, lossless: bool
) -> tuple[list[str], list[str]]:
    """(the inputs, the outputs) for ffmpeg: `tracks` from input number `first_input` on, for `seconds` at most."""
    if not tracks:
        return [], []
    only = tracks[0]
    if (
        len(tracks) == 1
        and only.audio.start == 0
        and only.begin > -_UNHEARD
        and only.codec in _COPIED[suffix]
        and seconds >= _FEW_PACKETS * only.packet
    ):  # a packet is copied whole or not at all: the last one must not begin so late that it ends behind the pictures
        until = _decimal(seconds + only.before - only.packet)
        moved = ["-itsoffset", _decimal(-only.before)] if only.before else []
        return [*moved, "-t", until, *named_input(only.audio.path)], ["-map", f"{first_input}:a:0", "-c:a", "copy"]
    inputs = [argument for track in tracks for argument in named_input(track.audio.path)]
    graph = [
        f"[{first_input + number}:a:0]{_placed(track.audio.start + track.begin)}[s{number}]"
        for number, track in enumerate(tracks)
    ]
    every = "".join(f"[s{number}]" for number in range(len(tracks)))
    mix = f"amix=inputs={len(tracks)}:duration=longest:normalize=0," if len(tracks) > 1 else ""
    graph.append(f"{every}{mix}apad,atrim=end={_decimal(seconds)}[sound]")
    codec = _ENCODED_LOSSLESS if lossless else _ENCODED
    return inputs, ["-filter_complex", ";".join(graph), "-map", "[sound]", *codec, "-flags:a", "+bitexact"]


def _placed(start: Fraction) -> str:
    """A stream whose gaps are filled with silence, and whose first sample is at `start` seconds."""
    steady = "asetpts=PTS-STARTPTS,aresample=async=1"
    if start < 0:
        return f"{steady},atrim=start={_decimal(-start)},asetpts=PTS-STARTPTS"
    return f"{steady},adelay=delays={_decimal(start * 1000)}:all=1" if start else steady


def _decimal(number: Fraction) -> str:
    return f"{float(number):.6f}"
