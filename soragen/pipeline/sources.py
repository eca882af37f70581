"""The files that a verb is given: what they are, and that they are still the same."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

from soragen.errors import InputError
from soragen.pipeline.events import Listener, Note
from soragen.request import Request, Source
from soragen.size import VideoSize, format_fps


def open_clip(path: Path, listen: Listener, fps: Fraction | None = None) -> tuple[Source, VideoSize]:
    """A video, and its size; at `fps` where that is given. Raises InputError for what is none.

    What of it cannot be kept as it is, is a Note to `listen`.
    """
    from soragen.video.facts import video_facts
    from soragen.video.read import frames_of

    facts = video_facts(path)
    if facts.container.endswith("_pipe"):
        raise InputError(f"{path} is a picture where a video is needed", "soragen animate begins with a picture")
    size, _ = frames_of(path, facts, fps=fps)
    if not facts.constant_fps and facts.num_frames > 1:
        rate = format_fps(size.fps)
        listen(
            Note(f"{path.name} has a varying frame rate: read at {rate} fps, some frames may come twice or not at all")
        )
    if re.search(r"(9|10|12|14|16)(le|be)$", facts.pix_fmt):
        listen(Note(f"{path.name} has more than 8 bits a colour: read in 8"))
    return Source(path, hash_of(path), size.num_frames), size


def open_picture(path: Path) -> tuple[Source, VideoSize]:
    """A picture, or the first one of an animated picture, and its size. Raises InputError for what is none."""
    from soragen.video.picture_input import picture_size

    size = picture_size(path)
    return Source(path, hash_of(path), 1), size


def hash_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_sources(request: Request) -> None:
    """Raises InputError where a file that `request` is made of has changed or gone since."""
    if request.edit is not None:
        with_sources(request, [source.path for source in request.edit.sources])


def with_sources(request: Request, paths: Sequence[Path]) -> Request:
    """`request`, out of a recipe, with the files it was made of. Raises InputError where they have changed or gone."""
    if request.edit is None:
        return request
    found = []
    for source, path in zip(request.edit.sources, paths, strict=True):
        if not path.is_file():
            raise InputError(f"{path} is gone, which this video is made of", "put it back")
        if hash_of(path) != source.sha256:
            raise InputError(f"{path} is not the file that this video was made of", "put that one back")
        found.append(replace(source, path=path))
    return replace(request, edit=replace(request.edit, sources=tuple(found)))


def beside(request: Request, folders: Sequence[Path]) -> list[Path]:
    """Where the sources named in a recipe may be: in the first of `folders` that has the file, or one of its name."""
    sources = request.edit.sources if request.edit is not None else ()
    paths = []
    for source in sources:
        name = Path(source.path.name)  # a bare name: a recipe says nothing about where files lie
        there = [folder / name for folder in folders if (folder / name).is_file()] or [folders[0] / name]
        paths.append(next((path for path in there if path.is_file() and hash_of(path) == source.sha256), there[0]))
    return paths
