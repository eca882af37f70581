"""What reading given frames takes, and what joining made ones to them takes: the plan counts both."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import torch
from footage import film
from live import Live
from published_configs import PUBLISHED

from soragen.catalog import checkpoint_folder, find
from soragen.diffusion.grid import lay_grid
from soragen.errors import ResourceError
from soragen.families import family_of
from soragen.families.pocket import FAMILY
from soragen.models.device import Memory
from soragen.pipeline import memory, run
from soragen.pipeline.clock import Clock
from soragen.pipeline.handover import MOST_FRAMES
from soragen.pipeline.plan import Plan, make_plan
from soragen.pipeline.resolve import resolve
from soragen.request import Edit, Source
from soragen.size import VideoSize

META = torch.device("meta")


@pytest.fixture
def edited(tiny: Path) -> Callable[..., Plan]:
    """edited("connect", 9) is the plan of new frames beside those of sources, each of a second."""

    def plan(
        verb: str, new: int = 9, sides: tuple[int, int] = (256, 144), direct: bool = False, **options: Any
    ) -> Plan:
        length = 1 if verb == "animate" else 24
        sources = (Source(Path("a.mkv"), "", length),) * (2 if verb == "connect" else 1)
        num_frames = new + (0 if verb in ("animate", "restyle") else length * len(sources))
        size = VideoSize(*sides, num_frames, Fraction(24))
        edit = Edit(verb, sources, **options)
        asked: dict[str, Any] = {"model": str(tiny), "seed": 1, "video": size, "edit": edit, "direct": direct}
        request = resolve("a ball", listen=lambda event: None, **asked)
        return make_plan(request, find(request.checkpoint), "cpu")

    return plan


def test_reading_is_a_stage_where_frames_are_given(edited: Callable[..., Plan], ask: Callable[..., Any]) -> None:
    alone = make_plan(ask(), find(ask().checkpoint), "cpu")
    assert list(alone.peak_bytes) == ["text", "denoise", "decode", "encode"]
    plan = edited("extend")
    assert list(plan.peak_bytes) == ["text", "read", "denoise", "decode", "encode"]
    assert "read 0." in next(line for line in plan.lines() if line.startswith("memory"))
    (given,) = plan.timeline.given
    frame = 4 * 3 * plan.grid.width * plan.grid.height
    assert plan.given_bytes == frame * 3 * given.count > 0
    least = plan.weight_bytes["vae"] + plan.work.vae_bytes + plan.given_bytes
    assert plan.peak_bytes["read"] >= memory.FIXED_BYTES + least
    assert edited("animate").given_bytes == frame * 3


def test_a_source_that_is_restyled_streams(edited: Callable[..., Plan]) -> None:
    assert edited("restyle", 25).given_bytes == edited("restyle", 97).given_bytes > 0


def test_too_little_memory_to_read_is_known_before(
    edited: Callable[..., Plan], monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = edited("extend", sides=(512, 512), direct=True)
    plan = replace(plan, work=replace(plan.work, vae_bytes=10**9))  # so many activations have larger networks
    plan = replace(plan, machine=replace(plan.machine, device=torch.device("cuda", 0)))  # ffmpeg is not beside it
    whole = plan.peak_bytes
    assert whole["read"] > whole["decode"]

    def available(count: int) -> None:
        monkeypatch.setattr(memory, "memory_budget", lambda device=None: Memory(10**12, count))

    available(whole["read"] - 1)
    fitted = memory.fit_memory(plan)
    assert fitted.tile is not None and fitted.peak_bytes["read"] < whole["read"]
    assert fitted.notes()[-1].startswith("too little memory to encode and decode whole frames: in tiles of ")
    seen = replace(plan, weight_bytes={**plan.weight_bytes, "image_encoder": 2 * 10**9})
    with pytest.raises(ResourceError, match="read needs about") as refused:
        memory.fit_memory(seen)
    assert refused.value.hint == "close other programs"


@pytest.mark.parametrize(("verb", "options"), [("connect", {}), ("loop", {}), ("extend", {"backward": True})])
def test_frames_that_wait_for_a_join_are_counted(edited: Callable[..., Plan], verb: str, options: Any) -> None:
    large, small = (edited(verb, 48, sides, **options) for sides in ((3840, 2160), (256, 144)))
    assert large.grid == small.grid
    more = large.peak_bytes["decode"] - small.peak_bytes["decode"]
    frame = 3 * (3840 * 2160 - 256 * 144)
    assert frame * (MOST_FRAMES + 8) <= more <= frame * (MOST_FRAMES + 40)


@pytest.mark.parametrize(
    "name", ["pocket", "wan2.1-t2v-1.3b", "wan2.2-ti2v-5b", "ltx-video-0.9.0", "ltx-video-0.9.1", "ltx-video-0.9.5"]
)
def test_an_encoder_takes_no_more_than_is_counted(name: str, tmp_path: Path) -> None:
    """Of the published widths, on a device that computes nothing."""
    checkpoint = find(name)
    family = family_of(checkpoint)
    folder = tmp_path
    if name == "pocket":
        folder = checkpoint_folder(checkpoint)
    else:
        for part, network in PUBLISHED[name].items():
            (folder / part).mkdir()
            (folder / part / "config.json").write_text(json.dumps(network.config))
    vae = vae_of(name, folder)
    size = VideoSize(512, 320, 33, Fraction(24))
    grid = lay_grid(size, family.compression(folder))
    frames = (torch.empty(1, grid.height, grid.width, 3, device=META) for _ in range(grid.num_frames))
    with Live() as live:
        latents = vae.encode(frames)
    held = 2 * 4 * latents.numel()  # as "read" counts them beside
    assert 0.3 < live.peak / (family.work(folder, grid).vae_bytes + held) <= 1


def vae_of(name: str, folder: Path) -> Any:
    """The VAE that the config in `folder` describes, without weights."""
    from soragen.families.ltx_video import vae as ltx
    from soragen.families.pocket import vae as pocket
    from soragen.families.wan import vae as wan
    from soragen.models.config import read_config

    with META:
        if name == "pocket":
            return pocket.PocketVae(read_config(folder / "vae", pocket.VaeConfig))
        if name.startswith("wan"):
            return wan.WanVae(read_config(folder / "vae", wan.VaeConfig))
        return ltx.LtxVae(read_config(folder / "vae", ltx.VaeConfig))


def test_given_frames_are_encoded_in_float32_whatever_decodes(
    edited: Callable[..., Plan], ask: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """And counted so: twice the bytes of a decoder in bfloat16."""
    film("a.mkv", 24, 256, 144, fps="24")
    plan = edited("extend", sides=(256, 144))
    in_16_bits = replace(plan, machine=replace(plan.machine, vae=torch.bfloat16))
    assert in_16_bits.read_vae_bytes == 2 * plan.read_vae_bytes  # its weight_bytes were of four bytes a number
    assert in_16_bits.vae_bytes(None, torch.float32) == 2 * in_16_bits.vae_bytes(None, torch.bfloat16)
    found: list[torch.dtype] = []
    load = type(FAMILY).load_vae

    def watched(self: Any, folder: Path, device: torch.device, dtype: torch.dtype) -> Any:
        found.append(dtype)
        return load(self, folder, device, torch.float32)

    monkeypatch.setattr(type(FAMILY), "load_vae", watched)
    monkeypatch.setattr(run, "check_sources", lambda request: None)
    run.encode_given(in_16_bits, Clock(lambda event: None))
    run.load_vae(in_16_bits)
    assert found == [torch.float32, torch.bfloat16]
