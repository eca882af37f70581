"""soragen animate IMAGE [PROMPT]"""

from __future__ import annotations

import time

from soragen.cli import options, output
from soragen.cli.making import Common, make, with_common


@with_common
def animate(
    common: Common,
    image: options.Image,
    prompt: options.PicturePrompt = None,
    last: options.Last = None,
    fit: options.Fit = "crop",
    size: options.Size = None,
    seconds: options.Seconds = None,
    frames: options.Frames = None,
    fps: options.Fps = None,
    lossless: options.Lossless = False,
) -> None:
    """Make a video that begins with a picture, and ends with another one if you like."""
    began = time.monotonic()
    from soragen.pipeline import edits

    with output.Talk(quiet=common.quiet) as talk:
        request = edits.animate(
            image, prompt, last=last, fit=fit, size=size, seconds=seconds, frames=frames, fps=fps, odd_sides=lossless,
            listen=talk.listen, **common.asked,
        )  # fmt: skip
        suffix, stem = options.video_suffix(lossless), edits.output_stem(request)
        make(request, talk, common, began=began, stem=stem, suffix=suffix, lossless=lossless)
