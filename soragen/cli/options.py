"""Every option that commands share, once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Prompt = Annotated[str, typer.Argument(help='What to show. "-" reads it from standard input.', show_default=False)]
VideoPrompt = Annotated[
    str | None, typer.Argument(help="What to show. Default: the prompt in the recipe of the video.", show_default=False)
]
PicturePrompt = Annotated[
    str | None,
    typer.Argument(help="What happens. Default: the prompt in the recipe of the picture.", show_default=False),
]
Video = Annotated[Path, typer.Argument(metavar="VIDEO", help="A video file.", show_default=False)]
Before = Annotated[Path, typer.Argument(metavar="A", help="The video that comes first.", show_default=False)]
After = Annotated[Path, typer.Argument(metavar="B", help="The video that it leads to.", show_default=False)]
VideoOrPrompt = Annotated[
    str, typer.Argument(metavar="VIDEO|PROMPT", help="A video file, or what to show.", show_default=False)
]
Image = Annotated[Path, typer.Argument(metavar="IMAGE", help="The first frame.", show_default=False)]
Last = Annotated[Path | None, typer.Option("--last", metavar="IMAGE", help="The last frame.")]
Fit = Annotated[
    str, typer.Option("--fit", metavar="HOW", help="crop, pad or stretch what has another shape than the video.")
]
Strength = Annotated[
    float, typer.Option("--strength", metavar="X", help="0 leaves the video as it is, 1 takes nothing of it.")
]
Backward = Annotated[bool, typer.Option("--backward", help="Make what came before.")]
NewSeconds = Annotated[str | None, typer.Option("--seconds", metavar="S", help="Duration of the new part.")]
NewFrames = Annotated[int | None, typer.Option("--frames", metavar="N", help="Frames of the new part.")]
LoopSeconds = Annotated[
    str | None, typer.Option("--seconds", metavar="S", help="Duration of the new clip, or of the bridge.")
]
LoopFrames = Annotated[
    int | None, typer.Option("--frames", metavar="N", help="Frames of the new clip, or of the bridge.")
]
Lossless = Annotated[bool, typer.Option("--lossless", help="Store every frame exactly; the output ends in .mkv.")]
Output = Annotated[
    Path | None,
    typer.Option("--output", "-o", help="File to write. Default: a name from the prompt and the seed."),
]
Size = Annotated[
    str | None, typer.Option("--size", metavar="WxH", help="Width and height such as 1280x720, or an aspect: 16:9.")
]
Seconds = Annotated[str | None, typer.Option("--seconds", metavar="S", help="Duration, such as 5 or 2.5.")]
Frames = Annotated[int | None, typer.Option("--frames", metavar="N", help="Number of frames, instead of --seconds.")]
Direct = Annotated[
    bool, typer.Option("--direct", help="Render the whole size and duration at once: no enlarging, no windows.")
]
Fps = Annotated[str | None, typer.Option("--fps", metavar="F", help="Frames per second: 24, 29.97 or 30000/1001.")]
Seed = Annotated[int | None, typer.Option("--seed", metavar="N", help="Same seed, same video. Default: random.")]
Steps = Annotated[int | None, typer.Option("--steps", metavar="N", help="Denoising steps.")]
Guidance = Annotated[
    float | None, typer.Option("--guidance", metavar="G", help="How closely to follow the prompt; 1 is no guidance.")
]
Negative = Annotated[str | None, typer.Option("--negative", metavar="TEXT", help="What not to show.")]
Shift = Annotated[
    float | None, typer.Option("--shift", metavar="X", help="Shift of the noise levels towards noise; 1 is none.")
]
Solver = Annotated[str | None, typer.Option("--solver", metavar="NAME", help="euler, unipc or renoise.")]
Model = Annotated[str, typer.Option("--model", "-m", metavar="NAME", help="A name from `models list`, or a folder.")]
Lora = Annotated[
    list[str] | None,
    typer.Option("--lora", metavar="FILE", help="A LoRA to add: PATH[:SCALE][@high|low]. May be given again."),
]
OtherLora = Annotated[
    list[str] | None, typer.Option("--lora", metavar="FILE", help="PATH[:SCALE][@high|low], instead of the recipe's.")
]
LoraPartial = Annotated[bool, typer.Option("--lora-partial", help="Take a LoRA that fits the model in part.")]
OtherPrompt = Annotated[str | None, typer.Option("--prompt", metavar="TEXT", help="Another prompt than the recipe's.")]
OtherSeed = Annotated[
    str | None, typer.Option("--seed", metavar="N", help='Another seed than the recipe\'s; "random" draws one.')
]
OtherModel = Annotated[
    str | None,
    typer.Option("--model", "-m", metavar="NAME", help="Another model than the recipe's, or its new folder."),
]
Folder = Annotated[Path, typer.Option("--output", "-o", metavar="FOLDER", help="Folder for the videos.")]
Resume = Annotated[bool, typer.Option("--resume", help="Go on with a list that was begun: make what is missing.")]
Device = Annotated[
    str | None, typer.Option("--device", metavar="D", help="cpu, cuda, cuda:1, mps. Default: the fastest.")
]
Dtype = Annotated[str | None, typer.Option("--dtype", metavar="T", help="float32, bfloat16 or float16.")]
Quantize = Annotated[
    str | None,
    typer.Option("--quantize", metavar="TYPE", help="int8 or fp8: weights of 8 bits. Less memory, not the same video."),
]
Attention = Annotated[
    str | None,
    typer.Option("--attention", metavar="NAME", help="sdpa, flash3 or sage, where it is installed. sage approximates."),
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace the output if it exists.")]
NoMetadata = Annotated[bool, typer.Option("--no-metadata", help="Do not store the recipe in the video.")]
Strict = Annotated[bool, typer.Option("--strict", help="Fail when the prompt is too long, instead of dropping words.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print the plan and stop.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print errors only, besides the result.")]
Debug = Annotated[bool, typer.Option("--debug", help="Print the traceback of an error.")]


def video_suffix(lossless: bool) -> str:
    """The ending of a file that is not named."""
    return ".mkv" if lossless else ".mp4"
