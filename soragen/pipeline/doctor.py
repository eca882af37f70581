"""Checks of this machine, one function each: it returns what it found and raises SoragenError when that cannot work."""

from __future__ import annotations

import platform
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

from soragen import __version__
from soragen.catalog import checkpoint_folder, find, measure_files, user_catalog
from soragen.errors import NumericalError, OutputError, ResourceError, SoragenError, WeightsError
from soragen.pipeline.events import Event
from soragen.size import VideoSize

if TYPE_CHECKING:
    from torch import Tensor

NEEDED_MEMORY = 2 << 30
NEEDED_DISK = 1 << 30
TOLERANCE = 8.0
"""How far, in levels of 255 on average, the GPU's video may be from the CPU's: they round differently, no more."""


@dataclass(frozen=True)
class Check:
    """name: of what was checked. found: in words. failure: None when it works."""

    name: str
    found: str
    failure: SoragenError | None = None


def run_check(name: str) -> Check:
    """One of `CHECKS`. An error that is not foreseen is a failure of that check alone."""
    try:
        return Check(name, CHECKS[name]())
    except SoragenError as error:
        return Check(name, error.message, error)
    except Exception as error:
        failure = SoragenError(f"{name}: {type(error).__name__}: {error}", "report this line")
        return Check(name, failure.message, failure)


def _soragen() -> str:
    return f"{__version__}, models of your own: {user_catalog()}"


def _python() -> str:
    return f"{platform.python_version()} on {platform.platform()}"


def _torch() -> str:
    try:
        import torch
    except (ImportError, OSError) as error:
        raise SoragenError(f"torch cannot be imported: {error}", "run `pip install --force-reinstall torch`") from error
    return f"{torch.__version__}, {torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}"


def _bfloat16() -> str:
    import torch

    native = torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return f"this processor {'has' if native else 'lacks'} it; on a processor soragen computes in float32 either way"


def _device() -> str:
    """What computes. A GPU for which torch has no code is a failure: it would end each run in an obscure error."""
    import torch

    if torch.cuda.is_available():
        wheel, found = torch.cuda.get_arch_list(), []
        for number in range(torch.cuda.device_count()):
            card = torch.cuda.get_device_properties(number)
            if torch.version.hip:  # its list names chips, not versions
                found.append(f"{card.name}, {card.total_memory / 1e9:.0f} GB")
                continue
            architecture = f"sm_{card.major}{card.minor}"
            if not _is_built_for(card.major, card.minor, wheel):
                raise SoragenError(
                    f"{card.name} is {architecture}; this torch {torch.__version__} has only {' '.join(wheel)}",
                    f"{_torch_for(card.major, card.minor, wheel)}, or use --device cpu",
                )
            found.append(f"{card.name} ({architecture}), {card.total_memory / 1e9:.0f} GB")
        return f"{'; '.join(found)}; torch is built for {' '.join(wheel) or 'it'}"
    if torch.backends.mps.is_available():
        return "Apple GPU (mps)"
    return f"no GPU: the CPU is used{_unused_gpu(torch.version.cuda)}"


def _torch_for(major: int, minor: int, wheel: list[str]) -> str:
    """What to do for a GPU that is newer than all that torch is built for, or older."""
    newest = max((_version(name) for name in wheel), default=(0, 0))
    if (major, minor) > newest:
        return "run `pip install --upgrade torch`: it is newer than this torch"
    return "install a torch for an older CUDA, which still has it (12.6 goes back to sm_50)"


def _unused_gpu(cuda: str | None) -> str:
    """Why torch does not see an NVIDIA card whose driver is there; "" where there is none. cuda: of this torch."""
    if shutil.which("nvidia-smi") is None and not Path("/proc/driver/nvidia/version").exists():
        return ""
    if cuda is None:
        return "; there is an NVIDIA driver, but this torch is built without CUDA: install one that is"
    return f"; there is an NVIDIA driver, but torch cannot use it with CUDA {cuda}: update the driver"


def _is_built_for(major: int, minor: int, wheel: list[str]) -> bool:
    """Machine code runs on the same major architecture from its minor number on; PTX on all that come later."""
    for name in wheel:
        kind, built = name.partition("_")[0], _version(name)
        if kind == "compute" and built <= (major, minor):
            return True
        if kind == "sm" and built[0] == major and built[1] <= minor:
            return True
    return False


def _version(name: str) -> tuple[int, int]:
    """Of an architecture as torch names it: "sm_90a" is 9.0."""
    number = name.rstrip("af").partition("_")[2]
    return int(number[:-1]), int(number[-1])


def _extras() -> str:
    """What --quantize and --attention can be on this machine, and why not."""
    from soragen.models.attention import check_attention
    from soragen.models.device import DTYPES, pick_device, pick_dtype
    from soragen.models.quantize import check_quantize
    from soragen.request import ATTENTIONS, QUANTIZED

    device = pick_device()
    dtype = pick_dtype(None, device, (DTYPES[find("pocket").dtypes.transformer],))
    words = []
    for option, names, check in (("quantize", QUANTIZED, check_quantize), ("attention", ATTENTIONS, check_attention)):
        works, lacks = [], []
        for name in names:
            try:
                check(name, device, dtype)
                works.append(name)
            except SoragenError as error:
                lacks.append(error.message.removeprefix(f"--{option} "))
        words.append("; ".join([f"--{option} {', '.join(works) or 'nothing'}", *dict.fromkeys(lacks)]))
    return f"on {device}: {'. '.join(words)}"


def _ffmpeg() -> str:
    import torch

    from soragen.video.ffmpeg import find_ffmpeg
    from soragen.video.write import write_video

    with tempfile.TemporaryDirectory() as folder:
        frames = torch.zeros(2, 64, 64, 3, dtype=torch.uint8)
        write_video(Path(folder) / "two.mp4", [frames], VideoSize(64, 64, 2, Fraction(12)), recipe=None)
    return f"{find_ffmpeg()}, wrote two frames"


def _weights() -> str:
    checkpoint = find("pocket")
    found = {file.path: file for file in measure_files(checkpoint_folder(checkpoint))}
    for file in checkpoint.files:
        if found.get(file.path) != file:
            what = "damaged" if file.path in found else "missing"
            raise WeightsError(f"{file.path} of the embedded model is {what}", "install soragen again")
    return f"pocket, {len(checkpoint.files)} files, {checkpoint.num_bytes / 1e6:.0f} MB, all as published"


def _memory() -> str:
    from soragen.models.device import memory_budget

    memory = memory_budget()
    found = f"{memory.available / 1e9:.1f} of {memory.total / 1e9:.1f} GB free"
    if memory.available < NEEDED_MEMORY:
        raise ResourceError(f"memory: {found}", f"close programs: {NEEDED_MEMORY / 1e9:.0f} GB are needed")
    return found


def _cache() -> str:
    from soragen.models.embedding_cache import cache_folder

    folder = cache_folder()
    if folder is None:
        return "none: every prompt is encoded again"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise OutputError(f"cannot write to the cache {folder}: {error.strerror}", "change its permissions") from error
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    return f"{folder}, {size / 1e6:.1f} MB"


def _disk() -> str:
    places = {"here": Path.cwd(), "for temporary files": Path(tempfile.gettempdir())}
    free = {words: shutil.disk_usage(place).free for words, place in places.items()}
    if min(free.values()) < NEEDED_DISK:
        raise ResourceError(f"disk: {_places(free)}", "make room: a gigabyte is needed")
    return _places(free)


def _places(free: dict[str, int]) -> str:
    return ", ".join(f"{size / 1e9:.1f} GB {words}" for words, size in free.items())


def _generation() -> str:
    """A tiny video on the CPU, and the same on the GPU where there is one, in float32 and in the type of its runs."""
    import torch

    on_cpu = _tiny_video("cpu")
    if on_cpu.float().std() < 1:
        raise NumericalError("the CPU made a video of one colour", "report this line")
    device = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else None
    if device is None:
        return "a video of 9 frames on the CPU"
    apart = []
    for dtype, words in (("float32", "in float32"), (None, "as runs are there")):
        difference = (_tiny_video(device, dtype).float() - on_cpu.float()).abs().mean().item()
        if not difference <= TOLERANCE:
            instead = "use --device cpu" if dtype else "use --dtype float32"
            raise NumericalError(
                f"{device} and the CPU disagree by {difference:.1f} of 255 {words}", f"{instead}, or another torch"
            )
        apart.append(f"{difference:.2f} of 255 apart {words}")
    return f"a video of 9 frames on the CPU and on {device}, {', '.join(apart)}"


def _tiny_video(device: str, dtype: str | None = "float32") -> Tensor:
    """Frames [9, 64, 64, 3] uint8 of a video of two steps, made as `generate` makes any. dtype: None is the best."""
    import torch

    from soragen.pipeline.resolve import resolve
    from soragen.pipeline.run import generate
    from soragen.video.read import read_video

    request = resolve("a red ball", listen=_ignore, size="64x64", frames=9, seed=1, steps=2)
    with tempfile.TemporaryDirectory() as folder:
        result = generate(request, Path(folder) / "tiny.mp4", device=device, dtype=dtype, listen=_ignore)
        return torch.cat(list(read_video(result.path)[1]))


def _ignore(event: Event) -> None:
    pass


CHECKS: dict[str, Callable[[], str]] = {
    "soragen": _soragen,
    "python": _python,
    "torch": _torch,
    "device": _device,
    "bfloat16": _bfloat16,
    "extras": _extras,
    "memory": _memory,
    "disk": _disk,
    "cache": _cache,
    "ffmpeg": _ffmpeg,
    "weights": _weights,
    "generation": _generation,
}
