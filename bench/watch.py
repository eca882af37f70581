"""Runs a Python process and watches it: seconds, and the peak memory of it and of the ffmpeg it starts, apart.

Peaks are what Linux keeps of each process (VmHWM), read while it runs; elsewhere they are 0.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

SAMPLING = 0.01
"""Seconds between two looks at a process: how fine its wall time is."""


@dataclass(frozen=True)
class Run:
    """A process that has ended. wall, cpu: seconds, cpu with ffmpeg's. memory, ffmpeg: the peak of each, in bytes."""

    code: int
    wall: float
    cpu: float
    memory: int
    ffmpeg: int
    out: str
    err: str


def run(arguments: Sequence[str], variables: dict[str, str], *, may_fail: bool = False) -> Run:
    """Runs this Python with `arguments` and environment `variables`, and watches it."""
    command = [sys.executable, *arguments]
    print("measuring:", *command[1:], file=sys.stderr)
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        began = time.perf_counter()
        process = subprocess.Popen(command, env={**os.environ, **variables}, stdout=out, stderr=err)
        memory = ffmpeg = ended = 0
        while not ended:
            name, peak = memory_of(process.pid)
            memory = max(memory, peak)
            for child_name, peak in map(memory_of, children_of(process.pid)):
                if child_name != name:  # until it becomes another program, a child shows its parent's memory
                    ffmpeg = max(ffmpeg, peak)
            time.sleep(SAMPLING)
            ended, status, usage = os.wait4(process.pid, os.WNOHANG)
        wall = time.perf_counter() - began
        process.returncode = os.waitstatus_to_exitcode(status)
        out.seek(0)
        err.seek(0)
        cpu = usage.ru_utime + usage.ru_stime
        done = Run(process.returncode, wall, cpu, memory, ffmpeg, out.read(), err.read().strip())
    if done.code and not may_fail:
        sys.exit(f"{' '.join(command)} ended with {done.code}:\n{done.err}")
    return done


def memory_of(pid: int) -> tuple[str, int]:
    """Name and peak memory in bytes of a process; ("", 0) when it has ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return "", 0
    fields = {name: value for name, _, value in (line.partition(":") for line in lines)}
    return fields["Name"].strip(), int(fields.get("VmHWM", "0 kB").split()[0]) * 1024


def children_of(pid: int) -> list[int]:
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []
