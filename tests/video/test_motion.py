"""How much a video changes, and how well a loop closes."""

from __future__ import annotations

import math
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from soragen.errors import SoragenError
from soragen.video.motion import differences, seam_score


def chunked(frames: Tensor, length: int) -> Iterator[Tensor]:
    yield from frames.split(length)


def turning(num_frames: int, turns: float = 1) -> Tensor:
    """A wave that moves on by `turns` of its length in `num_frames` frames."""
    phase = torch.arange(num_frames)[:, None] / num_frames * turns + torch.arange(60) / 60
    shade = (127.5 + 120 * torch.sin(2 * math.pi * phase)).round().byte()
    return shade[:, None, :, None].expand(num_frames, 8, 60, 3)


def test_differences_are_exact() -> None:
    frames = torch.tensor([0, 255, 255, 204]).to(torch.uint8)[:, None, None, None].expand(4, 6, 5, 3)
    for length in (1, 2, 3, 4):
        assert differences(chunked(frames, length)) == pytest.approx([1, 0, 0.2])
    assert differences([frames[:1]]) == [] and differences([]) == []


def test_a_loop_that_closes() -> None:
    closed, twice, torn = turning(24), torch.cat([turning(24), turning(24)[:1]]), turning(24, 0.5)
    assert seam_score(chunked(closed, 7)) == pytest.approx(1, abs=0.05)
    assert seam_score([twice]) == 0  # a doubled frame: no step at all
    assert seam_score([torn]) > 8


def test_the_median_is_not_moved_by_one_cut() -> None:
    frames = turning(24).clone()
    frames[12:] = 255 - frames[12:]
    assert seam_score([frames]) > 6  # the cut is as large as the seam, and does not hide it


def test_a_clip_without_motion() -> None:
    still = torch.full((5, 4, 4, 3), 7, dtype=torch.uint8)
    assert seam_score([still]) == 0
    still[4:] = 200
    assert seam_score([still]) > 1000
    with pytest.raises(SoragenError):
        seam_score([still[:1]])


def test_frames_are_not_changed_or_kept() -> None:
    """A decoder may use the memory of a chunk again for the next one."""

    def reused() -> Iterator[Tensor]:
        memory = torch.empty(2, 4, 4, 3, dtype=torch.uint8)
        for shade in (0, 51, 102):
            memory[0], memory[1] = shade, shade + 51
            yield memory

    assert differences(reused()) == pytest.approx([0.2, 0, 0.2, 0, 0.2])
    assert seam_score(reused()) == pytest.approx(153 / 51)
