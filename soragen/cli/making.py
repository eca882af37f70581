"""What the commands share that make one file: common options, and the end, from a request to what is said of it."""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, get_type_hints

from soragen.cli import options, output
from soragen.pipeline.events import Note

if TYPE_CHECKING:
    from soragen.pipeline.run import Result
    from soragen.pipeline.storyboard import Storyboard
    from soragen.request import Request

P = ParamSpec("P")


@dataclass(frozen=True)
class Common:
    """The options of every command that makes a video, in the order in which help lists them."""

    file: options.Output = None
    seed: options.Seed = None
    steps: options.Steps = None
    guidance: options.Guidance = None
    negative: options.Negative = None
    shift: options.Shift = None
    solver: options.Solver = None
    model: options.Model = "pocket"
    lora: options.Lora = None
    lora_partial: options.LoraPartial = False
    device: options.Device = None
    dtype: options.Dtype = None
    quantize: options.Quantize = None
    attention: options.Attention = None
    overwrite: options.Overwrite = False
    no_metadata: options.NoMetadata = False
    strict: options.Strict = False
    dry_run: options.DryRun = False
    as_json: options.Json = False
    quiet: options.Quiet = False
    debug: options.Debug = False

    @property
    def asked(self) -> dict[str, Any]:
        """What is asked of the model, by the names of `soragen.pipeline.resolve.resolve`."""
        names = ("seed", "steps", "guidance", "negative", "shift", "solver", "model", "lora", "lora_partial")
        return {name: getattr(self, name) for name in (*names, "quantize", "attention")}

    @property
    def how(self) -> dict[str, Any]:
        """How it is made, by the names of `soragen.pipeline.run.generate`."""
        return {
            "device": self.device, "dtype": self.dtype, "metadata": not self.no_metadata,
            "overwrite": self.overwrite, "strict_prompt": self.strict,
        }  # fmt: skip


def with_common(command: Callable[Concatenate[Common, P], None]) -> Callable[P, None]:
    """The command as Typer takes it: its own parameters, then the options of `Common`, which it gets as one."""
    hints = get_type_hints(Common, include_extras=True)
    names = {field.name for field in fields(Common)}
    common = [
        inspect.Parameter(
            field.name, inspect.Parameter.KEYWORD_ONLY, default=field.default, annotation=hints[field.name]
        )
        for field in fields(Common)
    ]

    def run(**values: Any) -> None:
        shared = {name: values.pop(name) for name in names}
        command(Common(**shared), **values)  # type: ignore[call-arg]

    own = list(inspect.signature(command, eval_str=True).parameters.values())[1:]
    own = [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in own]
    run.__signature__ = inspect.Signature([*own, *common])  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in [*own, *common]}
    run.__name__, run.__doc__ = command.__name__, command.__doc__
    return run  # type: ignore[return-value]


def make(
    request: Request,
    talk: output.Talk,
    common: Common,
    *,
    began: float,
    stem: str = "",
    suffix: str = ".mp4",
    say_seed: bool | None = None,
    lossless: bool = False,
) -> None:
    """Makes what `request` describes and prints its path, or prints the plan.

    began: when the command did. stem: of the file where none is named, followed by the seed; "" is the prompt.
    """
    if common.dry_run:
        from soragen.catalog import find
        from soragen.pipeline.plan import make_plan

        plan = make_plan(request, find(request.checkpoint), common.device, common.dtype)
        output.json_object(plan.to_dict()) if common.as_json else output.data("\n".join(plan.lines()))
        return

    from soragen.video.naming import default_output

    path = common.file or default_output(stem or request.prompt, request.seed, Path(), suffix)
    if common.seed is None if say_seed is None else say_seed:
        talk.listen(Note(f"seed {request.seed}"))

    from soragen.pipeline import run

    result = run.generate(request, path, lossless=lossless, listen=talk.listen, **common.how)
    _say(result, common, began)


def make_shots(board: Storyboard, talk: output.Talk, common: Common, *, began: float, lossless: bool = False) -> None:
    """As `make`, of a video of several shots, which has its name already."""
    from soragen.pipeline.shots import make_storyboard, plan_shots

    if common.dry_run:
        plans = list(enumerate(plan_shots(board, common.device, common.dtype), 1))
        if common.as_json:
            output.json_object([{"shot": number, **plan.to_dict()} for number, plan in plans])
        else:
            output.data("\n\n".join("\n".join([f"shot {number}", *plan.lines()]) for number, plan in plans))
        return
    talk.listen(Note(f"seed {board.seed}"))
    _say(make_storyboard(board, lossless=lossless, listen=talk.listen, **common.how), common, began)


def _say(result: Result, common: Common, began: float) -> None:
    from soragen.pipeline.report import result_report

    if common.as_json:
        output.json_object(result_report(result, time.monotonic() - began))
    else:
        output.data(str(result.path))
