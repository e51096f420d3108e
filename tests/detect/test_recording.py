"""CUDA graphs of passes: what can be shown without a device, and, where there is one, that they change nothing."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from structlog.testing import capture_logs
from tests_detect import NEEDS_CUDA, ON_CUDA, small_detector, some_crops

from inspectd.detect.gemm import Precision
from inspectd.detect.options import Mode
from inspectd.detect.plans import Plan
from inspectd.detect.preprocess import Resize
from inspectd.detect.recording import Recordings, _Recorded
from inspectd.detect.winclip import Detector

NO_PLAN = Plan(("none",), torch.ones(1, 1), (), torch.ones(1, 1), (), ())


def brightness(grey: torch.Tensor, _: Plan) -> torch.Tensor:
    """A pass whose result follows every pixel."""
    return grey.float().mean(dim=(1, 2, 3)) / 255


def never(*_: object) -> torch.Tensor:
    """A pass that must not be launched."""
    raise AssertionError("launched")


class Replayed:
    """What a graph does with the memory that it was recorded with."""

    def __init__(self, recorded_with: torch.Tensor, found: torch.Tensor, *, sound: bool):
        self.grey, self.found, self.sound = recorded_with, found, sound

    def replay(self) -> None:
        if self.sound:
            self.found.copy_(brightness(self.grey, NO_PLAN))


def recordings(monkeypatch: pytest.MonkeyPatch, *, sound: bool) -> Recordings:
    """Recordings whose graphs follow their input, or do not."""
    made = Recordings(torch.device("cuda"))

    def record(compute, grey: torch.Tensor, plan: Plan) -> _Recorded:
        kept, found = grey.clone(), compute(grey, plan)
        return _Recorded(Replayed(kept, found, sound=sound), kept, found, plan)

    monkeypatch.setattr(made, "_record", record)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda _: None)
    return made


def test_recorded_pass_follows_its_pixels(monkeypatch: pytest.MonkeyPatch):
    """A replay is of the pixels given, not of those that were recorded; another plan is launched plainly."""
    made, first, other = (
        recordings(monkeypatch, sound=True),
        torch.full((1, 3, 4, 4), 51),
        torch.full((1, 3, 4, 4), 204),
    )
    with capture_logs() as lines:
        made.record(brightness, first, NO_PLAN)
    assert (len(made), lines) == (1, [])
    assert made.run(brightness, other, NO_PLAN).item() == pytest.approx(0.8)
    assert made.run(brightness, first, NO_PLAN).item() == pytest.approx(0.2)
    made.clear()
    assert len(made) == 0


def test_recorded_pass_is_found_after_hundreds_of_other_plans(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Frames of ever new sizes push plans out: the one made again for the same regions replays the same graph."""
    made, grey = recordings(monkeypatch, sound=True), torch.full((1, 3, 4, 4), 51)
    planner, patches = small_detector(tmp_path)._planner, torch.arange(25)

    def plan(number: int) -> Plan:
        inside = (torch.tensor(number) >> patches & 1).bool()[None]
        return planner.plan(inside, windows=True, keep_patches=False)

    made.record(brightness, grey, plan(1))
    plans = [plan(number) for number in range(2, 302)]
    assert made.run(never, grey, plan(1)).item() == pytest.approx(0.2)
    with pytest.raises(AssertionError, match="launched"):
        made.run(never, grey, plans[0])


def test_graph_that_ignores_its_pixels_is_refused(monkeypatch: pytest.MonkeyPatch):
    """It would pass every frame that looks like the first: it is never used, and one line says so."""
    made, grey = recordings(monkeypatch, sound=False), torch.full((1, 3, 4, 4), 51)
    with capture_logs() as lines:
        made.record(brightness, grey, NO_PLAN)
        made.record(brightness, grey, replace(NO_PLAN, key=("another",)))
    assert len(made) == 0
    assert [line["event"] for line in lines] == ["graphs_refused"]
    assert made.run(brightness, 255 - grey, NO_PLAN).item() == pytest.approx(0.8)


@pytest.mark.skipif(torch.cuda.is_available(), reason="here graphs can be recorded")
def test_what_cannot_be_recorded_is_launched_plainly():
    """A device that refuses to record costs one line in the log, and no result."""
    made, grey = Recordings(torch.device("cuda")), torch.full((1, 3, 4, 4), 51)
    with capture_logs() as lines:
        made.record(brightness, grey, NO_PLAN)
    assert [(line["event"], line["log_level"]) for line in lines] == [("graphs_refused", "warning")]
    assert made.run(brightness, grey, NO_PLAN).item() == pytest.approx(0.2)


def test_rehearsal_records_nothing_on_a_cpu(tmp_path: Path):
    """There a rehearsal costs nothing."""
    detector = small_detector(tmp_path)
    detector.rehearse(some_crops(3))
    assert len(detector._recordings) == 0


def test_pixels_go_up_once_for_each_pass_that_is_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Batches of 1 to 8 frames in passes of 3 are three passes: the others are known before any pixel goes up."""
    detector, crops = small_detector(tmp_path, frames_per_pass=3), some_crops(8)
    detector.tower.fused, detector._recordings = True, recordings(monkeypatch, sound=True)
    uploads, grey = [], detector._grey
    monkeypatch.setattr(detector, "_computed", brightness)
    monkeypatch.setattr(detector, "_grey", lambda frames: uploads.append(len(frames)) or grey(frames))
    for count in range(1, 9):
        detector.rehearse(crops[:count])
    assert (uploads, len(detector._recordings)) == ([1, 2, 3], 3)


def results(detector: Detector, crops: list[np.ndarray], **settings) -> np.ndarray:
    """Scores and maps in one array."""
    return np.stack([np.append(one.map.ravel(), one.score) for one in detector.score(crops, **settings)])


@pytest.mark.gpu
@NEEDS_CUDA
@pytest.mark.parametrize("shots", [0, 2])
@pytest.mark.parametrize("precision", [Precision.FP32, Precision.BF16])
def test_replays_equal_plain_launches_on_a_device(tmp_path: Path, shots: int, precision: Precision):
    """Batches of every size, several passes in flight, pixels that change: recorded passes give what plain ones do."""
    tolerance = 1e-4 if precision is Precision.FP32 else 5e-3
    detector, crops = small_detector(tmp_path, precision, device="cuda", frames_per_pass=7), some_crops(20)
    detector.enroll(some_crops(shots, seed=9))
    plain = results(detector, crops)
    with capture_logs() as lines:
        for count in (*range(1, 9), 20):
            detector.rehearse(crops[:count])
    assert (len(detector._recordings), lines) == (7, [])
    for size in (1, 3, 8, 20, 20):
        replayed = np.concatenate([results(detector, crops[at : at + size]) for at in range(0, 20, size)])
        assert replayed == pytest.approx(plain, abs=tolerance)


@pytest.mark.gpu
@NEEDS_CUDA
def test_device_equals_the_cpu(tmp_path: Path):
    """fp32 on a GPU is fp32: upload, resize, tower and scores are those of the CPU."""
    found = results(small_detector(tmp_path, device="cuda"), some_crops(9))
    assert found == pytest.approx(results(small_detector(tmp_path), some_crops(9)), abs=5e-3)  # greys may round apart


@contextmanager
def waits_are_errors() -> Iterator[Callable[[], None]]:
    """Where the device is waited for, torch raises; what is yielded ends that early."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Synchronization debug mode is a prototype")
        try:
            torch.cuda.set_sync_debug_mode("error")
            yield lambda: torch.cuda.set_sync_debug_mode("default")
        finally:
            torch.cuda.set_sync_debug_mode("default")


@pytest.mark.gpu
@NEEDS_CUDA
@pytest.mark.parametrize("rehearsed", [False, True])
def test_batch_waits_for_the_device_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rehearsed: bool):
    """Between the first launch of three passes and the end of the batch nothing waits: torch would raise."""
    detector, crops = small_detector(tmp_path, Precision.BF16, device="cuda", frames_per_pass=7), some_crops(20)
    if rehearsed:
        detector.rehearse(crops)
        assert len(detector._recordings) == 2
    detector.score(crops)
    wait = detector._transfer.wait
    with waits_are_errors() as no_more:
        monkeypatch.setattr(detector._transfer, "wait", lambda: (no_more(), wait()))
        detector.score(crops)


@pytest.mark.gpu
@NEEDS_CUDA
def test_new_regions_are_planned_without_waiting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The indices of a plan go up as pixels do: a region that was never seen before holds up nothing."""
    detector, crops = small_detector(tmp_path, Precision.BF16, device="cuda"), some_crops(2)
    region = np.zeros((5, 5), dtype=bool)
    region[1, 2] = True
    detector.score(crops)
    wait = detector._transfer.wait
    with waits_are_errors() as no_more:
        monkeypatch.setattr(detector._transfer, "wait", lambda: (no_more(), wait()))
        detector.score(crops, regions=[region, ~region])


@pytest.mark.gpu
@NEEDS_CUDA
def test_batch_is_the_same_to_the_bit_on_a_device(tmp_path: Path):
    """No sum depends on which thread comes first."""
    detector, crops = small_detector(tmp_path, device="cuda"), some_crops(8)
    first = results(detector, crops)
    assert all(np.array_equal(results(detector, crops), first) for _ in range(5))


@pytest.mark.parametrize(
    ("device", "precision"),
    [
        ("cpu", Precision.FP32),
        pytest.param("cuda", Precision.FP32, marks=ON_CUDA),
        pytest.param("cuda", Precision.BF16, marks=ON_CUDA),
    ],
)
def test_broken_frame_stays_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, device: str, precision: Precision):
    """NaN comes through a pass, on a device a recorded one, as NaN, and leaves the frames beside it alone."""
    detector, crops = small_detector(tmp_path, precision, device=device, resize=Resize.FLOAT), some_crops(4)
    detector.rehearse(crops)
    assert len(detector._recordings) == (device == "cuda")
    sound, grey = results(detector, crops), detector._grey

    def poisoned(frames: Sequence[object]) -> torch.Tensor:
        found = grey(frames)
        found[2, :, 9, 9] = torch.nan
        return found

    monkeypatch.setattr(detector, "_grey", poisoned)
    found = results(detector, crops)
    assert np.isnan(found[2, -1])
    assert np.delete(found, 2, axis=0) == pytest.approx(np.delete(sound, 2, axis=0), abs=1e-6)


@pytest.mark.gpu
@NEEDS_CUDA
def test_modes_record_their_passes_on_a_device(tmp_path: Path):
    """In `localise_on_fail` the image pass is recorded, and that of the frames that fail."""
    detector = small_detector(tmp_path, Precision.BF16, device="cuda", mode=Mode.LOCALISE_ON_FAIL)
    crops = some_crops(3)
    detector.rehearse(crops)
    assert len(detector._recordings) == 2
    assert [one.map is None for one in detector.score(crops, localise_from=2.0)] == [True] * 3
