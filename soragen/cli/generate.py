"""soragen generate PROMPT"""

from __future__ import annotations

import time

from soragen.cli import options, output
from soragen.cli.making import Common, make, with_common


@with_common
def generate(
    common: Common,
    prompt: options.Prompt,
    size: options.Size = None,
    seconds: options.Seconds = None,
    frames: options.Frames = None,
    fps: options.Fps = None,
    direct: options.Direct = False,
    lossless: options.Lossless = False,
) -> None:
    """Make a video from a sentence and print the path of its file."""
    began = time.monotonic()
    from soragen.pipeline.resolve import resolve

    with output.Talk(quiet=common.quiet) as talk:
        request = resolve(
            prompt, listen=talk.listen, size=size, seconds=seconds, frames=frames, fps=fps, odd_sides=lossless,
            direct=direct, **common.asked,
        )  # fmt: skip
        make(request, talk, common, began=began, suffix=options.video_suffix(lossless), lossless=lossless)
