"""What the benches of the verbs and of long videos measure: movement, joins, drift, and whether a bar holds."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

ROOT = Path(__file__).parents[1]

if sys.platform != "linux":
    pytest.skip("peaks of memory are read as Linux keeps them", allow_module_level=True)


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> dict[str, ModuleType]:
    monkeypatch.syspath_prepend(str(ROOT / "bench"))
    return {name: importlib.import_module(name) for name in ("flow", "page", "verbs", "long", "given")}


def sliding(num_frames: int, across: float, down: float = 0.0) -> Tensor:
    """A soft texture that moves by so many pixels a frame, uint8 [T, 64, 64, 3]."""
    noise = torch.rand(1, 1, 12, 12, generator=torch.Generator().manual_seed(0))
    wide = F.interpolate(noise, (192, 192), mode="bicubic").clamp(0, 1)
    rows, frames = torch.arange(64.0), []
    for number in range(num_frames):
        y, x = torch.meshgrid(rows + 64 - down * number, rows + 64 - across * number, indexing="ij")
        place = torch.stack([(2 * x + 1) / 192 - 1, (2 * y + 1) / 192 - 1], dim=-1)
        frames.append(F.grid_sample(wide, place[None], align_corners=False)[0].expand(3, -1, -1))
    return (torch.stack(frames).permute(0, 2, 3, 1) * 255).round().byte()


@pytest.mark.parametrize(("across", "down", "length"), [(0, 0, 0.0), (2, 0, 2.0), (-1, 2, 5**0.5), (0.5, 0, 0.5)])
def test_movement_is_in_pixels(bench: dict[str, ModuleType], across: float, down: float, length: float) -> None:
    frames = sliding(2, across, down)
    assert bench["flow"].movement(*frames) == pytest.approx(length, abs=0.2)


def test_a_frame_without_texture_does_not_move(bench: dict[str, ModuleType]) -> None:
    grey = torch.full((64, 64, 3), 128, dtype=torch.uint8)
    assert bench["flow"].movement(grey, grey + 2) < 0.02


def test_joins(bench: dict[str, ModuleType]) -> None:
    even = sliding(12, 1.0)
    assert bench["verbs"].join_step(even, 6) == pytest.approx(1, abs=0.15)
    assert bench["verbs"].join_movement(even, 6) == pytest.approx(1, abs=0.1)
    jump = torch.cat([even[:6], even[9:]])  # three frames are missing
    assert bench["verbs"].join_step(jump, 6) > 2 and bench["verbs"].join_movement(jump, 6) > 2.5
    held = torch.cat([even[:6], even[5:]])  # one stands twice
    assert bench["verbs"].join_step(held, 6) == 0 and bench["verbs"].join_movement(held, 6) < 0.1


def test_drift_of_colour_contrast_and_sharpness(bench: dict[str, ModuleType]) -> None:
    long, generator = bench["long"], torch.Generator().manual_seed(0)
    frames = torch.randint(0, 256, (2, 64, 64, 3), generator=generator, dtype=torch.uint8)
    assert long.drifted(frames, frames) == {long.COLOUR: 0, long.CONTRAST: 1, long.SHARPNESS: 1}
    paler = (64 + frames.float() / 2).byte()
    found = long.drifted(frames, paler)
    assert found[long.CONTRAST] == pytest.approx(0.5, abs=0.02)
    assert found[long.SHARPNESS] == pytest.approx(0.25, abs=0.01)
    red = frames.clone()
    red[..., 0] = red[..., 0] // 2 + 100
    assert long.drifted(frames, red)[long.COLOUR] == pytest.approx(
        float(red[..., 0].float().mean() - frames[..., 0].float().mean())
    )


def test_bars(bench: dict[str, ModuleType], tmp_path: Path) -> None:
    page = bench["page"]
    bars = {"exact": page.Bar(low=1, of="each"), "near": page.Bar(0.75, 1.25), "share": page.Bar(low=0.85, of="mean"),
            "told": page.SHARE}  # fmt: skip
    scores = page.Scores(bars)
    for exact, near, share in ((True, 1.0, True), (False, 1.1, True), (True, 2.0, False)):
        scores.add("verb", "exact", exact)
        scores.add("verb", "near", near, real=1.0, inside=3.0)
        scores.add("verb", "share", share)
        scores.add("verb", "told", near)
    assert scores.rows() == [
        ["verb", "exact", "always", "0.67", "", "2 of 3", "", "", "**no**"],
        ["verb", "near", "0.75 to 1.25", "1.10", "2.00", "2 of 3", "1.00", "3.00", "yes"],
        ["verb", "share", ">= 0.85", "0.67", "", "", "", "", "**no**"],
        ["verb", "told", "", "1.10", "", "", "", "", ""],
    ]
    place = tmp_path / "page.md"
    place.write_text("before\n<!-- verbs: begin -->\nold\n<!-- verbs: end -->\nafter\n")
    page.put(place, "verbs", "new")
    assert place.read_text() == "before\n<!-- verbs: begin -->\n\nnew\n\n<!-- verbs: end -->\nafter\n"
    with pytest.raises(SystemExit, match="lacks the marks"):
        page.put(place, "long", "new")


def test_clips_of_ffmpeg_move(bench: dict[str, ModuleType]) -> None:
    clips = bench["given"].made()
    assert [clip.name for clip in clips] == ["testsrc2", "mandelbrot", "life"]
    for clip in clips:
        assert tuple(clip.frames.shape) == (25, 128, 128, 3) and not torch.equal(clip.frames[0], clip.frames[-1])


def test_the_page_has_a_place_for_the_tables() -> None:
    page = (ROOT / "docs" / "bench.md").read_text(encoding="utf-8")
    for name in ("verbs", "long"):
        assert page.count(f"<!-- {name}: begin -->") == page.count(f"<!-- {name}: end -->") == 1
