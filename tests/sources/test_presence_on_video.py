"""The presence trigger on real files: the sample clip part by part, and real capsules on a real belt."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from daemons import DEMO, shared

from inspectd.source_settings import FileSource
from inspectd.sources.base import EndOfSource
from inspectd.sources.open import open_source
from inspectd.sources.presence import Part, Presence

TRUTHS = Path(__file__).resolve().parents[2] / "tools" / "presence_truth"


def taken_on(path: Path, presence: Presence, *, every: int = 1) -> list[Part]:
    """The parts to inspect of a clip of which every so manieth frame is seen."""
    source = open_source(FileSource(kind="file", path=path, pace="fast"))
    taken: list[Part] = []
    while True:
        try:
            frame = source.read(1.0)
        except EndOfSource:
            return taken + presence.flush()
        if frame is not None and frame.index % every == 0:
            taken += presence.feed(frame)


@pytest.mark.parametrize("every", [1, 3])
def test_sample_clip_gives_every_part_once(every: int) -> None:
    """All parts of the demo fire once, near the frame where they are centred; also at a third of the rate."""
    if not (DEMO / "sample.mp4").exists():
        pytest.skip("the demo's sample clip is not there")
    truth = json.loads((DEMO / "sample.json").read_text())
    left, top = truth["zone_polygon_xy_px"][0]
    right, bottom = truth["zone_polygon_xy_px"][2]
    taken = taken_on(DEMO / "sample.mp4", Presence((left, top, right - left, bottom - top)), every=every)
    centred = [part["frame_centred"] for part in truth["parts"]]
    assert len(centred) >= 60
    assert [part.best.index for part in taken] == pytest.approx(centred, abs=2 + every / 2)


def test_every_capsule_that_can_be_counted_fires_once() -> None:
    """Small parts that cross the picture downwards in three frames: apart, touching, side by side, each at its middle.

    They were counted by eye where they can be told apart (`tools/presence_truth/`); elsewhere they lie in heaps.
    """
    path = shared("data", "belt", "capsules_pink_train", "video.mp4")
    truth = json.loads((TRUTHS / "capsules_pink_train.json").read_text())
    presence = Presence(
        tuple(truth["zone_xywh_px"]), min_part_share=truth["min_part_share"], contrast_levels=truth["contrast_levels"]
    )
    taken = [part for part in taken_on(path, presence) if any(a <= part.best.index <= b for a, b in truth["stretches"])]
    places = [(part.best.index, part.sighting.bbox_xywh_px) for part in taken if part.sighting is not None]
    for index, x in truth["parts_frame_x"]:
        near = [place for place in places if abs(place[0] - index) <= 1 and abs(middle_x(place[1]) - x) <= 30]
        assert near, f"none in frame {index} at {x}: {places}"
        places.remove(near[0])
    assert places == []


def middle_x(bbox_xywh_px: tuple[int, int, int, int]) -> float:
    return bbox_xywh_px[0] + bbox_xywh_px[2] / 2
