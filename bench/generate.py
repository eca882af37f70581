"""Measures soragen as a user meets it: whole processes, one after the other, on the embedded model.

    python bench/generate.py                          # prints the tables
    python bench/generate.py --write docs/bench.md    # and puts them into the page, between its marks
    python bench/generate.py --quick                  # one tiny case, to see that it works

Nothing else should run meanwhile.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from watch import Run, run

from soragen import __version__
from soragen.catalog import find
from soragen.pipeline.events import STAGES
from soragen.pipeline.resolve import resolve
from soragen.request import Request

PROMPT, SEED = "a red ball bouncing on green grass at sunset", 1
HELP_LIMIT, CLIP_LIMIT, DECODE_LIMIT = 0.3, 12.0, 1.10
BEGIN, END = "<!-- bench: begin -->", "<!-- bench: end -->"


@dataclass(frozen=True)
class Case:
    """A video to make; what is None is the model's default."""

    size: str
    seconds: str | None = None
    frames: int | None = None
    steps: int | None = None

    def __str__(self) -> str:
        return f"{self.size}, {self.seconds} s" if self.seconds else f"{self.size}, {self.frames} frame(s)"

    @property
    def options(self) -> list[str]:
        return [word for name, value in vars(self).items() if value is not None for word in (f"--{name}", str(value))]

    @property
    def request(self) -> Request:
        return resolve(PROMPT, listen=lambda event: None, seed=SEED, **vars(self))


CASES = (  # the first is the native size, which has a limit
    Case("128x128", "2"), Case("128x128", frames=1), Case("256x256", "2"), Case("256x256", "20"), Case("1280x720", "2"),
)  # fmt: skip
IMPORTS = ("soragen.cli", "torch", "soragen.pipeline.run")
DECODED = (Case("256x256", "2"), Case("256x256", "20"))
COMPARED = Case("256x256", "2")
QUICK = Case("64x64", frames=5, steps=1)


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    return "\n".join("| " + " | ".join(row) + " |" for row in (head, ["---"] * len(head), *rows))


def middle(runs: Sequence[Run], of: Callable[[Run], float]) -> str:
    return f"{median(map(of, runs)):.2f}"


def peak(runs: Sequence[Run], of: Callable[[Run], int]) -> str:
    return f"{max(map(of, runs)) / 1e6:.0f}"


def stages(runs: Sequence[Run]) -> list[str]:
    """Seconds of all that is no stage (imports, checks, the end of the process), then of each stage."""
    rows = []
    for done in runs:
        said = json.loads(done.out)["seconds"]
        rows.append([done.wall - sum(said[stage] for stage in STAGES), *(said[stage] for stage in STAGES)])
    return [f"{median(column):.2f}" for column in zip(*rows, strict=True)]


@dataclass(frozen=True)
class Bench:
    """How often each process is run, on how many threads, and a folder for what they write."""

    repeats: int
    threads: int
    folder: Path

    def repeat(self, arguments: Sequence[str]) -> list[Run]:
        return [run(arguments, {"OMP_NUM_THREADS": str(self.threads)}) for _ in range(self.repeats)]

    def generate(self, case: Case, cache: Path, threads: int | None = None, dtype: str | None = None) -> Run:
        command = ["-m", "soragen", "generate", PROMPT, *case.options, "--seed", str(SEED), "--json", "--quiet"]
        command += ["--dtype", dtype] if dtype else []
        variables = {"OMP_NUM_THREADS": str(threads or self.threads), "SORAGEN_CACHE": str(cache)}
        output = ["--overwrite", "--output", str(self.folder / "video.mp4")]
        return run([*command, *output], variables, may_fail=dtype is not None)

    def start(self, modules: Sequence[str]) -> tuple[str, float]:
        """The table of what comes before any work, and the CPU seconds of --help."""
        shown = self.repeat(["-m", "soragen", "--help"])
        rows = [["`soragen --help`", middle(shown, lambda r: r.cpu), middle(shown, lambda r: r.wall),
                 peak(shown, lambda r: r.memory)]]  # fmt: skip
        for module in modules:
            runs = self.repeat(["-c", f"import {module}"])
            rows.append([f"`import {module}`", middle(runs, lambda r: r.cpu), middle(runs, lambda r: r.wall),
                         peak(runs, lambda r: r.memory)])  # fmt: skip
        return table(["process", "CPU s", "wall s", "memory MB"], rows), median(r.cpu for r in shown)

    def videos(self, cases: Sequence[Case]) -> tuple[str, float]:
        """The table of whole videos, and the wall seconds of the first one."""
        from soragen.pipeline.plan import make_plan

        rows, first = [], 0.0
        for number, case in enumerate(cases):
            peaks = make_plan(case.request, find("pocket"), "cpu").peak_bytes
            planned = max(size for stage, size in peaks.items() if stage != "encode")  # ffmpeg is another process
            caches = [self.folder / f"cache-{number}-{n}" for n in range(self.repeats)]
            cold = [self.generate(case, cache) for cache in caches]
            cached = [self.generate(case, cache) for cache in caches]
            first = first or median(r.wall for r in cold)
            for prompt, runs in (("cold", cold), ("cached", cached)):
                memory = [peak(runs, lambda r: r.memory), f"{planned / 1e6:.0f}", peak(runs, lambda r: r.ffmpeg)]
                rows.append([str(case), prompt, middle(runs, lambda r: r.wall), *stages(runs), *memory])
        head = ["video", "prompt", "wall s", "import", *STAGES, "memory MB", "planned MB", "ffmpeg MB"]
        return table(head, rows), first

    def decoding(self, short: Case, long: Case) -> tuple[str, float]:
        """The table of decoding alone, and the peak memory of the long video as a multiple of the short one's."""
        rows, peaks = [], []
        for case in (short, long):
            runs = []
            for _ in range(self.repeats):
                latents = save_noise(self.folder / "noise.mp4", case.request)
                command = ["-m", "soragen", "decode", str(latents), "--json", "--quiet", "--overwrite"]
                runs.append(run(command, {"OMP_NUM_THREADS": str(self.threads)}))
            peaks.append(max(r.memory for r in runs))
            rows.append([str(case), middle(runs, lambda r: r.wall), peak(runs, lambda r: r.memory),
                         peak(runs, lambda r: r.ffmpeg)])  # fmt: skip
        return table(["video", "wall s", "memory MB", "ffmpeg MB"], rows), peaks[1] / peaks[0]

    def compared(self, case: Case) -> str:
        """Types and threads, with a cached prompt. A type that the model refuses has the refusal for its row."""
        cache, rows = self.folder / "cache-compared", []
        for dtype, threads in (("float32", 1), ("float32", 2), ("bfloat16", 2)):
            self.generate(case, cache, threads, dtype)  # fills the cache
            runs = [self.generate(case, cache, threads, dtype) for _ in range(self.repeats)]
            if failed := [r.err.splitlines()[0] for r in runs if r.code]:
                rows.append([dtype, str(threads), failed[0], *[""] * 7])
            else:
                rows.append([dtype, str(threads), middle(runs, lambda r: r.wall), *stages(runs),
                             peak(runs, lambda r: r.memory)])  # fmt: skip
        return table(["type", "threads", "wall s", "import", *STAGES, "memory MB"], rows)


def save_noise(output: Path, request: Request) -> Path:
    """Latents as `generate` leaves them beside `output` when decoding fails. Noise: the hardest there is for ffmpeg."""
    from soragen.diffusion.noise import starting_noise
    from soragen.pipeline.latents import Saved, save_latents
    from soragen.pipeline.plan import make_plan
    from soragen.pipeline.run import make_recipe

    plan = make_plan(request, find("pocket"), "cpu")
    noise = starting_noise(SEED, plan.latent_channels, plan.grid)
    return save_latents(output.parent, Saved(noise, make_recipe(plan), "pocket", output, metadata=True))


def machine(threads: int) -> str:
    from importlib.metadata import version

    names = [line.partition(":")[2].strip() for line in lines_of("/proc/cpuinfo") if line.startswith("model name")]
    processor = names[0] if names else platform.machine()
    return (
        f"{processor}, {threads} threads on {usable_cores()} cores, torch {version('torch')}, "
        f"Python {platform.python_version()}, soragen {__version__}; load before the start {os.getloadavg()[0]:.1f}"
    )


def lines_of(path: str) -> list[str]:
    return Path(path).read_text().splitlines() if Path(path).exists() else []


def usable_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def report(bench: Bench, quick: bool) -> str:
    """All tables as Markdown."""
    about = machine(bench.threads)
    cases, decoded = ((QUICK,), (QUICK, QUICK)) if quick else (CASES, DECODED)
    start, help_seconds = bench.start(IMPORTS[-1:] if quick else IMPORTS)
    videos, clip_seconds = bench.videos(cases)
    decoding, ratio = bench.decoding(*decoded)
    limits = [
        ("CPU seconds of `soragen --help`", help_seconds, HELP_LIMIT),
        (f"wall seconds of {cases[0]}, cold", clip_seconds, CLIP_LIMIT),
        (f"peak memory of decoding and writing, {decoded[1]}, as a multiple of {decoded[0]}", ratio, DECODE_LIMIT),
    ]
    rows = [(what, f"{found:.2f}", f"{most:.2f}", "yes" if found <= most else "**no**") for what, found, most in limits]
    options = f"{' --quick' if quick else ''} --repeat {bench.repeats} --threads {bench.threads}"
    parts = [
        f"`python bench/generate.py{options} --write docs/bench.md`", about,
        "### Limits", table(["what", "measured", "at most", "holds"], rows),
        "### Start", start, "### Videos", videos, "### Decoding and writing alone", decoding,
    ]  # fmt: skip
    return "\n\n".join(parts if quick else [*parts, f"### Types and threads: {COMPARED}", bench.compared(COMPARED)])


def write(page: Path, text: str) -> None:
    """Replaces what is between the marks of `page`."""
    before, begin, rest = page.read_text(encoding="utf-8").partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        sys.exit(f"{page} lacks the marks {BEGIN} and {END}")
    page.write_text(f"{before}{BEGIN}\n\n{text}\n\n{END}{after}", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description="Measures soragen as whole processes and prints Markdown tables.")
    parser.add_argument("--quick", action="store_true", help="one tiny case, once")
    parser.add_argument("--repeat", type=int, help="runs of each process; times are medians, memory the highest")
    parser.add_argument("--threads", type=int, default=usable_cores(), help="of torch; all cores unless said")
    parser.add_argument("--write", type=Path, metavar="PAGE", help="a page to put the tables into")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(options.repeat or (1 if options.quick else 3), options.threads, Path(folder))
        text = report(bench, options.quick)
    print(text)
    if options.write:
        write(options.write, text)


if __name__ == "__main__":
    main()
