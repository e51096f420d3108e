"""The presence trigger on real files: the sample clip part by part, and real capsules on a real belt."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from daemons import DEMO, shared

from inspectd.settings import FileSource
from inspectd.sources.base import EndOfSource
from inspectd.sources.open import open_source
from inspectd.sources.presence import Presence


def fired_on(path: Path, presence: Presence, *, every: int = 1) -> list[int]:
    """The frames to inspect of a clip of which every so manieth frame is seen."""
    source = open_source(FileSource(kind="file", path=path, pace="fast"))
    fired: list[int] = []
    while True:
        try:
            frame = source.read(1.0)
        except EndOfSource:
            return fired + [part.best.index for part in presence.flush()]
        if frame is not None and frame.index % every == 0:
            fired += [part.best.index for part in presence.feed(frame)]


@pytest.mark.parametrize("every", [1, 3])
def test_sample_clip_gives_every_part_once(every: int) -> None:
    """All parts of the demo fire once, near the frame where they are centred; also at a third of the rate."""
    if not (DEMO / "sample.mp4").exists():
        pytest.skip("the demo's sample clip is not there")
    truth = json.loads((DEMO / "sample.json").read_text())
    left, top = truth["zone_polygon_xy_px"][0]
    right, bottom = truth["zone_polygon_xy_px"][2]
    fired = fired_on(DEMO / "sample.mp4", Presence((left, top, right - left, bottom - top)), every=every)
    centred = [part["frame_centred"] for part in truth["parts"]]
    assert len(centred) >= 60
    assert fired == pytest.approx(centred, abs=2 + every / 2)


def test_capsules_that_lie_apart_fire_once() -> None:
    """Small parts that cross the picture downwards in three frames: those that lie apart each fire at their middle.

    Counted by eye: the first three capsules pass the middle in frames 2, 3 and 5, the last two in 70 and 72, where the
    zone's edge cuts the last one, which is whole in 73. Between them they lie in heaps, and a heap counts as one part.
    """
    path = shared("data", "belt", "capsules_pink_train", "video.mp4")
    fired = fired_on(path, Presence((530, 0, 1120, 1080), min_part_share=0.006, contrast_levels=60))
    assert fired[:3] == [2, 3, 5]
    assert fired[-2:] == [70, 73]
