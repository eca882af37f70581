"""What a list of requests comes to: a job for each line that is not done yet, a failure for each that cannot be done.

Nothing is loaded here, `batch.py` does the jobs.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import traceback
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from soragen.catalog import find
from soragen.errors import InputError, SoragenError
from soragen.pipeline import run
from soragen.pipeline.asking import FILES, keys_of, request_of
from soragen.pipeline.clock import Clock
from soragen.pipeline.edits import output_stem
from soragen.pipeline.events import Event, Listener, Note, Stage
from soragen.pipeline.frames import audio_of
from soragen.pipeline.journal import Journal, Known
from soragen.pipeline.latents import holds
from soragen.pipeline.lines import Line, read_lines
from soragen.pipeline.loras import files_of, with_loras
from soragen.pipeline.plan import Plan, make_plan
from soragen.pipeline.replay import form_of_file, read_replay
from soragen.pipeline.shots import plan_shots
from soragen.pipeline.sources import beside, with_sources
from soragen.pipeline.storyboard import FOR_ALL, Storyboard, read_storyboard
from soragen.request import Request
from soragen.size import VideoSize
from soragen.video.naming import default_output, next_free
from soragen.video.recipe import read_recipe
from soragen.video.write import check_output


@dataclass(frozen=True)
class Failure:
    """A line of the list that came to nothing."""

    line: int
    error: Exception


@dataclass(eq=False)
class Job:
    """A line that can be made. latents: where they are, once they are denoised."""

    line: int
    key: str
    plan: Plan
    output: Path
    clock: Clock
    lossless: bool = False
    latents: Path | None = None


@dataclass(frozen=True, eq=False)
class ShotsJob:
    """A line that is a storyboard. plans: of its shots, in order."""

    line: int
    key: str
    board: Storyboard
    plans: tuple[Plan, ...]
    lossless: bool

    @property
    def output(self) -> Path:
        return self.board.output

    @property
    def plan(self) -> Plan:
        """That of the first shot."""
        return self.plans[0]


@dataclass(frozen=True)
class Options:
    """What holds for all lines. defaults: what they do not say, by the names of `resolve`. folder: for the videos."""

    folder: Path
    defaults: dict[str, Any]
    device: str | None = None
    dtype: str | None = None
    metadata: bool = True
    overwrite: bool = False
    strict_prompt: bool = False


class Worklist:
    """The lines of a list. `prepare` makes of them `jobs`, `shots` (storyboards) and `failures`."""

    def __init__(self, source: Path, options: Options, listen: Listener) -> None:
        """Raises InputError for a list that cannot be read."""
        self.source, self.options, self.listen = source, options, listen
        self.lines = read_lines(source)
        self.journal = Journal(source)
        self.jobs: list[Job] = []
        self.shots: list[ShotsJob] = []
        self.failures: list[Failure] = []
        self._taken: set[Path] = set()

    def prepare(self, *, resume: bool) -> None:
        """Makes a job of every line that is not done yet, and a failure of every bad one. Nothing is loaded.

        resume: go on with what the journal says; without it every line is new. Raises InputError where a list that was
        begun would be begun anew.
        """
        if self.journal.open and not resume:
            hint = f"add --resume to go on with it, or move {self.journal.path} away to begin anew"
            raise InputError(f"{self.source} was begun before and is not finished", hint)
        if not resume:
            self.journal.known = {}
        keys = self._keys()
        self._taken = {self.journal.known[key].output for key in keys if key in self.journal.known}
        done = 0
        for line, key in zip(self.lines, keys, strict=True):
            try:
                if line.error is not None:
                    raise line.error
                done += self._is_done(line, key, self._values(line))
            except (SoragenError, OSError) as error:
                self._fail(line.number, error)
        if done:
            self.listen(Note(f"{done} of {len(self.lines)} are done already"))

    def _keys(self) -> list[str]:
        """What each line asks, in 16 digits that stay when other lines come or go. A line that comes twice is two."""
        keys, times = [], dict[str, int]()
        for line in self.lines:
            said = json.dumps(self._values(line), sort_keys=True)
            times[said] = times.get(said, 0) + 1
            keys.append(hashlib.sha256(f"{said} {times[said]}".encode()).hexdigest()[:16])
        return keys

    def _values(self, line: Line) -> dict[str, Any]:
        """What the line says, over what holds for all. What another file says, the line alone may change."""
        takes = () if "file" in line.values else keys_of(line.values.get("command", "generate"))
        defaults = {key: value for key, value in self.options.defaults.items() if value is not None and key in takes}
        if line.values.keys() & {"seconds", "frames"}:
            defaults = {key: value for key, value in defaults.items() if key not in ("seconds", "frames")}
        return {**defaults, **line.values}

    def _is_done(self, line: Line, key: str, values: dict[str, Any]) -> bool:
        """Whether the journal and the disk say that a line is done. Else it is among the jobs now."""
        known = self.journal.known.get(key)
        if known is not None and known.done is not None and known.done.is_file():
            return True
        listen = self._about(line.number)
        if values.get("command") == "storyboard":
            shots = self._shots(line, key, values, known, listen)
            if known is not None and _holds_shots(known.output, shots.board):
                self._finish(shots, known.output)
                return True
            self._check(shots, shots.board.size)
            self.shots.append(shots)
            return False
        job = self._job(line, key, values, known, listen)
        if known is not None and _holds(known.output, job.plan.request):  # it was killed in between
            self._finish(job, known.output)
            return True
        self._check(job, job.plan.request.size)
        self.jobs.append(job)
        if known is None:
            for text in job.plan.notes():
                listen(Note(text))
        return False

    def _job(self, line: Line, key: str, values: dict[str, Any], known: Known | None, listen: Listener) -> Job:
        if known is None or known.request is None:
            request = _request(values, listen)
        else:
            request = _with_files(known.request, values)
            # The journal says nothing of one that is exact: it makes the same video.
            request = replace(request, attention=values.get("attention", "sdpa").lower())
        plan = make_plan(request, find(request.checkpoint), self.options.device, self.options.dtype)
        suffix, lossless = _form(values)
        if known is None:
            named = default_output(output_stem(request) or request.prompt, request.seed, self.options.folder, suffix)
            output = self._output(values, named)
        else:
            output = _shown(known.output)
        lossless = lossless and (values.get("command") != "replay" or output.suffix.lower() == suffix)
        job = Job(line.number, key, plan, output, Clock(listen), lossless)
        if known and known.latents and holds(known.latents, run.make_recipe(plan), plan.latent_shape):
            job.latents = known.latents
        return job

    def _shots(self, line: Line, key: str, values: dict[str, Any], known: Known | None, listen: Listener) -> ShotsJob:
        file, (suffix, lossless) = Path(values["file"]), _form(values)
        output = self._output(values, next_free(self.options.folder / f"{file.stem}{suffix}")) if known is None else (
            _shown(known.output)
        )  # fmt: skip
        board = read_storyboard(
            file, output, seed=values.get("seed") if known is None else known.seed,
            instead={name: values.get(name) for name in FOR_ALL if name != "seed"}, odd_sides=lossless, listen=listen,
        )  # fmt: skip
        plans = plan_shots(board, self.options.device, self.options.dtype)
        return ShotsJob(line.number, key, board, tuple(plans), lossless)

    def _check(self, job: Job | ShotsJob, size: VideoSize) -> None:
        """Raises OutputError where the file could not be written, beside the latents of all jobs before it."""
        beside = sum(each.plan.latent_bytes for each in (*self.jobs, job))
        check_output(
            job.output, size=size, overwrite=self.options.overwrite, bytes_beside=beside,
            audio=audio_of(job.plan) if isinstance(job, Job) else (), lossless=job.lossless,
        )  # fmt: skip
        self._taken.add(job.output.absolute())

    def _output(self, values: dict[str, Any], named: Path) -> Path:
        """The file that the line names, or `named` where neither the disk nor another line has it, or the next one.

        Raises InputError.
        """
        if "output" in values:
            path: Path = self.options.folder / values["output"]
            if path.absolute() in self._taken:
                raise InputError(f"output {path} is that of another line, too", "give each line its own")
            return path
        free, number = named, 1
        while free.absolute() in self._taken:
            number += 1
            free = next_free(named.with_name(f"{named.stem}-{number}{named.suffix}"))
        return free

    def _finish(self, job: Job | ShotsJob, path: Path) -> None:
        self.journal.write("done", key=job.key, line=job.line, output=str(path.absolute()))
        if isinstance(job, Job) and job.latents is not None:
            with contextlib.suppress(OSError):  # the video is in place: nothing failed
                job.latents.unlink(missing_ok=True)

    def _fail(self, line: int, error: Exception) -> None:
        cause: BaseException | None = error
        while cause is not None:  # what it came through holds tensors, and would hold them to the end
            traceback.clear_frames(cause.__traceback__)
            cause.__traceback__ = None
            cause = cause.__cause__ or cause.__context__
        self.failures.append(Failure(line, error))

    def _about(self, line: int, count: str = "") -> Listener:
        """A listener that says which line it is about."""

        def listen(event: Event) -> None:
            match event:
                case Note(text):
                    self.listen(Note(f"line {line}: {text}"))
                case Stage(name, detail):
                    self.listen(Stage(name, ", ".join(words for words in (count, detail) if words)))
                case _:
                    self.listen(event)

        return listen


def _request(values: dict[str, Any], listen: Listener) -> Request:
    """Of a line that is new. Raises InputError."""
    if values.get("command") != "replay":
        return request_of(values, listen)
    asked = {key: value for key, value in values.items() if key not in ("command", "output", "file")}
    if "seed" in asked:
        asked["seed"] = str(asked["seed"])
    return read_replay(Path(values["file"]), listen=listen, as_it_was=False, **asked).request


def _with_files(request: Request, values: dict[str, Any]) -> Request:
    """The request of a line, out of the journal, with its files where the line says they are. Raises InputError."""
    folders = [file.parent for file in files_of(values.get("lora", ()))]
    sources = [Path(values[key]) for key in FILES if key in values]
    if "file" in values:
        folders += [Path(values["file"]).parent, Path()]
        sources = beside(request, folders)
    return with_loras(with_sources(request, sources), folders)


def _form(values: dict[str, Any]) -> tuple[str, bool]:
    """The ending of a line's video where it names none, and whether every frame is stored exactly."""
    match values.get("command"):
        case "image":
            return ".png", False
        case "replay":
            return form_of_file(Path(values["file"]))
    lossless = values.get("lossless", False)
    return ".mkv" if lossless else ".mp4", lossless


def _holds(output: Path, request: Request) -> bool:
    """Whether the file is there, and was made by this request."""
    recipe = _recipe(output)
    return recipe.get("request") == request.to_dict()


def _holds_shots(output: Path, board: Storyboard) -> bool:
    """As `_holds`. What a shot goes on from is known by its hash in the file alone."""

    def alone(shot: dict[str, Any]) -> dict[str, Any]:
        return {key: value for key, value in shot.items() if key != "edit"}

    made = _recipe(output).get("storyboard")
    return isinstance(made, list) and [alone(shot) for shot in made] == [alone(shot.to_dict()) for shot in board.shots]


def _recipe(path: Path) -> dict[str, Any]:
    try:
        return read_recipe(path) or {}
    except InputError:
        return {}


def _shown(path: Path) -> Path:
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
