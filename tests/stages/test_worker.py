"""What the worker takes out of a slot is one frame, whole, or `frame_corrupt`."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from tests_inspection import BrightDetector, bright_recipe
from tests_records import a_row

from inspectd.inspection import Crops, Inspector, Moment
from inspectd.records import Inspection, PixelsU8, Reason
from inspectd.stages import worker
from inspectd.stages.worker import _best_ms, _crop
from inspectd.transport.ring import Ring

HEIGHT, WIDTH = 48, 64


@pytest.fixture
def ring() -> Iterator[Ring]:
    ring = Ring.create(f"inspectd-test{os.getpid()}-ring", slots=2, slot_bytes=HEIGHT * WIDTH * 3)
    yield ring
    ring._segment.unlink()


class Interrupted(Inspector):
    """An inspector in the middle of whose copy something happens."""

    happens: Callable[[], object] = staticmethod(lambda: None)

    def crop(self, pixels_bgr: PixelsU8, moment: Moment | None = None) -> Crops:
        crops = super().crop(pixels_bgr, moment)
        self.happens()
        return crops


def taken(ring: Ring, tmp_path: Path, happens: Callable[[], object], **row: int) -> Crops | Reason:
    """What a worker takes out of slot 0, which holds a grey frame."""
    generation = ring.write(0, np.full((HEIGHT, WIDTH, 3), 100, np.uint8), 1)
    inspector = Interrupted(bright_recipe(tmp_path), BrightDetector())
    inspector.happens = happens
    facts = {"slot": 0, "slot_generation": generation, "height_px": HEIGHT, "width_px": WIDTH} | row
    return _crop(inspector, ring, a_row(1, **facts), Moment(camera="cam1", generation=1, seq=1))


def test_frame_is_taken_as_it_was_written(ring: Ring, tmp_path: Path) -> None:
    """Nothing happens meanwhile: the pixels are those of the frame."""
    crops = taken(ring, tmp_path, lambda: None)
    assert isinstance(crops, Crops)
    assert (crops.images_rgb[0] == 100).all()


@pytest.mark.parametrize("level", [100, 101])
def test_slot_that_is_used_again_during_the_copy_is_corrupt(ring: Ring, tmp_path: Path, level: int) -> None:
    """Pixels that may be of two frames are never scored, even where they happen to be equal."""
    other = np.full((HEIGHT, WIDTH, 3), level, np.uint8)
    assert taken(ring, tmp_path, lambda: ring.write(0, other, 2)) is Reason.FRAME_CORRUPT


def test_slot_that_holds_another_frame_is_corrupt(ring: Ring, tmp_path: Path) -> None:
    """A generation that has passed is not looked at."""
    assert taken(ring, tmp_path, lambda: None, slot_generation=40) is Reason.FRAME_CORRUPT


class Sluggish(Inspector):
    """Takes 30 ms for each of its first inspections: a machine that is busy when the daemon starts."""

    slow_runs = 4

    def inspect(self, frames_bgr: Sequence[PixelsU8]) -> list[Inspection]:
        self.slow_runs -= 1
        if self.slow_runs >= 0:
            time.sleep(0.03)
        return super().inspect(frames_bgr)


def test_slow_warm_up_is_measured_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A recipe that seems too slow for its deadline gets some seconds to show that it is not; no more than that."""
    inspector = Sluggish(bright_recipe(tmp_path), BrightDetector())
    frame = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    assert _best_ms(inspector, frame, enough_ms=20) < 20
    monkeypatch.setattr(worker, "WARM_PATIENCE_S", 0.2)
    inspector.slow_runs = 10_000
    assert _best_ms(inspector, frame, enough_ms=20) >= 30
    assert inspector.slow_runs > 9_900


def test_frame_of_an_impossible_size_is_corrupt(ring: Ring, tmp_path: Path) -> None:
    """Too small to be inspected: no crash, an error."""
    assert taken(ring, tmp_path, lambda: None, height_px=8, width_px=8) is Reason.FRAME_CORRUPT
