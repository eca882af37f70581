"""The name of a video file: from the words of its prompt, valid on every system, never one that is taken."""

from __future__ import annotations

import os
import unicodedata
from pathlib import Path

_MAX_LETTERS = 56
_MAX_BYTES = 160  # in UTF-8; most file systems stop at 255 for the whole name
_APOSTROPHES = "'\u2019"  # "the robot's hat" is "the-robots-hat"


def slug(prompt: str) -> str:
    """Words in small letters joined by "-": letters and digits of any script written left to right, in NFC.

    Right-to-left letters are left out, because beside a seed and ".mp4" they are shown in another order than they are
    stored. "" when nothing is left, as with a prompt of emoji.
    """
    letters: list[str] = []
    for letter in unicodedata.normalize("NFC", prompt.casefold()):
        mark = unicodedata.category(letter).startswith("M") and letters and letters[-1] != "-"
        if mark or (letter.isalnum() and unicodedata.bidirectional(letter) not in ("R", "AL", "AN")):
            letters.append(letter)
        elif letter not in _APOSTROPHES and letters and letters[-1] != "-":
            letters.append("-")
        if len(letters) > 2 * _MAX_LETTERS:
            break
    text = "".join(letters).strip("-")
    if len(text) > _MAX_LETTERS or len(text.encode()) > _MAX_BYTES:
        cut = text[:_MAX_LETTERS].encode()[:_MAX_BYTES].decode("utf-8", "ignore")
        whole_words = cut.rpartition("-")[0]
        text = whole_words if len(whole_words) > len(cut) // 2 else cut
    return text


def next_free(path: Path) -> Path:
    """`path`, or the first of `path-2`, `path-3` … that is not taken."""
    free, number = path, 1
    while os.path.lexists(free):  # a broken link is taken, too
        number += 1
        free = path.with_name(f"{path.stem}-{number}{path.suffix}")
    return free


def default_output(prompt: str, seed: int, folder: Path, suffix: str = ".mp4") -> Path:
    """`folder`/WORDS-OF-THE-PROMPT-SEED.mp4, or the next number of it when that is taken.

    The seed at its end keeps it from being a name that Windows reserves, such as CON, and from ending in a dot.
    """
    return next_free(folder / f"{slug(prompt) or 'video'}-{seed}{suffix}")
