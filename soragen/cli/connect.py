"""soragen connect A B [PROMPT]"""

from __future__ import annotations

import time

from soragen.cli import options, output
from soragen.cli.making import Common, make, with_common


@with_common
def connect(
    common: Common,
    before: options.Before,
    after: options.After,
    prompt: options.VideoPrompt = None,
    seconds: options.NewSeconds = None,
    frames: options.NewFrames = None,
    fit: options.Fit = "crop",
    lossless: options.Lossless = False,
) -> None:
    """Make one video of two, with a new passage from the end of the first to the beginning of the second."""
    began = time.monotonic()
    from soragen.pipeline import edits

    with output.Talk(quiet=common.quiet) as talk:
        request = edits.connect(
            before, after, prompt, seconds=seconds, frames=frames, fit=fit, odd_sides=lossless, listen=talk.listen,
            **common.asked,
        )  # fmt: skip
        suffix, stem = options.video_suffix(lossless), edits.output_stem(request)
        make(request, talk, common, began=began, stem=stem, suffix=suffix, lossless=lossless)
