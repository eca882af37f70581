"""What a model takes of this machine's memory, said before its weights are fetched.

The plan reads configs, and of weights the headers alone, which are the first bytes of each file: a few hundred KB of a
model. With these in place and nothing after them, in files of the right size that take no room on the disk, a folder is
planned as the model itself will be.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import product
from pathlib import Path

from soragen.checkpoint import LORAS, Checkpoint
from soragen.errors import ResourceError, SoragenError, WeightsError
from soragen.layout import INDEX
from soragen.models import hub
from soragen.models.download import read_start
from soragen.models.hub import RemoteFile, Repository
from soragen.pipeline.origins import single_files
from soragen.pipeline.pull import Pull, look_here
from soragen.request import Edit, Request, Source
from soragen.size import VideoSize

START = 2**16
"""Bytes of a file of weights that are asked for first: most headers are shorter."""
LONGEST = 2**24
"""Bytes of a header, beyond any model's."""
AT_ONCE = 8
"""Files that are asked for at once."""
SHARES = sorted(product((1, 0.75, 0.55, 0.3), (1, 0.5, 0.25)), key=lambda pair: -pair[0] * pair[1])[1:]
"""Of the area and of the frames, what is tried where the whole does not fit."""


def prospect(pull: Pull) -> list[str]:
    """A line with the memory for a video of the model's default size; none where it is on this machine, or not known.

    The configs and the headers are fetched into a temporary folder.
    """
    if pull.here == pull.num_bytes:
        return []
    try:
        with tempfile.TemporaryDirectory(prefix="soragen-") as temporary:
            folder = Path(temporary).resolve()
            if not _has_holes(folder):
                return []
            _lay_hollow(pull, folder)
            return [f"memory    {_memory(pull.checkpoint, folder)}"]
    except Exception:  # a pull goes on without this line, whatever is wrong; what is of importance the pull meets, too
        return []


def _has_holes(folder: Path) -> bool:
    """Whether a file in `folder` may be long without taking room."""
    probe = folder / "probe"
    with probe.open("wb") as stream:
        stream.truncate(LONGEST)
    blocks = getattr(probe.stat(), "st_blocks", None)  # of 512 bytes; Windows does not say
    probe.unlink()
    return blocks is not None and 512 * blocks < LONGEST // 2


def _lay_hollow(pull: Pull, folder: Path) -> None:
    """The files that a plan reads, hollow where they are weights."""
    headers = hub.request_headers(pull.repositories[0].endpoint)

    def lay(pair: tuple[Repository, RemoteFile]) -> None:
        repository, file = pair
        here, url = look_here(pull.folder, repository, file), repository.url(file.path)

        def first(count: int) -> bytes:
            if here is None:
                return read_start(url, headers, count)
            with here.open("rb") as stream:
                return stream.read(count)

        target = folder / file.path
        target.parent.mkdir(parents=True, exist_ok=True)
        with target.open("wb") as stream:
            stream.write(_header(first, file) if file.path.endswith(".safetensors") else first(file.size))
            stream.truncate(file.size)

    loras = {part.file for part in pull.checkpoint.loras}  # no weights beside the transformer's
    read = (".safetensors", "/config.json", ".index.json", INDEX)
    with ThreadPoolExecutor(AT_ONCE) as pool:
        list(pool.map(lay, (pair for pair in pull.files if pair[1].path.endswith(read) and pair[1].path not in loras)))


def _header(first: Callable[[int], bytes], file: RemoteFile) -> bytes:
    start = first(min(START, file.size)) if file.size else b""
    length = 8 + int.from_bytes(start[:8], "little")
    if length > min(LONGEST, file.size):
        raise WeightsError(f"{file.path} is not a safetensors file", "its publisher may have replaced it")
    return start[:length] if length <= len(start) else first(length)


def _memory(checkpoint: Checkpoint, folder: Path) -> str:
    """What the plan says of a video of the default size, with the model in `folder`."""
    from soragen.models.device import memory_budget, pick_device
    from soragen.pipeline.assemble import lay_out
    from soragen.pipeline.memory import weigh
    from soragen.pipeline.plan import make_plan

    if files := single_files(checkpoint):
        lay_out(folder, [folder / file for file in files])
    parts = tuple(part for part in checkpoint.parts if part.folder not in LORAS)
    hollow = replace(checkpoint, source=str(folder), parts=parts)
    defaults, native, device = checkpoint.defaults, checkpoint.native, pick_device()
    size = VideoSize(defaults.width, defaults.height, native.num_frames, native.fps)
    asked = f"{size.width}x{size.height}, {size.num_frames} frames on {device}"
    try:
        plan = make_plan(_request(checkpoint, size), hollow)
    except ResourceError as error:
        return f"{asked}: {error.message}; {_what_would(checkpoint, hollow, size)}"
    peaks = replace(plan, residence={}, tile=None, weight_bytes=weigh(folder, plan.machine)).peak_bytes
    encode = peaks.pop("encode")
    if device.type != "cuda":
        peaks["decode"] += encode
    stage, most = max(peaks.items(), key=lambda item: item[1])
    ways = []
    if plan.residence:
        streamed = " and ".join(part.replace("_", " ") for part in plan.residence)
        ways.append(f"blocks of {streamed} would come one at a time")
    if plan.tile is not None:
        ways.append("frames would be decoded in tiles")
    slower = f": {', '.join(ways)}, which is slower" if ways else ""
    free = f"{memory_budget(device).available / 1e9:.1f} GB are free"
    return f"{asked}: about {most / 1e9:.1f} GB at most ({stage}), {free}{slower}"


def _request(checkpoint: Checkpoint, size: VideoSize) -> Request:
    """A video of this size with the model's defaults; of pictures where it makes none of a prompt alone."""
    from soragen.pipeline.resolve import resolve

    pictures = 0 if checkpoint.abilities.text else 2 if checkpoint.abilities.last_frame else 1
    edit = Edit("animate", (Source(Path(), "", 1),) * pictures) if pictures else None
    name = checkpoint.name
    return resolve("any", listen=lambda event: None, model=name, seed=0, video=size, edit=edit, typed=False)


def _what_would(checkpoint: Checkpoint, hollow: Checkpoint, size: VideoSize) -> str:
    """The largest video of some smaller ones that fits, in the user's words."""
    from soragen.pipeline.plan import make_plan

    for area, length in SHARES:
        width, height = (max(32, round(side * area**0.5 / 32) * 32) for side in (size.width, size.height))
        num_frames = 1 + round((size.num_frames - 1) * length)
        try:
            make_plan(_request(checkpoint, replace(size, width=width, height=height, num_frames=num_frames)), hollow)
        except SoragenError:
            continue
        return f"--size {width}x{height} --frames {num_frames} would fit"
    return "no smaller video fits either: take a smaller model"
