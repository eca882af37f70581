"""Nothing that goes wrong after the denoising loses it: the latents stay, the user is told, `decode` ends the run."""

from __future__ import annotations

import errno
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from soragen.errors import OutputError
from soragen.families.pocket.transformer import PocketTransformer
from soragen.families.pocket.vae import PocketVae
from soragen.models.text_encoder import PromptEncoder
from soragen.pipeline import run
from soragen.pipeline.events import Event, Note
from soragen.pipeline.latents import load_latents
from soragen.video.ffmpeg import Ffmpeg
from soragen.video.recipe import read_recipe

LATENTS = "a.latents.safetensors"


def after_one_chunk(fail: Callable[[Tensor], Tensor]) -> Callable[..., Iterator[Tensor]]:
    """A `PocketVae.decode` whose second chunk goes through `fail`."""
    decode = PocketVae.decode

    def failing(self: PocketVae, latents: Tensor, *, seed: int = 0) -> Iterator[Tensor]:
        chunks = decode(self, latents, seed=seed)
        yield next(chunks)
        yield fail(next(chunks))
        yield from chunks

    return failing


def raising(error: BaseException) -> Callable[[Tensor], Tensor]:
    def fail(chunk: Tensor) -> Tensor:
        raise error

    return fail


def send(number: signal.Signals) -> Callable[[Tensor], Tensor]:
    def fail(chunk: Tensor) -> Tensor:
        signal.raise_signal(number)
        return chunk

    return fail


FAILURES = {
    "bug": (raising(RuntimeError("shapes do not fit")), 1),
    "memory": (raising(MemoryError()), 4),
    "accelerator memory": (raising(torch.OutOfMemoryError("CUDA out of memory")), 4),
    "disk": (raising(OSError(errno.ENOSPC, "No space left on device")), 4),
    "output": (raising(OutputError("ffmpeg is missing", "install it")), 5),
    "not finite": (lambda chunk: chunk * torch.nan, 6),
    "too few frames": (lambda chunk: chunk[:0], 1),
    "interrupt": (send(signal.SIGINT), 130),
    "termination": (send(signal.SIGTERM), 130),
}


@pytest.mark.parametrize("name", FAILURES)
def test_a_failure_in_decoding_loses_nothing(
    name: str, cli: Any, calls: Any, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fail, code = FAILURES[name]
    with monkeypatch.context() as broken:
        broken.setattr(PocketVae, "decode", after_one_chunk(fail))
        ended = cli("generate", "a ball", "--debug")
    assert ended.code == code
    assert f"the denoised latents are kept: run `soragen decode {home / LATENTS}`" in ended.err
    assert [path.name for path in home.iterdir()] == [LATENTS]

    calls.forwards = 0
    calls.loaded.clear()
    ended = cli("decode", str(home / LATENTS))
    assert (ended.code, ended.out) == (0, f"{home / 'a.mp4'}\n")
    assert calls.loaded == ["vae"] and calls.forwards == 0
    assert [path.name for path in home.iterdir()] == ["a.mp4"]

    assert cli("generate", "a ball", "-o", "whole.mp4").code == 0
    assert Path("whole.mp4").read_bytes() == Path("a.mp4").read_bytes()


@pytest.mark.parametrize("reason", ["killed", "disk full"])
def test_a_failure_of_ffmpeg_loses_nothing(reason: str, cli: Any, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    running: list[Ffmpeg] = []
    enter = Ffmpeg.__enter__

    def entered(self: Ffmpeg) -> Ffmpeg:
        running.append(self)
        return enter(self)

    def stop(chunk: Tensor) -> Tensor:
        if reason == "disk full":
            running[-1].errors.append("av_interleaved_write_frame(): No space left on device")
        running[-1].process.kill()
        return chunk

    with monkeypatch.context() as broken:
        broken.setattr(Ffmpeg, "__enter__", entered)
        broken.setattr(PocketVae, "decode", after_one_chunk(stop))
        ended = cli("generate", "a ball", "--quiet")
    assert ended.code == (4 if reason == "disk full" else 5)
    assert f"hint: the denoised latents are kept: run `soragen decode {home / LATENTS}`" in ended.err
    assert [path.name for path in home.iterdir()] == [LATENTS]
    assert cli("decode", LATENTS).code == 0


@pytest.mark.parametrize("network", [PromptEncoder, PocketTransformer], ids=["text", "denoise"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_before_there_are_latents_leaves_nothing(
    network: type, number: signal.Signals, cli: Any, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    method = "encode" if network is PromptEncoder else "forward"
    monkeypatch.setattr(network, method, lambda *arguments: signal.raise_signal(number))
    ended = cli("generate", "a ball")
    assert ended.code == 130 and ended.err.endswith("interrupted\n") and "decode" not in ended.err
    assert list(home.iterdir()) == []


@pytest.fixture
def left(cli: Any, home: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """The latents that a failed `generate` left."""

    def fail(*options: str) -> Path:
        before = set(home.rglob("*.latents*"))
        with monkeypatch.context() as broken:
            broken.setattr(PocketVae, "decode", after_one_chunk(raising(RuntimeError())))
            assert cli("generate", "a ball", *options).code == 1
        (path,) = set(home.rglob("*.latents*")) - before
        return path

    return fail


def test_latents_of_an_earlier_run_are_not_touched(left: Callable[..., Path], cli: Any, home: Path) -> None:
    first, second = left("--seed", "1"), left("--seed", "2")
    assert [load_latents(path).recipe["request"]["seed"] for path in (first, second)] == [1, 2]
    kept = first.read_bytes()
    assert cli("generate", "a ball", "--seed", "3").code == 0
    assert first.read_bytes() == kept and second.exists()


def test_decode_takes_the_name_that_was_asked_and_replaces_nothing(
    left: Callable[..., Path], cli: Any, home: Path
) -> None:
    (home / "films").mkdir()
    latents = left("-o", "films/b.mp4")
    (home / "films" / "b.mp4").write_bytes(b"another film")
    assert cli("decode", str(latents)).out == f"{home / 'films' / 'b-2.mp4'}\n"
    latents = left("-o", "films/b.mp4", "--overwrite")
    assert cli("decode", str(latents), "-o", "films/b.mp4").code == 5 and latents.exists()
    assert cli("decode", str(latents), "--overwrite").out == f"{home / 'films' / 'b.mp4'}\n"


def test_latents_may_be_moved(left: Callable[..., Path], cli: Any, tmp_path: Path, home: Path) -> None:
    folder = home / "gone"
    folder.mkdir()
    moved = shutil.move(left("-o", "gone/b.mp4"), tmp_path / "moved.safetensors")
    folder.rmdir()
    assert cli("decode", str(moved)).out == f"{tmp_path / 'b.mp4'}\n"


def test_decode_finds_a_model_that_was_named_from_another_folder(
    left: Callable[..., Path], cli: Any, tiny: Path, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (home / "models").symlink_to(tiny.parent)
    latents = left("--model", "models/tiny")
    monkeypatch.chdir(tmp_path)
    assert cli("decode", str(latents)).code == 0


def test_decode_keeps_the_recipe_out_of_the_video_when_it_was_not_wanted(left: Callable[..., Path], cli: Any) -> None:
    ended = cli("decode", str(left("--no-metadata")))
    assert read_recipe(Path(ended.out.strip())) is None


def test_decode_refuses_latents_of_another_model(
    left: Callable[..., Path], cli: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    latents = left()
    monkeypatch.setattr("soragen.checkpoint.Checkpoint.digest", "ab" * 32)
    ended = cli("decode", str(latents))
    assert ended.code == 2 and "another version of tiny" in ended.err and latents.exists()


def test_a_second_failure_leaves_the_latents_again(
    left: Callable[..., Path], cli: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    latents = left()
    monkeypatch.setattr(PocketVae, "decode", after_one_chunk(raising(MemoryError())))
    ended = cli("decode", str(latents))
    assert ended.code == 4 and f"run `soragen decode {latents}`" in ended.err and latents.exists()


@pytest.mark.parametrize("num_full", [1, 2])
def test_latents_that_cannot_be_written_do_not_end_the_run(
    num_full: int, ask: Any, make: Any, events: list[Event], home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """First beside the video, then among temporary files, and at last without: the video may still find room."""
    tried: list[Path] = []
    save = run.save_latents

    def full(folder: Path, *arguments: Any) -> Path:
        tried.append(folder)
        if len(tried) <= num_full:
            raise OutputError("no room")
        return save(folder, *arguments)

    monkeypatch.setattr(run, "save_latents", full)
    assert make(ask()).path.exists()
    assert tried == [home, tmp_path / "temporary"]
    assert sum(event == Note("latents not kept there: no room") for event in events) == num_full
    assert [path.name for path in home.iterdir()] == ["a.mp4"] and list((tmp_path / "temporary").iterdir()) == []
