"""soragen restyle VIDEO PROMPT"""

from __future__ import annotations

import time

from soragen.cli import options, output
from soragen.cli.making import Common, make, with_common
from soragen.request import STRENGTH


@with_common
def restyle(
    common: Common,
    video: options.Video,
    prompt: options.Prompt,
    strength: options.Strength = STRENGTH,
    lossless: options.Lossless = False,
) -> None:
    """Make a video anew from its own forms and movements, as the prompt says."""
    began = time.monotonic()
    from soragen.pipeline import edits

    with output.Talk(quiet=common.quiet) as talk:
        request = edits.restyle(
            video, prompt, strength=strength, odd_sides=lossless, listen=talk.listen, **common.asked
        )  # fmt: skip
        suffix, stem = options.video_suffix(lossless), edits.output_stem(request)
        make(request, talk, common, began=began, stem=stem, suffix=suffix, lossless=lossless)
