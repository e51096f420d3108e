"""Recordings behave like the camera that took them: their own pace, nothing twice, gaps that show in the index."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
from clips import number_of, numbered, write_numbered

from inspectd.errors import ConfigError
from inspectd.records import Frame
from inspectd.source_settings import FileSource
from inspectd.sources.base import EndOfSource, FrameSource, SourceInfo
from inspectd.sources.files import Pass, Recording, Shot
from inspectd.sources.open import open_source, probe

INFO = SourceInfo(size_wh_px=(160, 96), fps=25.0)


def shots(count: int, period_s: float | None = 0.04) -> Pass:
    """Shots that load at once."""
    for number in range(count):
        pts_s = None if period_s is None else number * period_s
        yield Shot(pts_s=pts_s, load=lambda number=number: (numbered(number), None))


def recording(count: int, *, pace: Literal["realtime", "fast"] = "fast", **how: object) -> Recording:
    loop = bool(how.pop("loop", False))
    return Recording(lambda: shots(count), name="clip", info=INFO, pace=pace, loop=loop, **how)  # type: ignore[arg-type]


def read_all(source: FrameSource, most: int = 10_000) -> list[Frame]:
    """Frames until the end, or `most` of them."""
    frames: list[Frame] = []
    while len(frames) < most:
        try:
            frame = source.read(0.05)
        except EndOfSource:
            break
        if frame is not None:
            frames.append(frame)
    return frames


def test_fast_recording_gives_every_frame_then_ends(tmp_path: Path) -> None:
    """As fast as it is read: index and pixels agree, and the end is said again and again."""
    source = open_source(FileSource(kind="file", path=write_numbered(tmp_path / "a.mp4", 30), pace="fast"))
    frames = read_all(source)
    assert [(frame.index, number_of(frame.pixels_bgr)) for frame in frames] == [(n, n) for n in range(30)]
    assert (source.simulated, source.live, source.size_wh_px, source.next_index) == (True, False, (160, 96), 30)
    for _ in range(2):
        with pytest.raises(EndOfSource, match=r"a\.mp4: through after 30 frames"):
            source.read(0.01)
    source.close()
    source.close()


def test_realtime_recording_takes_its_own_time() -> None:
    """Frames come no sooner than their PTS, and `read` waits no longer than asked."""
    source = recording(8, pace="realtime")
    begun_s = time.monotonic()
    frames, empty = [], 0
    while len(frames) < 3:
        frame = source.read(0.01)
        empty += frame is None
        frames += [] if frame is None else [(frame, time.monotonic() - begun_s)]
    assert empty > 0
    assert all(elapsed_s >= frame.index * 0.04 - 0.002 for frame, elapsed_s in frames)


def test_slow_reader_of_a_realtime_recording_loses_frames_like_a_camera() -> None:
    """What was not read in time is gone: index, pixels and `frames_missed` tell it alike."""
    source = recording(200, pace="realtime")
    first = source.read(1.0)
    resume_s = time.monotonic() + 1.0
    while time.monotonic() < resume_s:
        pass
    late = source.read(1.0)
    assert first is not None
    assert late is not None
    assert late.index >= 20
    assert number_of(late.pixels_bgr) == late.index
    assert source.frames_missed == late.index - 1


def test_machine_that_cannot_keep_up_still_gets_frames() -> None:
    """Decoding slower than real time must not skip for ever: one `read` gives up the schedule, not the frames."""

    def crawling() -> Pass:
        for shot in shots(200, 0.001):
            wait_s = time.monotonic() + 0.02
            while time.monotonic() < wait_s:
                pass
            yield shot

    source = Recording(crawling, name="slow", info=INFO, pace="realtime", loop=False)
    frames = [frame for _ in range(12) if (frame := source.read(0.5)) is not None]
    assert len(frames) >= 6


def test_loop_goes_on_with_index_and_time() -> None:
    """The second pass follows the first without a step back in index or PTS."""
    source = recording(5, loop=True)
    frames = read_all(source, most=12)
    assert [frame.index for frame in frames] == list(range(12))
    assert [number_of(frame.pixels_bgr) for frame in frames] == [n % 5 for n in range(12)]
    assert [frame.pts_s for frame in frames] == pytest.approx([n * 0.04 for n in range(12)])


def test_loop_of_nothing_ends() -> None:
    """A pass without a frame is the end, not an endless turn."""
    source = recording(0, loop=True)
    with pytest.raises(EndOfSource):
        source.read(0.1)


@pytest.mark.parametrize("loop", [False, True])
def test_start_index_goes_on_where_another_left_off(loop: bool) -> None:
    """A capture that died is followed by one that passes over what was read before."""
    frame = read_all(recording(9, loop=loop, start_index=7), most=1)[0]
    assert (frame.index, number_of(frame.pixels_bgr)) == (7, 7)


def test_start_index_beyond_the_end_is_the_end() -> None:
    """All frames had been read before: nothing is left."""
    assert read_all(recording(9, start_index=20)) == []


def test_frames_without_pts_are_paced_by_the_rate() -> None:
    """Images and bare streams have no times: the rate stands in, and `pts_s` stays None."""
    source = Recording(lambda: shots(6, None), name="x", info=INFO, pace="realtime", loop=False)
    begun_s = time.monotonic()
    frames = read_all(source, most=4)
    assert time.monotonic() - begun_s >= 0.115
    assert {frame.pts_s for frame in frames} == {None}


def test_unreadable_shot_is_a_black_frame_of_the_last_size() -> None:
    """Damage without pixels takes the place of its frame: same number, last good size, damage named."""

    def broken() -> Pass:
        yield Shot(pts_s=0.0, load=lambda: (np.full((20, 30, 3), 9, np.uint8), None))
        yield Shot(pts_s=0.1, load=lambda: (None, "gone"))

    _, frame = read_all(Recording(broken, name="x", info=INFO, pace="fast", loop=False))
    assert (frame.index, frame.damage, frame.pixels_bgr.shape, int(frame.pixels_bgr.max())) == (
        1,
        "gone",
        (20, 30, 3),
        0,
    )


def test_frame_larger_than_the_ring_is_damage() -> None:
    """Nothing larger than what was promised is handed out: the slots were made to measure."""

    def grown() -> Pass:
        yield Shot(pts_s=0.0, load=lambda: (np.zeros((96, 161, 3), np.uint8), None))

    (frame,) = read_all(Recording(grown, name="x", info=INFO, pace="fast", loop=False))
    assert frame.damage == "a frame of 161x96 px where at most 160x96 is expected"
    assert frame.pixels_bgr.shape == (96, 160, 3)


def test_missing_file_is_a_configuration_error_at_probe_and_open(tmp_path: Path) -> None:
    """A file that is not there stops the start, in one line."""
    settings = FileSource(kind="file", path=tmp_path / "none.mp4")
    for opens in (probe, open_source):
        with pytest.raises(ConfigError, match=r"none\.mp4: no such file or directory"):
            opens(settings)
