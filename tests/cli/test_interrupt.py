"""Signals: in good order where Python listens, and all the same where it does not."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

LIMIT = 60
"""Seconds until a test that hangs is given up; nothing is measured."""

WAITING = """
import sys, time
from soragen.cli import interrupt, entry
def app(*arguments, **options):
    try:
        print("ready", flush=True)
        time.sleep(1000)
    finally:
        print("cleaned", flush=True)
sys.exit(entry.run(app, []))
"""

STUCK = """
import hashlib, pathlib, sys
from soragen.cli import interrupt, entry
from soragen.leftovers import leftover
interrupt.PATIENCE = 0.2
half = pathlib.Path(sys.argv[1])
def app(*arguments, **options):
    with leftover(half.unlink):
        half.write_text("half a file")
        try:
            print("ready", flush=True)
            hashlib.pbkdf2_hmac("sha256", b"", b"", 2**31 - 1)  # minutes in which no Python runs in this thread
        finally:
            half.unlink()
sys.exit(entry.run(app, []))
"""

if sys.platform == "win32":
    pytest.skip("signals are POSIX here", allow_module_level=True)


def start(script: str, *arguments: str) -> subprocess.Popen[str]:
    run = subprocess.Popen(
        [sys.executable, "-c", script, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert run.stdout is not None and run.stdout.readline() == "ready\n"
    return run


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_ends_in_good_order(number: signal.Signals) -> None:
    run = start(WAITING)
    run.send_signal(number)
    out, err = run.communicate(timeout=LIMIT)
    assert (run.returncode, out, err) == (130, "cleaned\n", "interrupted\n")


def test_ends_though_the_main_thread_is_busy(tmp_path: Path) -> None:
    half = tmp_path / "half"
    run = start(STUCK, str(half))
    assert half.exists()
    run.send_signal(signal.SIGINT)
    out, err = run.communicate(timeout=LIMIT)
    assert (run.returncode, out, err) == (130, "", "interrupted\n")
    assert not half.exists()
