"""A list of requests: all prompts encoded, then all denoised, then all decoded, each network loaded once for all.

Lines whose weights are stored otherwise (`quantize`) have networks of their own up to the decoding. Storyboards come
last, one after the other, as their shots are made of each other.

Between the phases everything is on disk, so that memory does not grow with the list and a process that is killed loses
what it was working on and no more. `journal.py` knows what is done, and the list itself is never touched.
"""

from __future__ import annotations

import gc
import shlex
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache

from soragen import __version__
from soragen.errors import OutputError
from soragen.leftovers import leftover
from soragen.models.device import free_memory
from soragen.pipeline import run
from soragen.pipeline.contexts import Contexts, contexts_beside
from soragen.pipeline.events import Note, Progress, Stage
from soragen.pipeline.frames import seam_of
from soragen.pipeline.latents import load_latents
from soragen.pipeline.memory import READ_DTYPE
from soragen.pipeline.plan import Plan, strictest
from soragen.pipeline.shots import make_storyboard
from soragen.pipeline.worklist import Job, ShotsJob, Worklist


class Batch(Worklist):
    """One list. `prepare` it, look at `jobs`, `shots` and `failures`, then `make` them."""

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
        for shots in self.shots:
            if shots.key not in self.journal.known:
                output = str(shots.output.absolute())
                self.journal.write("asked", key=shots.key, line=shots.line, seed=shots.board.seed, output=output)
        try:
            with leftover(lambda: self.listen(Note(going_on))):
                for checkpoint in dict.fromkeys(job.plan.request.checkpoint for job in self.jobs):
                    self._make([job for job in self.jobs if job.plan.request.checkpoint == checkpoint], made)
                for number, shots in enumerate(self.shots, 1):
                    self._make_shots(shots, f"{number} of {len(self.shots)}", made)
        except BaseException:
            self.listen(Note(going_on))
            raise
        if not self.failures:
            self.journal.write("end")

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
        encoder = run.load_text_encoder(strictest([job.plan for job in jobs], "text_encoder"))
        encoded = []
        for number, job in enumerate(jobs, 1):
            with self._guarded(job), job.clock.timed("text"):
                listen = self._about(job.line)
                prompts = run.encode_prompts(job.plan, self.options.strict_prompt, listen, encoder)
                contexts.write(job.plan.request, *prompts)
                encoded.append(job)
            self.listen(Progress("text", number, len(jobs)))
        return encoded

    def _read(self, jobs: Sequence[Job], contexts: Contexts) -> list[Job]:
        """The jobs whose given frames, where they have any, are in `contexts` now."""
        load = cache(lambda: run.load_whole_vae(jobs[0].plan, READ_DTYPE))
        read = []
        for job in jobs:
            with self._guarded(job):
                contexts.write_given(job.key, *run.encode_given(job.plan, job.clock, load))
                read.append(job)
        return read

    def _denoise(self, jobs: Sequence[Job], contexts: Contexts) -> None:
        with jobs[0].clock.timed("load"):
            transformer = run.load_transformer(strictest([job.plan for job in jobs], "transformer"))
        for number, job in enumerate(jobs, 1):
            job.clock.listen = self._about(job.line, f"{number} of {len(jobs)}")
            with self._guarded(job):
                device = job.plan.machine.device
                prompts, given = contexts.read(job.plan.request, device), contexts.read_given(job.key, device)
                latents = run.denoise_all(job.plan, *prompts, given, job.clock, lambda: transformer)
                saved = run.to_save(job.plan, latents, job.output, self.options.metadata, job.lossless)
                job.latents = run.keep(saved, job.clock.listen)
                if job.latents is None:
                    raise OutputError("the latents can be written nowhere", "free some space")
                self.journal.write("denoised", key=job.key, latents=str(job.latents.absolute()))

    def _decode(self, jobs: Sequence[Job], made: Callable[[run.Result], None]) -> None:
        if not jobs:
            return
        with jobs[0].clock.timed("load"):
            vae = run.load_whole_vae(jobs[0].plan)
        for number, job in enumerate(jobs, 1):
            job.clock.listen = self._about(job.line, f"{number} of {len(jobs)}")
            path = None
            with self._guarded(job):
                assert job.latents is not None
                saved = load_latents(job.latents)
                path = run.decode_to_file(job.plan, saved, job.output, self.options.overwrite, job.clock, lambda: vae)
                self._finish(job, path)
            if path is not None:
                seam = seam_of(job.plan.request, path, job.clock.listen)
                made(run.Result(path, job.plan.request, job.clock.seconds, seam))

    def _make_shots(self, job: ShotsJob, count: str, made: Callable[[run.Result], None]) -> None:
        options, result = self.options, None
        with self._guarded(job):
            result = make_storyboard(
                job.board, device=options.device, dtype=options.dtype, metadata=options.metadata, lossless=job.lossless,
                overwrite=options.overwrite, strict_prompt=options.strict_prompt, listen=self._about(job.line, count),
            )  # fmt: skip
            self._finish(job, result.path)
        if result is not None:
            made(result)

    @contextmanager
    def _guarded(self, job: Job | ShotsJob) -> Iterator[None]:
        """A job that fails ends by itself, not with all others."""
        try:
            yield
        except Exception as error:
            self._fail(job.line, error)
            self.journal.write("failed", key=job.key, line=job.line, error=f"{type(error).__name__}: {error}")
            free(job.plan)


def free(plan: Plan) -> None:
    gc.collect()
    free_memory(plan.machine.device)
