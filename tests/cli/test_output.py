"""What is shown: plain lines in a pipe, rich on a terminal, data on stdout whatever happens to the rest."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import pytest

from soragen.cli import output
from soragen.pipeline.events import Note, Progress, Stage


def test_a_silent_stage_still_speaks(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(output, "SILENCE", 0.1)
    with output.Talk() as talk:
        talk.listen(Stage("denoise", "8 steps"))
        talk.listen(Progress("denoise", 2, 8))
        while "denoise 2/8" not in (said := capsys.readouterr().err):
            time.sleep(0.05)
    assert "left" in said and "\r" not in said


def test_quiet_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with output.Talk(quiet=True) as talk:
        talk.listen(Stage("load"))
        talk.listen(Note("a note"))
    assert capsys.readouterr() == ("", "")


def test_terminal_shows_stages_and_notes(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(output, "_is_terminal", lambda: True)
    monkeypatch.setenv("COLUMNS", "120")
    with output.Talk() as talk:
        talk.listen(Stage("load", "[bold]T5[/bold] encoder"))
        talk.listen(Stage("decode", "24 frames"))
        talk.listen(Progress("decode", 12, 24))
        talk.listen(Progress("encode", 6, 24))
        talk.listen(Note("cropped to [333x257]"))
    out, err = capsys.readouterr()
    assert out == ""
    assert "note: cropped to [333x257]" in err and "12/24" in err and "6/24" in err and "[bold]T5[/bold] encoder" in err


def test_table_aligns_and_keeps_lines(capsys: pytest.CaptureFixture[str]) -> None:
    output.table([("name", "value"), ("prompt", "a ball\non grass\x1b[2J")])
    assert capsys.readouterr().out == "name    value\nprompt  a ball\n        on grass\\x1b[2J\n"


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs a POSIX pipe")
def test_a_reader_that_is_gone_does_no_harm() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-m", "soragen", "models", "list"]
    run = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, text=True)
    assert (run.returncode, run.stderr) == (0, "")
    run = subprocess.run([*command, "--none"], stdout=subprocess.PIPE, stderr=writing, text=True)
    os.close(writing)
    assert (run.returncode, run.stdout) == (2, "")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_full_disk_behind_stdout_is_said() -> None:
    with open("/dev/full", "w") as full:
        run = subprocess.run(
            [sys.executable, "-m", "soragen", "models", "list"], stdout=full, stderr=subprocess.PIPE, text=True
        )
    assert run.returncode == 4 and run.stderr.startswith("error: cannot write to standard output")
