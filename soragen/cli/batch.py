"""soragen batch FILE"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Any

import typer

from soragen.cli import options, output


def batch(
    source: Annotated[
        Path,
        typer.Argument(
            metavar="FILE",
            help="A list: .jsonl (objects), .csv (with a line of names) or .txt (prompts). A line may say: prompt, "
            "command (generate, image, animate, extend, loop, connect, restyle, replay, storyboard), output, the "
            "options of that command by their names, and its files: image and last, video and after, or file. What a "
            "recipe or a storyboard says, its line alone may change.",
            show_default=False,
        ),
    ],
    folder: options.Folder = Path(),
    size: options.Size = None,
    seconds: options.Seconds = None,
    frames: options.Frames = None,
    fps: options.Fps = None,
    seed: options.Seed = None,
    steps: options.Steps = None,
    guidance: options.Guidance = None,
    negative: options.Negative = None,
    shift: options.Shift = None,
    solver: options.Solver = None,
    model: options.Model = "pocket",
    lora: options.Lora = None,
    lora_partial: options.LoraPartial = False,
    device: options.Device = None,
    dtype: options.Dtype = None,
    quantize: options.Quantize = None,
    attention: options.Attention = None,
    resume: options.Resume = False,
    overwrite: options.Overwrite = False,
    no_metadata: options.NoMetadata = False,
    strict: options.Strict = False,
    dry_run: options.DryRun = False,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> None:
    """Make a list of videos, each network loaded once. Options hold for the lines that say nothing else.

    A journal beside the list knows what is done. Bad lines are passed over and named at the end.
    """
    began = time.monotonic()
    from soragen.errors import InputError, OutputError
    from soragen.pipeline.lines import read_lines

    read_lines(source)  # what is no list is said at once
    from soragen.pipeline.batch import Batch
    from soragen.pipeline.report import result_report
    from soragen.pipeline.run import Result
    from soragen.pipeline.worklist import Options

    defaults = {
        "model": model, "negative": negative, "size": size, "seconds": seconds, "frames": frames, "fps": fps,
        "seed": seed, "steps": steps, "guidance": guidance, "shift": shift, "solver": solver,
        "lora": lora or None, "lora_partial": lora_partial or None, "quantize": quantize, "attention": attention,
    }  # fmt: skip
    reports = []

    def made(result: Result) -> None:
        reports.append(result_report(result, sum(result.seconds.values())))
        if not as_json:
            output.data(str(result.path))

    with output.Talk(quiet=quiet) as talk:
        chosen = Options(
            folder,
            defaults,
            device=device,
            dtype=dtype,
            metadata=not no_metadata,
            overwrite=overwrite,
            strict_prompt=strict,
        )
        if not dry_run:
            try:
                folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise OutputError(f"cannot make the folder {folder}: {error.strerror}", "give another one") from error
        work = Batch(source, chosen, talk.listen)
        work.prepare(resume=resume)
        if dry_run:
            rows = [("line", "output", "video", "seed", "TFLOP")]
            plans: list[dict[str, Any]] = []
            for job in work.jobs:
                request = job.plan.request
                rows.append((str(job.line), str(job.output), str(request.size), str(request.seed),
                             f"{job.plan.flops / 1e12:.2f}"))  # fmt: skip
                plans.append({"line": job.line, "output": str(job.output), **job.plan.to_dict()})
            for board in work.shots:
                flops = sum(plan.flops for plan in board.plans)
                rows.append((str(board.line), str(board.output), str(board.board.size), str(board.board.seed),
                             f"{flops / 1e12:.2f}"))  # fmt: skip
                shots = [plan.to_dict() for plan in board.plans]
                plans.append({"line": board.line, "output": str(board.output), "shots": shots})
            output.json_object(plans) if as_json else output.table(rows)
        else:
            work.make(made)
    failures = sorted(work.failures, key=lambda failure: failure.line)
    if as_json and not dry_run:
        failed = [{"line": failure.line, "error": str(failure.error)} for failure in failures]
        output.json_object({"videos": reports, "failed": failed, "seconds": round(time.monotonic() - began, 3)})
    for failure in failures:
        hint = getattr(failure.error, "hint", None)
        output.talk(output.one_line(f"line {failure.line}: {failure.error}" + (f" ({hint})" if hint else "")))
    if not failures:
        return
    summary = f"{len(failures)} of {len(work.lines)} lines came to nothing"
    bad = next((failure.error for failure in failures if isinstance(failure.error, InputError)), None)
    if bad is not None:
        raise InputError(summary, "correct them, then add --resume")
    failures[0].error.add_note(f"{summary}; --resume tries them again")
    raise failures[0].error
