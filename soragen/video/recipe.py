"""The recipe inside a video file or a picture: how it was made, as JSON in the comment of its metadata.

The comment is the one field that players show, that survives remuxing, and that has no limit of length. It goes in
through an ffmetadata file: a prompt may be longer than a command line argument (128 KB on Linux). It is read from the
file itself rather than by ffmpeg: exact to the byte, in well under a millisecond, with no program to be found, and
a file that is cut off is noticed, of which ffmpeg says nothing as long as the index is whole.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from soragen.video.boxes import is_mp4, read_comment
from soragen.video.ebml import is_matroska, read_matroska_comment
from soragen.video.facts import video_facts
from soragen.video.ffmpeg import local_file
from soragen.video.pictures import is_picture, read_picture_comment

_KEY = "soragen"


def to_comment(recipe: dict[str, Any]) -> str:
    """The comment with `recipe`. Its JSON is ASCII, so that every character of a prompt survives."""
    return json.dumps({_KEY: recipe}, ensure_ascii=True, separators=(",", ":"))


def to_ffmetadata(recipe: dict[str, Any]) -> str:
    """The text of an ffmetadata file with `recipe`."""
    escaped = re.sub(r"([=;#\\])", r"\\\1", to_comment(recipe))
    return f";FFMETADATA1\ncomment={escaped}\n"


def read_recipe(path: Path) -> dict[str, Any] | None:
    """The recipe of the video or picture at `path`, None when it holds none.

    Raises InputError when there is no such file, or it is empty, cut off, or not a video.
    """
    if is_mp4(local_file(path)):
        comment = read_comment(path)
    elif is_matroska(path):
        comment = read_matroska_comment(path)
    elif is_picture(path):
        comment = read_picture_comment(path)
    else:
        video_facts(path)  # not a video: InputError
        return None
    try:
        found = json.loads(comment) if comment else None
    except (ValueError, RecursionError):  # a comment of somebody else's
        return None
    recipe = found.get(_KEY) if isinstance(found, dict) else None
    return recipe if isinstance(recipe, dict) else None
