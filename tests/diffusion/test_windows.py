"""Windows cover a long video without gaps, each of full length, each beginning with frames that are made already."""

from __future__ import annotations

from itertools import pairwise

import pytest

from soragen.diffusion.windows import Window, lay_windows, lay_windows_backward, lay_windows_between


@pytest.mark.parametrize("length", [2, 3, 7, 16])
@pytest.mark.parametrize("overlap", [1, 2, 5])
def test_windows_cover_the_video(length: int, overlap: int) -> None:
    if overlap >= length:
        with pytest.raises(ValueError, match="cannot share"):
            lay_windows(10, length, overlap)
        return
    for latent_frames in range(1, 5 * length):
        windows = lay_windows(latent_frames, length, overlap)
        assert windows[0].start == windows[0].new_start == 0
        assert windows[-1].stop == windows[-1].new_stop == latent_frames
        assert {window.stop - window.start for window in windows} == {min(length, latent_frames)}
        shared = [window.new_start - window.start for window in windows[1:]]
        for before, window in pairwise(windows):
            assert window.new_start == before.new_stop < window.stop
        assert all(number >= overlap for number in shared)
        assert max(shared, default=0) - min(shared, default=0) <= 1
        fewest = 1 + max(0, -(-(latent_frames - length) // (length - overlap)))
        assert len(windows) == fewest


def test_what_is_shared_is_spread_evenly() -> None:
    assert lay_windows(16, 7, 2) == (Window(0, 7, 0, 7), Window(4, 11, 7, 11), Window(9, 16, 11, 16))


@pytest.mark.parametrize("known_end", [1, 2, 3])
def test_the_last_window_has_room_to_reach_a_given_end(known_end: int) -> None:
    length, overlap = 7, 2
    for latent_frames in range(known_end + 3, 40):
        windows = lay_windows_between(latent_frames, length, overlap, known_end)
        assert [window.new_start for window in windows] == [0, *(window.new_stop for window in windows[:-1])]
        assert windows[-1].stop == windows[-1].new_stop == latent_frames
        assert {window.stop - window.start for window in windows} == {min(length, latent_frames)}
        if len(windows) > 1:
            assert windows[-1].stop - known_end - windows[-1].new_start == length - overlap - known_end
            assert all(window.new_start - window.start >= overlap for window in windows[1:])
            assert all(window.new_stop <= latent_frames - known_end for window in windows[:-1])


def test_no_room_between_two_ends_is_refused() -> None:
    with pytest.raises(ValueError, match="no room"):
        lay_windows_between(20, 4, 2, 2)


@pytest.mark.parametrize("latent_frames", [3, 7, 8, 12, 30])
def test_backward_every_first_frame_but_the_very_first_is_made_again(latent_frames: int) -> None:
    windows = lay_windows_backward(latent_frames, 7, 2)
    made: list[int] = []
    for window in windows:
        new = list(range(window.new_start, window.new_stop))
        assert window.start not in new or window.start == 0
        assert set(new) <= set(range(window.start, window.stop))
        made = new + made
    assert made == list(range(latent_frames))


@pytest.mark.parametrize("latent_frames", [4, 7, 9, 15, 30])
def test_an_end_that_follows_from_the_beginning_needs_a_window_of_its_own(latent_frames: int) -> None:
    first, *others = lay_windows_between(latent_frames, 7, 2, 1, at_once=False)
    assert others and first.new_stop < latent_frames - 1
    assert others[-1].new_stop == latent_frames and others[-1].new_start - others[-1].start == 2
