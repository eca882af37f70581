"""A list of requests: all prompts encoded, then all denoised, then all decoded, each network loaded once for all.

Lines whose weights are stored otherwise (`quantize`) have networks of their own up to the decoding.

Between the phases everything is on disk, so that memory does not grow with the list and a process that is killed loses
what it was working on and no more. `journal.py` knows what is done, and the list itself is never touched.
"""

from __future__ import annotations

import contextlib
import gc
import hashlib
import json
import shlex
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import torch

from soragen import __version__
from soragen.catalog import find
from soragen.errors import InputError, OutputError, SoragenError
from soragen.leftovers import leftover
from soragen.models.device import free_memory
from soragen.models.family import Vae
from soragen.models.offload import Residence
from soragen.pipeline import run
from soragen.pipeline.asking import keys_of, request_of, sources_in
from soragen.pipeline.clock import Clock
from soragen.pipeline.contexts import Contexts, contexts_beside
from soragen.pipeline.edits import output_stem
from soragen.pipeline.events import Event, Listener, Note, Progress, Stage
from soragen.pipeline.frames import audio_of, seam_of
from soragen.pipeline.journal import Journal
from soragen.pipeline.latents import holds, load_latents
from soragen.pipeline.lines import Line, read_lines
from soragen.pipeline.loras import files_of, with_loras
from soragen.pipeline.memory import READ_DTYPE
from soragen.pipeline.plan import Plan, make_plan
from soragen.pipeline.sources import with_sources
from soragen.request import Request
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
    latents: Path | None = None


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


class Batch:
    """One list. `prepare` it, look at `jobs` and `failures`, then `make` them."""

    def __init__(self, source: Path, options: Options, listen: Listener) -> None:
        """Raises InputError for a list that cannot be read."""
        self.source, self.options, self.listen = source, options, listen
        self.lines = read_lines(source)
        self.journal = Journal(source)
        self.jobs: list[Job] = []
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
        done, num_bytes = 0, 0
        for line, key in zip(self.lines, keys, strict=True):
            try:
                if line.error is not None:
                    raise line.error
                job = self._job(line, key, self._values(line), num_bytes)
            except (SoragenError, OSError) as error:
                self._fail(line.number, error)
                continue
            if job is None:
                done += 1
            else:
                self.jobs.append(job)
                num_bytes += job.plan.latent_bytes
        if done:
            self.listen(Note(f"{done} of {len(self.lines)} are done already"))

    def make(self, made: Callable[[run.Result], None]) -> None:
        """Makes all jobs. `made` is called with every video as it is in place. What fails is added to `failures`.

        Raises WeightsError for a network that cannot be loaded, and OutputError where no journal can be kept.
        """
        going_on = f"to go on: soragen batch {shlex.quote(str(self.source))} --resume, and the options of this run"
        if not self.journal.known:
            self.journal.write("begin", soragen=__version__)
        for failure in self.failures:
            self.journal.write("failed", line=failure.line, error=str(failure.error))
        for job in self.jobs:
            if job.key not in self.journal.known:
                request, output = job.plan.request.to_dict(), str(job.output.absolute())
                self.journal.write("asked", key=job.key, line=job.line, request=request, output=output)
        try:
            with leftover(lambda: self.listen(Note(going_on))):
                for checkpoint in dict.fromkeys(job.plan.request.checkpoint for job in self.jobs):
                    self._make([job for job in self.jobs if job.plan.request.checkpoint == checkpoint], made)
        except BaseException:
            self.listen(Note(going_on))
            raise
        if not self.failures:
            self.journal.write("end")

    def _keys(self) -> list[str]:
        """What each line asks, in 16 digits that stay when other lines come or go. A line that comes twice is two."""
        keys, times = [], dict[str, int]()
        for line in self.lines:
            said = json.dumps(self._values(line), sort_keys=True)
            times[said] = times.get(said, 0) + 1
            keys.append(hashlib.sha256(f"{said} {times[said]}".encode()).hexdigest()[:16])
        return keys

    def _values(self, line: Line) -> dict[str, Any]:
        """What the line says, over what holds for all."""
        takes = keys_of(line.values.get("command", "generate"))
        defaults = {key: value for key, value in self.options.defaults.items() if value is not None and key in takes}
        if line.values.keys() & {"seconds", "frames"}:
            defaults = {key: value for key, value in defaults.items() if key not in ("seconds", "frames")}
        return {**defaults, **line.values}

    def _job(self, line: Line, key: str, values: dict[str, Any], num_bytes: int) -> Job | None:
        """None when the journal and the disk say that it is done. num_bytes: of the latents of the jobs before it."""
        known = self.journal.known.get(key)
        if known is not None and known.done is not None and known.done.is_file():
            return None
        listen = self._about(line.number)
        if known is None:
            request = request_of(values, listen)
        else:
            files = [file.parent for file in files_of(values.get("lora", ()))]
            request = with_loras(with_sources(known.request, sources_in(values)), files)
            # The journal says nothing of one that is exact: it makes the same video.
            request = replace(request, attention=values.get("attention", "sdpa").lower())
        plan = make_plan(request, find(request.checkpoint), self.options.device, self.options.dtype)
        if known is None:
            output = self._output(values, request)
            job = Job(line.number, key, plan, output, Clock(listen))
        else:
            job = Job(line.number, key, plan, _shown(known.output), Clock(listen))
            if known.latents and holds(known.latents, run.make_recipe(plan), plan.latent_shape):
                job.latents = known.latents
            if known.done is None and _holds(known.output, request):  # it was killed in between
                self._finish(job, known.output)
                return None
        beside = num_bytes + plan.latent_bytes
        check_output(
            job.output, size=request.size, overwrite=self.options.overwrite, bytes_beside=beside, audio=audio_of(plan)
        )
        self._taken.add(job.output.absolute())
        if known is None:
            for text in plan.notes():
                listen(Note(text))
        return job

    def _output(self, values: dict[str, Any], request: Request) -> Path:
        """The file that the line names, or a name that neither the disk nor another line has. Raises InputError."""
        folder = self.options.folder
        if "output" in values:
            path = folder / values["output"]
            if path.absolute() in self._taken:
                raise InputError(f"output {path} is that of another line, too", "give each line its own")
            return path
        suffix = ".png" if values.get("command") == "image" else ".mp4"
        free = named = default_output(output_stem(request) or request.prompt, request.seed, folder, suffix)
        number = 1
        while free.absolute() in self._taken:
            number += 1
            free = next_free(named.with_name(f"{named.stem}-{number}{suffix}"))
        return free

    def _make(self, jobs: Sequence[Job], made: Callable[[run.Result], None]) -> None:
        """All phases of the jobs of one checkpoint."""
        first = jobs[0].plan
        with jobs[0].clock.timed("load"):
            self.listen(Stage("load", first.checkpoint.name))
            run.verify_small_files(first)
        if new := [job for job in jobs if job.latents is None]:
            for kind in dict.fromkeys(job.plan.request.quantize for job in new):
                self._make_latents([job for job in new if job.plan.request.quantize == kind])
        self._decode([job for job in jobs if job.latents is not None], made)
        free(first)

    def _make_latents(self, jobs: Sequence[Job]) -> None:
        """The phases before decoding, of jobs with weights stored alike. Other LoRAs load the transformer anew."""
        first = jobs[0].plan
        with contexts_beside(self.source) as contexts:
            encoded = self._encode(jobs, contexts)
            free(first)
            read = self._read(encoded, contexts)
            free(first)
            for loras in dict.fromkeys(job.plan.request.loras for job in read):
                self._denoise([job for job in read if job.plan.request.loras == loras], contexts)
                free(first)

    def _encode(self, jobs: Sequence[Job], contexts: Contexts) -> list[Job]:
        """The jobs whose prompts are in `contexts` now."""
        self.listen(Stage("text", f"{len(jobs)} prompt{'s' if len(jobs) > 1 else ''}"))
        encoder = run.load_text_encoder(strictest(jobs, "text_encoder"))
        encoded = []
        for number, job in enumerate(jobs, 1):
            with self._guarded(job), job.clock.timed("text"):
                request, listen = job.plan.request, self._about(job.line)
                context, negative = run.encode_prompts(job.plan, self.options.strict_prompt, listen, encoder)
                contexts.write(request.prompt, context)
                if negative is not None:
                    contexts.write(request.negative_prompt, negative)
                encoded.append(job)
            self.listen(Progress("text", number, len(jobs)))
        return encoded

    def _read(self, jobs: Sequence[Job], contexts: Contexts) -> list[Job]:
        """The jobs whose given frames, where they have any, are in `contexts` now."""
        load = cache(lambda: load_whole_vae(jobs[0].plan, READ_DTYPE))
        read = []
        for job in jobs:
            with self._guarded(job):
                contexts.write_given(job.key, *run.encode_given(job.plan, job.clock, load))
                read.append(job)
        return read

    def _denoise(self, jobs: Sequence[Job], contexts: Contexts) -> None:
        with jobs[0].clock.timed("load"):
            transformer = run.load_transformer(strictest(jobs, "transformer"))
        for number, job in enumerate(jobs, 1):
            job.clock.listen = self._about(job.line, f"{number} of {len(jobs)}")
            with self._guarded(job):
                request, device = job.plan.request, job.plan.machine.device
                context = contexts.read(request.prompt, device)
                negative = contexts.read(request.negative_prompt, device) if request.is_guided else None
                given = contexts.read_given(job.key, device)
                latents = run.denoise_all(job.plan, context, negative, given, job.clock, transformer)
                saved = run.to_save(job.plan, latents, job.output, self.options.metadata)
                job.latents = run.keep(saved, job.clock.listen)
                if job.latents is None:
                    raise OutputError("the latents can be written nowhere", "free some space")
                self.journal.write("denoised", key=job.key, latents=str(job.latents.absolute()))

    def _decode(self, jobs: Sequence[Job], made: Callable[[run.Result], None]) -> None:
        if not jobs:
            return
        with jobs[0].clock.timed("load"):
            vae = load_whole_vae(jobs[0].plan)
        for number, job in enumerate(jobs, 1):
            job.clock.listen = self._about(job.line, f"{number} of {len(jobs)}")
            path = None
            with self._guarded(job):
                assert job.latents is not None
                saved = load_latents(job.latents)
                path = run.decode_to_file(job.plan, saved, job.output, self.options.overwrite, job.clock, vae)
                self._finish(job, path)
            if path is not None:
                seam = seam_of(job.plan.request, path, job.clock.listen)
                made(run.Result(path, job.plan.request, job.clock.seconds, seam))

    def _finish(self, job: Job, path: Path) -> None:
        self.journal.write("done", key=job.key, line=job.line, output=str(path.absolute()))
        if job.latents is not None:
            with contextlib.suppress(OSError):  # the video is in place: nothing failed
                job.latents.unlink(missing_ok=True)

    @contextmanager
    def _guarded(self, job: Job) -> Iterator[None]:
        """A job that fails ends by itself, not with all others."""
        try:
            yield
        except Exception as error:
            self._fail(job.line, error)
            self.journal.write("failed", key=job.key, line=job.line, error=f"{type(error).__name__}: {error}")
            free(job.plan)

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


def strictest(jobs: Sequence[Job], part: str) -> Plan:
    """Of the plans of `jobs`, one that leaves the least of a network in memory: so all of them have room."""
    order = list(Residence)
    return max((job.plan for job in jobs), key=lambda plan: order.index(plan.residence_of(part)))


def load_whole_vae(plan: Plan, dtype: torch.dtype | None = None) -> Vae:
    """For all jobs of a checkpoint, each of which has tiles of its own. dtype: see `run.load_vae`."""
    return run.load_vae(replace(plan, tile=None), dtype)


def _holds(output: Path, request: Request) -> bool:
    """Whether the file is there, and was made by this request."""
    try:
        recipe = read_recipe(output)
    except InputError:
        return False
    return recipe is not None and recipe.get("request") == request.to_dict()


def _shown(path: Path) -> Path:
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def free(plan: Plan) -> None:
    gc.collect()
    free_memory(plan.machine.device)
