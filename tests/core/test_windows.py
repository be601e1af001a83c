"""Windows of long clips against a plain reading of their rule, at every size."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from controlnext.errors import InputError
from controlnext.windows import Window, clip_windows


@st.composite
def _long_clips(draw: st.DrawFn) -> tuple[int, int, int]:
    """Frames, window size and overlap of a clip that needs several windows."""
    size = draw(st.integers(2, 40))
    return draw(st.integers(size + 1, 300)), size, draw(st.integers(1, size - 1))


def _walked(frames: int, size: int, overlap: int) -> list[Window]:
    """One window after another: each begins ``overlap`` frames before the end of the one before; the one that
    reaches the end of the clip is shifted back to end there, and is the last."""
    windows = [Window(0, size, 0)]
    while windows[-1].stop < frames:
        start = windows[-1].stop - overlap
        if start + size >= frames:
            start = frames - size
        windows.append(Window(start, start + size, start + 1))
    return windows


@given(_long_clips())
def test_a_long_clip_is_walked_through_in_overlapping_windows(clip: tuple[int, int, int]) -> None:
    assert clip_windows(*clip) == _walked(*clip)


@given(_long_clips())
def test_what_the_windows_of_a_long_clip_have_in_common(clip: tuple[int, int, int]) -> None:
    frames, size, overlap = clip
    windows = clip_windows(*clip)
    counted = {frame for window in windows for frame in range(window.first, window.stop)}
    assert counted == set(range(frames))
    assert all(window.stop - window.start == size for window in windows)
    assert all(left.start < right.start <= left.stop - overlap for left, right in pairwise(windows))
    assert (windows[0].start, windows[0].first) == (0, 0)
    assert all(window.first == window.start + 1 for window in windows[1:])
    assert windows[-1].stop == frames
    assert windows[-2].stop < frames


@given(st.integers(1, 40), st.integers(1, 80), st.integers(0, 80))
def test_a_short_clip_is_one_window_whatever_the_overlap(frames: int, size: int, overlap: int) -> None:
    assume(frames <= size)
    assert clip_windows(frames, size, overlap) == [Window(0, frames, 0)]


def test_the_published_setting() -> None:
    """24 frames a window, overlapping by 6."""
    assert clip_windows(60, 24, 6) == [Window(0, 24, 0), Window(18, 42, 19), Window(36, 60, 37)]
    assert clip_windows(61, 24, 6)[-2:] == [Window(36, 60, 37), Window(37, 61, 38)]


@pytest.mark.parametrize("size", [2, 3, 14])
@pytest.mark.parametrize("excess", [-1, 0, 1])
def test_windows_that_do_not_overlap_are_refused(size: int, excess: int) -> None:
    """Nothing would stand for the first frame of a window; and windows have to move on."""
    overlap = 0 if excess < 0 else size + excess
    message = f"overlap is {overlap} for windows of {size} frames over a clip of 15; give 1 to {size - 1}$"
    with pytest.raises(InputError, match=message):
        clip_windows(15, size, overlap)


@pytest.mark.parametrize("size", [0, -3])
def test_windows_without_frames_are_refused(size: int) -> None:
    with pytest.raises(InputError, match=f"frames_per_batch is {size}; must be a positive integer"):
        clip_windows(5, size, 1)


def test_a_long_clip_in_single_frames_is_refused() -> None:
    """No overlap would do: the size has to change."""
    for overlap in (0, 1, 4):
        with pytest.raises(InputError, match=r"frames_per_batch is 1 for a clip of 5: .*; give 2 or more$"):
            clip_windows(5, 1, overlap)
