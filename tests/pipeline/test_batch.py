"""Lists: one load of each network, what a kill loses, and that a seed means the same alone and in a list."""

from __future__ import annotations

import gc
import json
import os
import signal
import subprocess
import sys
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from soragen.errors import NumericalError
from soragen.pipeline import run
from soragen.video.recipe import read_recipe

SMALL = ["--size", "128x128", "--frames", "5", "--steps", "2", "--device", "cpu"]
THREE = '{"prompt": "a red ball"}\n{"prompt": "a blue cube", "seed": 2}\n{"prompt": "a green cone"}\n'


@pytest.fixture
def batch(cli: Any, tiny: Path) -> Callable[..., Any]:
    """batch() makes list.jsonl on the tiny checkpoint, small."""

    def command(*arguments: str, name: str = "list.jsonl") -> Any:
        return cli("batch", name, "--model", str(tiny), *SMALL, *arguments)

    return command


def journal(name: str = "list.jsonl") -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(f"{name}.journal").read_text().splitlines()]


def interrupting(monkeypatch: pytest.MonkeyPatch, name: str, at: int, error: BaseException) -> None:
    """From its call number `at` on, the function of run.py raises `error`."""
    function, count = getattr(run, name), iter(range(1, 100))

    def counted(*arguments: Any, **options: Any) -> Any:
        if next(count) >= at:
            raise error
        return function(*arguments, **options)

    monkeypatch.setattr(run, name, counted)


def test_each_network_is_loaded_once_and_alone(batch: Any, calls: Any, home: Path) -> None:
    Path("list.jsonl").write_text(THREE)
    ended = batch("-o", "videos")
    assert ended.code == 0, ended.err
    assert calls.loaded == ["text_encoder", "t5", "transformer", "vae"]
    assert calls.alive == {"text_encoder": [], "t5": ["text_encoder"], "transformer": [], "vae": []}
    made = [Path(line) for line in ended.out.split()]
    assert [path.name.rpartition("-")[0] for path in made] == ["a-red-ball", "a-blue-cube", "a-green-cone"]
    assert sorted(home.rglob("*")) == sorted(
        [home / "list.jsonl", home / "list.jsonl.journal", home / "videos", *(home / path for path in made)]
    )
    assert Path("list.jsonl").read_text() == THREE


def test_a_seed_gives_the_same_file_alone(batch: Any, cli: Any, tiny: Path) -> None:
    Path("list.jsonl").write_text(THREE + '{"prompt": "a blue cube", "command": "image", "seed": 2, "size": "65x97"}\n')
    made = batch().out.split()
    alone = ["--model", str(tiny), "--size", "128x128", "--frames", "5", "--steps", "2", "--seed", "2"]
    assert cli("generate", "a blue cube", *alone, "-o", "alone.mp4").code == 0
    assert Path("alone.mp4").read_bytes() == Path(made[1]).read_bytes()
    assert cli("image", "a blue cube", *alone[:2], "--size", "65x97", *alone[6:], "-o", "alone.png").code == 0
    assert Path("alone.png").read_bytes() == Path(made[3]).read_bytes()
    assert made[1:4:2] == ["a-blue-cube-2.mp4", "a-blue-cube-2.png"]


def test_bad_lines_are_passed_over_and_named_at_the_end(batch: Any) -> None:
    text = '{"prompt": "a ball", "seed": 1}\nnonsense\n{"prompt": "a cube", "size": "9x9"}\n{"prompt": "a \\u001b"}\n'
    Path("list.jsonl").write_text(text)
    ended = batch()
    assert ended.code == 2 and ended.out == "a-ball-1.mp4\n"
    assert "line 2: not JSON" in ended.err and "line 3: size 9x9" in ended.err and "line 4: the prompt has" in ended.err
    assert ended.err.endswith("error: 3 of 4 lines came to nothing\nhint: correct them, then add --resume\n")
    assert Path("list.jsonl").read_text() == text

    values = json.loads(batch("--resume", "--json").out)
    assert values["videos"] == [] and [failed["line"] for failed in values["failed"]] == [2, 3, 4]

    Path("list.jsonl").write_text('{"prompt": "a cube"}\n{"prompt": "a ball", "seed": 1}\n')
    ended = batch("--resume")
    assert ended.code == 0 and ended.out.startswith("a-cube-") and len(ended.out.split()) == 1


def test_a_kill_loses_only_what_was_running(batch: Any, calls: Any, tiny: Path, home: Path) -> None:
    Path("list.jsonl").write_text(THREE)
    script = (
        "import os, signal, sys\n"
        "from soragen.pipeline import run\n"
        "from soragen.cli import app, entry\n"
        "made, count = run.denoise_windows, iter(range(9))\n"
        "def denoise(*a): return made(*a) if next(count) < 2 else os.kill(os.getpid(), signal.SIGKILL)\n"
        "run.denoise_windows = denoise\n"
        "entry.run(app, sys.argv[1:])\n"
    )
    command = ["batch", "list.jsonl", "--model", str(tiny), *SMALL]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    killed = subprocess.run([sys.executable, "-c", script, *command], capture_output=True, env=environment)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert len(list(home.glob("*.latents.safetensors"))) == 2 and not list(home.glob("*.mp4"))
    asked = [record["request"]["seed"] for record in journal() if record["event"] == "asked"]

    with Path("list.jsonl.journal").open("a") as file:
        file.write('{"event": "den')  # as when it was killed while it wrote
    refused = batch()
    assert refused.code == 2 and "was begun before" in refused.err and not list(home.glob("*.mp4"))
    ended = batch("--resume")
    assert ended.code == 0, ended.err
    assert calls.forwards == 2 * 2  # the third alone: two steps, each with guidance
    recipes = [read_recipe(Path(name)) or {} for name in ended.out.split()]
    assert [recipe["request"]["seed"] for recipe in recipes] == asked
    assert not [path for path in home.iterdir() if "latents" in path.name or path.name.startswith(".")]
    assert Path("list.jsonl.journal").read_text().endswith('{"event": "end"}\n')


def test_an_interrupt_while_decoding_loses_no_denoising(
    batch: Any, calls: Any, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("list.jsonl").write_text(THREE)
    with monkeypatch.context() as patch:
        interrupting(patch, "decode_to_file", 2, KeyboardInterrupt())
        ended = batch()
    assert ended.code == 130 and len(ended.out.split()) == 1
    assert "note: to go on: soragen batch list.jsonl --resume" in ended.err
    calls.loaded.clear()
    again = batch("--resume")
    assert again.code == 0 and len(again.out.split()) == 2
    assert calls.loaded == ["vae"]
    assert "1 of 3 are done already" in again.err
    Path(again.out.split()[0]).unlink()
    assert batch("--resume").out.split() == again.out.split()[:1]


def test_one_that_fails_does_not_end_the_others(batch: Any, monkeypatch: pytest.MonkeyPatch, calls: Any) -> None:
    Path("list.jsonl").write_text(THREE)
    with monkeypatch.context() as patch:
        interrupting(patch, "decode_to_file", 3, NumericalError("frames that are not finite", "try another seed"))
        ended = batch()
    assert ended.code == NumericalError.exit_code and len(ended.out.split()) == 2
    assert "line 3: frames that are not finite (try another seed)\n" in ended.err
    assert "1 of 3 lines came to nothing; --resume tries them again" in ended.err
    calls.loaded.clear()
    assert batch("--resume").code == 0 and calls.loaded == ["vae"]


def test_a_video_in_place_is_done_even_if_the_journal_does_not_say_so(
    batch: Any, calls: Any, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("list.jsonl").write_text(THREE)
    batch()
    kept = [line for line in Path("list.jsonl.journal").read_text().splitlines(True) if '"done"' not in line]
    Path("list.jsonl.journal").write_text("".join(kept))
    calls.loaded.clear()
    ended = batch("--resume")
    assert (ended.code, ended.out, calls.loaded) == (0, "", []) and len(list(home.glob("*.mp4"))) == 3


def test_memory_does_not_grow_with_the_list(batch: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """What one job made is gone before the next begins."""
    alive: list[int] = []
    for name in ("encode_prompts", "denoise_windows", "load_latents"):
        from soragen.pipeline import batch as module

        owner = module if name == "load_latents" else run
        function, made = getattr(owner, name), list[weakref.ref[Any]]()

        def watched(*arguments: Any, _call: Any = function, _made: Any = made) -> Any:
            gc.collect()
            alive.append(sum(one() is not None for one in _made))
            result = _call(*arguments)
            _made.append(weakref.ref(result[0].embeddings if isinstance(result, tuple) else result))
            return result

        monkeypatch.setattr(owner, name, watched)
    Path("list.jsonl").write_text(THREE)
    assert batch().code == 0
    assert len(alive) == 9 and max(alive) <= 1  # the one before, while its names are still in use


def test_the_same_line_twice_is_two_videos(batch: Any) -> None:
    Path("list.txt").write_text("a ball\na ball\n")
    ended = batch("--seed", "4", name="list.txt")
    assert ended.out.split() == ["a-ball-4.mp4", "a-ball-4-2.mp4"]
    assert Path("a-ball-4.mp4").read_bytes() == Path("a-ball-4-2.mp4").read_bytes()


def test_a_line_says_more_than_the_options(batch: Any) -> None:
    Path("list.csv").write_text("prompt,frames,seed,output\na ball,9,3,x.mp4\na cube,,,\na cone,,,x.mp4\n")
    ended = batch("--dry-run", "--json", "--seed", "8", name="list.csv")
    assert ended.code == 2 and "line 4: output x.mp4 is that of another line" in ended.err
    plans = [(plan["request"]["num_frames"], plan["request"]["seed"]) for plan in json.loads(ended.out)]
    assert plans == [(9, 3), (5, 8)]
    assert [path.name for path in Path().iterdir()] == ["list.csv"]
    assert "x.mp4" in batch("--dry-run", name="list.csv").out
