"""Where a network runs, in which numbers, and how much memory there is."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn

from soragen.errors import InputError

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class Memory(NamedTuple):
    """Bytes: all there is, and what can still be taken."""

    total: int
    available: int


def devices() -> list[str]:
    """What this machine has, fastest first. The processor is always there."""
    cuda = [f"cuda:{n}" for n in range(torch.cuda.device_count())] if torch.cuda.is_available() else []
    return cuda + (["mps"] if torch.backends.mps.is_available() else []) + ["cpu"]


def pick_device(name: str | None = None) -> torch.device:
    """The device called `name` ("cuda", "cuda:1", "mps", "cpu"); None or "auto" is the fastest. Raises InputError."""
    there = devices()
    if name is None or name == "auto":
        return torch.device(there[0])
    wanted = "cuda:0" if name == "cuda" else name
    if wanted not in there:
        raise InputError(f"device {name!r} is not available", f"this machine has {', '.join(there)}")
    return torch.device(wanted)


def pick_dtype(name: str | None, device: torch.device, allowed: Sequence[torch.dtype]) -> torch.dtype:
    """The type to compute in; None or "auto" is float32 on a processor and the first of `allowed` on an accelerator.

    allowed: what the checkpoint is known to work in, best first; float32 always works. A processor computes in float32
    even where it has 16-bit instructions: see docs/decisions/0004-float32-on-a-processor.md. Raises InputError.
    """
    choices = [*allowed, torch.float32] if torch.float32 not in allowed else list(allowed)
    if name is None or name == "auto":
        if device.type == "cpu":
            return torch.float32
        return next(dtype for dtype in choices if _computes(device, dtype))
    dtype = DTYPES.get(name)
    if dtype not in choices:
        known = ", ".join(key for key, value in DTYPES.items() if value in choices)
        raise InputError(f"dtype {name!r} does not work here", f"this checkpoint runs in {known}")
    if not _computes(device, dtype):
        raise InputError(f"{device} does not compute in {name}", "float32 works everywhere")
    return dtype


def _computes(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether a device multiplies in this type in hardware. Any type is possible on a processor, some are slow."""
    if dtype == torch.bfloat16 and device.type == "cuda":
        return bool(torch.cuda.get_device_capability(device) >= (8, 0) or torch.version.hip)
    if dtype == torch.bfloat16 and device.type == "mps":
        return bool(torch.backends.mps.is_macos_or_newer(14, 0))
    return True


def memory_budget(device: torch.device | None = None) -> Memory:
    """Memory of a device; without one, or for "cpu" and "mps" (which shares it), the memory of this process.

    On Linux that is the smallest of the machine's and of every control group (v1 and v2) the process is in, so that a
    container is told its own limit. Pages that only cache files count as available.
    """
    if device is not None and device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return Memory(total, free + unused)
    if sys.platform == "win32":
        return _windows_memory()
    if sys.platform == "linux":
        return _linux_memory(Path("/"))
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return Memory(total, total)  # macOS compresses and swaps: it has no honest number for what is available


def _linux_memory(root: Path) -> Memory:
    """`root` is / but in tests."""
    lines = (root / "proc/meminfo").read_text().splitlines()
    fields = {name: int(rest.split()[0]) * 1024 for name, rest in (line.split(":", 1) for line in lines if ":" in line)}
    memory = Memory(fields["MemTotal"], fields["MemAvailable"])
    for folder, limit_name, usage_name, cache_name in _control_groups(root):
        try:
            limit = int((folder / limit_name).read_text())  # "max" where there is none: ValueError
            usage = int((folder / usage_name).read_text())
            stat = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
        except (OSError, ValueError):
            continue
        left = limit - usage + int(stat.get(cache_name, 0))
        if limit < fields["MemTotal"]:
            memory = Memory(min(memory.total, limit), max(0, min(memory.available, left)))
    return memory


def _control_groups(root: Path) -> Iterator[tuple[Path, str, str, str]]:
    """Every folder that may limit this process, with the names of its limit, usage and inactive file cache.

    A process in group /a/b is limited by /a as well. In a container the path may be that of the host and not exist,
    while the container's own group lies at the top.
    """
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            top, names = root / "sys/fs/cgroup", ("memory.max", "memory.current", "inactive_file")
        elif "memory" in controllers.split(","):
            top = root / "sys/fs/cgroup/memory"
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
        else:
            continue
        parts = [part for part in path.split("/") if part not in ("", "..")]
        for depth in range(len(parts) + 1):
            yield (top.joinpath(*parts[:depth]), *names)


def _windows_memory() -> Memory:
    """GlobalMemoryStatusEx, as documented by Microsoft (sysinfoapi.h)."""
    if sys.platform != "win32":
        raise RuntimeError("only on Windows")
    import ctypes

    class Status(ctypes.Structure):
        _fields_ = (
            ("length", ctypes.c_ulong),
            ("load", ctypes.c_ulong),
            ("total", ctypes.c_ulonglong),
            ("available", ctypes.c_ulonglong),
            ("rest", ctypes.c_ulonglong * 5),
        )

    status = Status(length=ctypes.sizeof(Status))
    ctypes.windll.kernel32.GlobalMemoryStatusEx(ctypes.byref(status))
    return Memory(status.total, status.available)


def peak_memory(device: torch.device | None = None) -> int:
    """The most bytes this process held so far: on the graphics card for "cuda", otherwise resident; 0 if not told."""
    if device is not None and device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    with contextlib.suppress(OSError, StopIteration):  # ru_maxrss would count the parent process before exec, too
        status = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in status if line.startswith("VmHWM:")) * 1024
    if sys.platform == "win32":
        return 0
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


@contextlib.contextmanager
def on_device(network: nn.Module, device: torch.device) -> Iterator[nn.Module]:
    """The network on `device` for a while; afterwards its weights are where they were and the device's memory is free.

    The weights stay in place at their source, which may be a mapped file: nothing is copied back.
    """
    homes = [
        (module, name, tensor, tensor.data)
        for module in network.modules()
        for name, tensor in (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False))
    ]
    try:
        yield network.to(device)
    finally:
        for module, name, tensor, home in homes:  # `to` gives some tensors new content and replaces others
            tensor.data = home
            setattr(module, name, tensor)
        free_memory(device)


def free_memory(device: torch.device) -> None:
    """Hands memory that torch keeps for later back to the device."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
        if hasattr(torch.accelerator, "empty_host_cache"):  # page-locked memory, which the system cannot take back
            torch.accelerator.empty_host_cache()
    elif device.type == "mps":
        torch.mps.empty_cache()
