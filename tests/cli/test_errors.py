"""Each way to go wrong has its exit code, one line that says what was wrong, and one that says what would work."""

from __future__ import annotations

import errno
import os
import shutil
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path

import pytest
from fakes import Cli, FakeRun

from soragen import errors

BALL = "a red ball"

BAD_INPUT = [
    ([""], "prompt is empty", "say what to show"),
    (["  \n\t "], "prompt is empty", "say what to show"),
    (["a\0ball"], "control character (U+0000) at character 2", "remove"),
    (["a \x1b[2Jball"], "control character (U+001B)", "remove"),
    (["a \udcff ball"], "not valid UTF-8", "UTF-8"),
    (["x" * 1_000_001], "1,000,001 characters", "at most 1,000,000"),
    ([BALL, "--negative", "a\x07"], "negative prompt has a control character", "remove"),
    ([BALL, "--size", "10y10"], "'10y10' is not WIDTHxHEIGHT", "1280x720"),
    ([BALL, "--size", "0x0"], "outside 64..4096", "between 64 and 4096"),
    ([BALL, "--size", "0:9"], "a side of zero", "16:9"),
    ([BALL, "--size", "5000x64"], "outside 64..4096", "between"),
    ([BALL, "--size", ""], "not WIDTHxHEIGHT", "1280x720"),
    ([BALL, "--seconds", "-2"], "'-2' is not a positive number", "--seconds 5"),
    ([BALL, "--seconds", "nan"], "'nan' is not a positive number", "--seconds 5"),
    ([BALL, "--seconds", "0"], "not a positive number", "--seconds 5"),
    ([BALL, "--seconds", "3601"], "longer than an hour", "3600"),
    ([BALL, "--seconds", "2", "--frames", "9"], "both given", "one of them"),
    ([BALL, "--frames", "0"], "--frames 0 is out of range", "1 to 43,200"),
    ([BALL, "--frames", "nine"], "valid integer", "--help"),
    ([BALL, "--fps", "0"], "'0' is not a frame rate", "up to 240"),
    ([BALL, "--fps", "24/0"], "not a frame rate", "such as 24"),
    ([BALL, "--guidance", "nan"], "--guidance nan is out of range", "0.0 to 100.0"),
    ([BALL, "--guidance", "inf"], "out of range", "100"),
    ([BALL, "--shift", "0"], "--shift 0.0 is out of range", "100"),
    ([BALL, "--steps", "0"], "--steps 0 is out of range", "1 to 1,000"),
    ([BALL, "--steps", "1001"], "out of range", "1 to 1,000"),
    ([BALL, "--seed", "-1"], "--seed -1 is out of range", "2^63-1"),
    ([BALL, "--solver", "magic"], "no solver named 'magic'", "euler, unipc"),
    ([BALL, "--model", "pockt"], "no model named 'pockt'", "did you mean pocket"),
    ([BALL, "--model", "/no/such/folder"], "no model named", "known: pocket"),
    ([BALL, "--colour"], "No such option: --colour", "soragen generate --help"),
    ([], "Missing argument", "soragen generate --help"),
]


def check(ended: tuple[int, str, str], code: int, said: str, hint: str) -> None:
    assert ended[0] == code, ended
    assert ended[1] == ""
    lines = [line for line in ended[2].splitlines() if line and not line.startswith("note: ")]
    assert len(lines) == 2, lines
    assert lines[0].startswith("error: ") and said in lines[0], lines[0]
    assert lines[1].startswith("hint: ") and hint in lines[1], lines[1]


@pytest.mark.parametrize(("arguments", "said", "hint"), BAD_INPUT, ids=lambda value: repr(value)[:40])
def test_bad_input(cli: Cli, fake_run: FakeRun, arguments: list[str], said: str, hint: str) -> None:
    check(cli("generate", *arguments), errors.InputError.exit_code, said, hint)
    assert not fake_run.calls


@pytest.mark.parametrize(
    ("arguments", "said", "hint"),
    [
        ([], "Missing command", "soragen --help"),
        (["genrate"], "Did you mean 'generate'", "soragen --help"),
        ([BALL], "No such command", "soragen generate"),
        (["models"], "Missing command", "soragen models --help"),
        (["models", "info", "nothing"], "no model named 'nothing'", "known: pocket"),
        (["decode", "missing.safetensors"], "no file missing.safetensors", ".safetensors"),
    ],
    ids=lambda value: repr(value)[:40],
)
def test_bad_command(cli: Cli, arguments: list[str], said: str, hint: str) -> None:
    check(cli(*arguments), errors.InputError.exit_code, said, hint)


def a_folder(path: Path) -> Path:
    path.mkdir()
    return path


def a_file(path: Path) -> Path:
    path.write_text("mine")
    return path


@pytest.mark.parametrize(
    ("make", "said", "hint"),
    [
        (a_folder, "is a folder", "give a file in it"),
        (a_file, "exists already", "another name"),
        (lambda path: path / "missing" / "x.mp4", "does not exist", "mkdir"),
        (lambda path: a_file(path) / "x.mp4", "is not a folder", "another folder"),
    ],
    ids=["folder", "existing", "missing folder", "file as folder"],
)
def test_bad_output(
    cli: Cli, fake_run: FakeRun, tmp_path: Path, make: Callable[[Path], Path], said: str, hint: str
) -> None:
    output = make(tmp_path / "here.mp4")
    check(cli("generate", BALL, "-o", str(output)), errors.OutputError.exit_code, said, hint)
    assert not fake_run.calls
    assert not (tmp_path / "here.mp4").is_file() or (tmp_path / "here.mp4").read_text() == "mine"


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write anywhere")
def test_unwritable_folder(cli: Cli, fake_run: FakeRun, tmp_path: Path) -> None:
    closed = a_folder(tmp_path / "closed")
    closed.chmod(0o500)
    check(cli("generate", BALL, "-o", str(closed / "x.mp4")), errors.OutputError.exit_code, "cannot write", "folder")


def test_disk_too_small(cli: Cli, fake_run: FakeRun, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(1, 1, 1000))
    check(cli("generate", BALL), errors.ResourceError.exit_code, "GB free", "free some space")
    assert not fake_run.calls


def test_missing_ffmpeg(cli: Cli, fake_run: FakeRun, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", "/no/such/ffmpeg")
    check(cli("generate", BALL), errors.OutputError.exit_code, "ffmpeg is missing", "pip install imageio-ffmpeg")


def test_info_of_no_video(cli: Cli, tmp_path: Path) -> None:
    a_file(tmp_path / "notes.txt")
    ended = cli("info", "notes.txt")
    assert ended.code == errors.InputError.exit_code and ended.err.startswith("error: notes.txt")


def test_info_without_recipe(cli: Cli, tmp_path: Path) -> None:
    from fractions import Fraction

    import torch

    from soragen.size import VideoSize
    from soragen.video.write import write_video

    frames = torch.zeros(2, 64, 64, 3, dtype=torch.uint8)
    write_video(tmp_path / "plain.mp4", [frames], VideoSize(64, 64, 2, Fraction(12)), recipe=None)
    check(cli("info", "plain.mp4"), errors.InputError.exit_code, "holds no recipe", "--no-metadata")


class OutOfMemoryError(RuntimeError):
    """As torch names its own."""


@pytest.mark.parametrize(
    ("failure", "code", "said", "hint"),
    [
        (errors.WeightsError("x is truncated", "fetch it again"), 3, "x is truncated", "fetch"),
        (errors.NumericalError("latents are not finite", "use float32"), 6, "not finite", "float32"),
        (MemoryError(), 4, "out of memory", "smaller --size"),
        (OutOfMemoryError("CUDA out of memory.\nTried to allocate"), 4, "out of memory", "smaller --size"),
        (RuntimeError("unable to mmap 9 bytes: Cannot allocate memory (12)"), 4, "out of memory", "--size"),
        (OSError(errno.ENOSPC, "No space left on device"), 4, "disk is full", "make room"),
        (KeyError("weight"), 1, "a bug in soragen: KeyError: 'weight'", "--debug"),
        (EOFError("short file"), 1, "a bug in soragen: EOFError: short file", "--debug"),
        (errors.InputError("\x1b[2J evil\nname", "second\nline"), 2, "\\x1b[2J evil name", "second line"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else None,
)
def test_failures_of_a_run(
    cli: Cli, fake_run: FakeRun, failure: BaseException, code: int, said: str, hint: str
) -> None:
    fake_run.failure = failure
    check(cli("generate", BALL, "--quiet"), code, said, hint)


def test_interrupted(cli: Cli, fake_run: FakeRun) -> None:
    fake_run.failure = KeyboardInterrupt()
    ended = cli("generate", BALL, "--quiet")
    assert (ended.code, ended.out, ended.err) == (130, "", "interrupted\n")


def test_debug_shows_the_traceback_and_only_then(cli: Cli, fake_run: FakeRun) -> None:
    fake_run.failure = KeyError("weight")
    assert "Traceback" not in cli("generate", BALL).err
    ended = cli("generate", BALL, "--debug")
    assert "Traceback" in ended.err and "report it with the lines above" in ended.err.splitlines()[-1]


def test_exit_codes_are_distinct() -> None:
    codes = [kind.exit_code for kind in errors.SoragenError.__subclasses__()]
    assert sorted(codes) == [2, 3, 4, 5, 6] and errors.SoragenError.exit_code == 1
