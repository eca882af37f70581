"""Windows cover a long video without gaps, each of full length, each beginning with frames that are made already."""

from __future__ import annotations

from itertools import pairwise

import pytest

from soragen.diffusion.windows import Window, lay_windows


@pytest.mark.parametrize("length", [2, 3, 7, 16])
@pytest.mark.parametrize("overlap", [1, 2, 5])
def test_windows_cover_the_video(length: int, overlap: int) -> None:
    if overlap >= length:
        with pytest.raises(ValueError, match="cannot share"):
            lay_windows(10, length, overlap)
        return
    for latent_frames in range(1, 5 * length):
        windows = lay_windows(latent_frames, length, overlap)
        assert windows[0].start == 0 and windows[0].num_known == 0
        assert windows[-1].stop == latent_frames
        assert {window.stop - window.start for window in windows} == {min(length, latent_frames)}
        for before, window in pairwise(windows):
            assert window.start + window.num_known == before.stop < window.stop
            assert window.num_known >= overlap
        shared = [window.num_known for window in windows[1:]]
        assert max(shared, default=0) - min(shared, default=0) <= 1
        fewest = 1 + max(0, -(-(latent_frames - length) // (length - overlap)))
        assert len(windows) == fewest


def test_what_is_shared_is_spread_evenly() -> None:
    assert lay_windows(16, 7, 2) == (Window(0, 7, 0), Window(4, 11, 3), Window(9, 16, 2))
