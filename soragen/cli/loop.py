"""soragen loop VIDEO|PROMPT"""

from __future__ import annotations

import time

from soragen.cli import options, output
from soragen.cli.making import Common, make, with_common


@with_common
def loop(
    common: Common,
    video_or_prompt: options.VideoOrPrompt,
    prompt: options.VideoPrompt = None,
    seconds: options.LoopSeconds = None,
    frames: options.LoopFrames = None,
    size: options.Size = None,
    fps: options.Fps = None,
    lossless: options.Lossless = False,
) -> None:
    """Make a video that repeats, a new clip or a given one with a bridge to its beginning, and measure its seam."""
    began = time.monotonic()
    from soragen.pipeline import edits

    with output.Talk(quiet=common.quiet) as talk:
        request = edits.loop(
            video_or_prompt, prompt, seconds=seconds, frames=frames, size=size, fps=fps, odd_sides=lossless,
            listen=talk.listen, **common.asked,
        )  # fmt: skip
        suffix, stem = options.video_suffix(lossless), edits.output_stem(request)
        make(request, talk, common, began=began, stem=stem, suffix=suffix, lossless=lossless)
