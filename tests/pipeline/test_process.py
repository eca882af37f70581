"""What only a process of its own can show: that it may be killed, that it ends at once, and what memory it takes."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

LIMIT = 300
"""Seconds until a test that hangs is given up; nothing is measured."""

STUCK = """
import hashlib, sys
from soragen.cli import app, entry
from soragen.families.pocket.vae import PocketVae
decode = PocketVae.decode
def stuck(self, latents, *, seed=0):
    for chunk in decode(self, latents, seed=seed):
        yield chunk
        print("decoding", flush=True)
        hashlib.pbkdf2_hmac("sha256", b"", b"", 2**31 - 1)  # minutes in which no Python runs in this thread
PocketVae.decode = stuck
sys.exit(entry.run(app))
"""

GROWTH = """
import sys
from pathlib import Path
from soragen.models.device import peak_memory
from soragen.pipeline.resolve import resolve
from soragen.pipeline.run import generate
for frames in (24, 24, 480):
    request = resolve("a ball", listen=print, model=sys.argv[1], size="128x128", frames=frames, steps=1, guidance=1.0)
    generate(request, Path(f"{frames}.mp4"), device="cpu", overwrite=True, listen=lambda event: None)
    print(peak_memory())
"""

if sys.platform == "win32":
    pytest.skip("signals are POSIX here", allow_module_level=True)


def start(script: str, *arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", script, *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def stuck_in_decoding(tiny: Path) -> subprocess.Popen[str]:
    small = ["--size", "128x128", "--frames", "9", "--steps", "2", "--seed", "1", "--device", "cpu", "-o", "a.mp4"]
    run = start(STUCK, "generate", "a ball", "--model", str(tiny), *small)
    assert run.stdout is not None and run.stdout.readline() == "decoding\n"
    return run


def living() -> set[int]:
    """Processes that run in the folder of the test."""
    found = set()
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if (entry / "cwd").readlink() == Path.cwd() and "Z" not in (entry / "stat").read_text().split(") ")[-1][:1]:
                found.add(int(entry.name))
        except OSError:  # it has ended meanwhile, or is not ours
            continue
    return found


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_while_torch_decodes_keeps_the_latents_alone(number: int, tiny: Path, home: Path) -> None:
    before = living()
    run = stuck_in_decoding(tiny)
    run.send_signal(number)
    out, err = run.communicate(timeout=LIMIT)
    assert (run.returncode, out) == (130, "")
    latents = home / "a.latents.safetensors"
    assert f"the denoised latents are kept: run `soragen decode {latents}`" in err and err.endswith("interrupted\n")
    assert list(home.iterdir()) == [latents]
    assert living() == before


def test_a_process_that_is_killed_while_it_decodes_loses_nothing(tiny: Path, cli: Any, calls: Any, home: Path) -> None:
    run = stuck_in_decoding(tiny)
    run.kill()
    run.communicate(timeout=LIMIT)
    assert not (home / "a.mp4").exists()
    assert cli("decode", "a.latents.safetensors").code == 0
    assert calls.loaded == ["vae"] and calls.forwards == 0
    assert not list(home.glob("*.safetensors"))
    assert cli("generate", "a ball", "-o", "whole.mp4").code == 0
    assert (home / "a.mp4").read_bytes() == (home / "whole.mp4").read_bytes()


def test_memory_does_not_grow_with_the_duration(tiny: Path) -> None:
    """480 frames of 128x128 are 24 MB as bytes and 94 MB as floats; their latents are 1 MB."""
    run = start(GROWTH, str(tiny))
    out, err = run.communicate(timeout=LIMIT)
    assert run.returncode == 0, err
    _, short, long = map(int, out.split())
    if short == 0:
        pytest.skip("this system does not tell")
    assert long - short < 15e6
