"""soragen image PROMPT"""

from __future__ import annotations

import time

from soragen.cli import options, output
from soragen.cli.making import Common, make, with_common


@with_common
def image(
    common: Common, prompt: options.Prompt, size: options.Size = None, direct: options.Direct = False
) -> None:  # fmt: skip
    """Make a picture from a sentence, a video of one frame: PNG, or JPEG or WebP by the ending of --output."""
    began = time.monotonic()
    from soragen.errors import InputError
    from soragen.pipeline.resolve import resolve
    from soragen.video.formats import PICTURE_SUFFIXES

    if common.file is not None and common.file.suffix.lower() not in PICTURE_SUFFIXES:
        raise InputError(f"output {common.file.name!r} is not a picture", f"use one of: {', '.join(PICTURE_SUFFIXES)}")

    with output.Talk(quiet=common.quiet) as talk:
        request = resolve(
            prompt, listen=talk.listen, size=size, frames=1, odd_sides=True, direct=direct, **common.asked
        )
        make(request, talk, common, began=began, suffix=".png")
