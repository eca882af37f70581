"""soragen extend VIDEO [PROMPT]"""

from __future__ import annotations

import time

from soragen.cli import options, output
from soragen.cli.making import Common, make, with_common


@with_common
def extend(
    common: Common,
    video: options.Video,
    prompt: options.VideoPrompt = None,
    seconds: options.NewSeconds = None,
    frames: options.NewFrames = None,
    backward: options.Backward = False,
    lossless: options.Lossless = False,
) -> None:
    """Go on with a video after its end, or before its beginning. Its own frames stay as they are."""
    began = time.monotonic()
    from soragen.pipeline import edits

    with output.Talk(quiet=common.quiet) as talk:
        request = edits.extend(
            video, prompt, seconds=seconds, frames=frames, backward=backward, odd_sides=lossless, listen=talk.listen,
            **common.asked,
        )  # fmt: skip
        suffix, stem = options.video_suffix(lossless), edits.output_stem(request)
        make(request, talk, common, began=began, stem=stem, suffix=suffix, lossless=lossless)
