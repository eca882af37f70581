"""The scripts under examples/, run on the embedded model as a user would."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import pytest
import torch

from soragen.size import VideoSize
from soragen.video.facts import video_facts
from soragen.video.write import write_video

EXAMPLES = Path(__file__).parents[1] / "examples"
SMALL = ["--size", "64x64", "--frames", "5", "--steps", "1"]

if shutil.which("bash") is None:
    pytest.skip("no bash here", allow_module_level=True)


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):  # type: ignore[no-untyped-def]
    """Runs a script in an empty folder, with the `soragen` of this interpreter on the path."""
    programs = tmp_path / "bin"
    programs.mkdir()
    program = programs / "soragen"
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m soragen "$@"\n')
    program.chmod(0o755)
    environment = {**os.environ, "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}"}
    environment["PYTHONPATH"] = os.pathsep.join([str(EXAMPLES.parent), os.environ.get("PYTHONPATH", "")])

    def script(name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        command = ["bash", str(EXAMPLES / name), *arguments]
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)

    return script


def test_every_script_is_tested() -> None:
    assert {path.stem for path in EXAMPLES.glob("*.sh")} == {
        "again", "from_list", "poster", "seeds", "longer", "endless", "postcards", "join", "seasons",
    }  # fmt: skip


def test_from_list(run, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    prompts = (EXAMPLES / "prompts.txt").read_text().splitlines()
    done = run("from_list.sh", str(EXAMPLES / "prompts.txt"), "videos", *SMALL)
    assert done.returncode == 0, done.stderr
    made = sorted(tmp_path.glob("videos/*"))
    assert done.stdout.split() == [str(path.relative_to(tmp_path)) for path in made]
    assert len(made) == len(prompts)

    made[0].unlink()
    again = run("from_list.sh", str(EXAMPLES / "prompts.txt"), "videos", *SMALL)
    assert again.stdout.split() == ["videos/001.mp4"]


def test_from_list_goes_on_after_a_failure(run, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "list.txt").write_text("a \x1b ball\n\n-x\n")
    done = run("from_list.sh", "list.txt", "videos", "--size", "1x1")
    assert done.returncode == 1
    assert "line 1 failed with exit code 2" in done.stderr and "line 2 failed with exit code 2: -x" in done.stderr


def test_again_and_poster(run, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    done = run("poster.sh", "a yellow duck", "7", "--steps", "1")
    assert done.stdout.split() == ["poster-1x1.png", "poster-16x9.png", "poster-9x16.png"], done.stderr
    done = run("again.sh", "poster-16x9.png", "1")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("a-yellow-duck-") and (tmp_path / done.stdout.strip()).is_file()


def test_batch(run, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "batch.jsonl").write_bytes((EXAMPLES / "batch.jsonl").read_bytes())
    (tmp_path / "run.sh").write_text('soragen batch batch.jsonl -o videos --size 64x64 --frames 5 --steps 1 "$@"\n')
    done = run(str(tmp_path / "run.sh"))
    assert done.returncode == 0, done.stderr
    ball, house = "a-red-ball-bouncing-on-green-grass-at-sunset-1.mp4", "a-white-house-in-the-snow-at-night-3.png"
    assert done.stdout.split() == [f"videos/{name}" for name in (ball, "cube.mp4", house)]


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    frames = torch.arange(6 * 64 * 64 * 3).remainder(251).byte().view(6, 64, 64, 3)
    return write_video(tmp_path / "clip.mkv", [frames], VideoSize(64, 64, 6, Fraction(12)), recipe=None, lossless=True)


def test_longer(run, clip: Path, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    done = run("longer.sh", "clip.mkv", "2", "--frames", "4", "--steps", "1", "--seed", "1")
    assert done.returncode == 0, done.stderr
    assert done.stdout == "clip-extended-1-extended-1.mp4\n"
    assert video_facts(tmp_path / done.stdout.strip()).num_frames == 6 + 2 * 4
    assert video_facts(tmp_path / "clip-extended-1.mkv").codec == "ffv1"


def test_endless(run, clip: Path, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    done = run("endless.sh", "clip.mkv", "2", "--frames", "4", "--steps", "1")
    assert done.returncode == 0, done.stderr
    assert done.stdout in ("bridge-1.gif\n", "bridge-2.gif\n")
    assert video_facts(tmp_path / "bridge-2.gif").num_frames == 10


def test_postcards(run, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    frames = torch.full((1, 64, 64, 3), 90, dtype=torch.uint8)
    write_video(tmp_path / "a.png", [frames], VideoSize(64, 64, 1, Fraction(12)), recipe=None)
    script = (EXAMPLES / "postcards.sh").read_text().replace("--quiet", f"--quiet --seed 1 {' '.join(SMALL)}")
    (tmp_path / "small.sh").write_text(script)
    done = run(str(tmp_path / "small.sh"), "it turns", "none.png", "a.png")
    assert (done.returncode, done.stdout) == (1, "a-animated-1.mp4\n")
    assert done.stderr.startswith("error: no file none.png")


def test_join_and_seasons(run, clip: Path, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    for name in ("join.sh", "seasons.sh"):
        script = (EXAMPLES / name).read_text()
        (tmp_path / name).write_text(script.replace("--quiet", "--quiet --steps 2 --seed 1"))
    done = run(str(tmp_path / "join.sh"), "it flies on", "clip.mkv", "clip.mkv")
    assert done.returncode == 0, done.stderr
    assert done.stdout == "clip-to-clip-1.mp4\n"
    assert video_facts(tmp_path / done.stdout.strip()).num_frames == 2 * 6 + 12
    done = run(str(tmp_path / "seasons.sh"), "clip.mkv", "a ball at night")
    assert done.stdout == "clip-restyled-1.mp4\n", done.stderr


def test_storyboard(run, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    text = (EXAMPLES / "storyboard.toml").read_text()
    small = text.replace('size = "256x144"', 'size = "64x64"\nsteps = 1').replace("seconds = 2", "frames = 5")
    (tmp_path / "ball.toml").write_text(small)
    (tmp_path / "run.sh").write_text("soragen storyboard ball.toml --quiet\n")
    done = run(str(tmp_path / "run.sh"))
    assert (done.returncode, done.stdout) == (0, "ball.mp4\n"), done.stderr
    assert video_facts(tmp_path / "ball.mp4").num_frames == 5 + 5 + 18


def test_seeds(run, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    done = run("seeds.sh", "a red ball", "2", "--size", "64x64", "--steps", "1")
    assert done.returncode == 0, done.stderr
    assert [line.split()[:2] for line in done.stdout.splitlines()] == [["seed", "1"], ["seed", "2"]]
    assert len(list(tmp_path.glob("a-red-ball-*.mp4"))) == 2
