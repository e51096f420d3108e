"""The detector as its callers see it: batches, regions, modes, references."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from structlog.testing import capture_logs
from tests_detect import EVERY_DEVICE, FACTS, NEEDS_INT8, open_tower, small_detector, some_crops, write_model

from inspectd.detect.gemm import Precision
from inspectd.detect.options import Mode, PatchFeature, WinclipConfig
from inspectd.detect.scoring import FewShotMap
from inspectd.detect.winclip import Detector
from inspectd.errors import DetectorError, OutOfMemory


def corner(*rows_columns: slice) -> np.ndarray:
    """A region on the grid of 5 x 5."""
    region = np.zeros((5, 5), dtype=bool)
    region[rows_columns] = True
    return region


@NEEDS_INT8
def test_batch_size_changes_nothing_in_int8(tmp_path: Path):
    """In 8 bits a frame's score is its own too."""
    detector, crops = small_detector(tmp_path, Precision.INT8), some_crops(3)
    alone = [detector.score([crop])[0].score for crop in crops]
    assert [one.score for one in detector.score(crops)] == pytest.approx(alone, abs=1e-6)


@pytest.mark.parametrize("shots", [0, 2])
@pytest.mark.parametrize("frames_per_pass", [1, 3, 8])
def test_batch_size_changes_nothing(tmp_path: Path, shots: int, frames_per_pass: int):
    """The same crops give the same scores and maps alone, by three and by eight."""
    detector, crops = small_detector(tmp_path, frames_per_pass=frames_per_pass), some_crops(8)
    detector.enroll(some_crops(shots, seed=9))
    alone = [detector.score([crop])[0] for crop in crops]
    for size in (3, 8):
        batched = [one for at in range(0, 8, size) for one in detector.score(crops[at : at + size])]
        assert [one.score for one in batched] == pytest.approx([one.score for one in alone], abs=1e-5)
        assert np.stack([one.map for one in batched]) == pytest.approx(np.stack([one.map for one in alone]), abs=1e-5)


class Full:
    """A device that has room for passes of so many frames, and fails as told with more."""

    def __init__(self, detector: Detector, room: int, failure: Exception):
        self.detector, self.room, self.failure, self.tried = detector, room, failure, []
        self.encode, detector.tower.encode = detector.tower.encode, self

    def __call__(self, tokens: torch.Tensor, groups: list, beat: Callable[[], None]):
        self.tried.append(len(tokens))
        if len(tokens) > self.room:
            raise self.failure
        return self.encode(tokens, groups, beat)


NO_ROOM = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nSee the documentation.")


@EVERY_DEVICE
def test_pass_too_large_for_the_memory_is_halved(tmp_path: Path, device: str):
    """Frames that found no room together are scored by halves, and so are those after them; scores stay the same.

    What was recorded gives its memory up for good, and the one line in the log says so.
    """
    detector, crops = small_detector(tmp_path, device=device, frames_per_pass=32), some_crops(8)
    whole = [one.score for one in detector.score(crops)]
    detector.rehearse(crops[:4])
    assert len(detector._recordings) == (device == "cuda")
    full = Full(detector, 4, NO_ROOM)
    with capture_logs() as lines:
        assert [one.score for one in detector.score(crops)] == pytest.approx(whole, abs=1e-5)
        detector.score(crops)
    assert full.tried == [8, 4, 4, 4, 4]
    assert [(line["event"], line["frames"], line["launches"]) for line in lines] == [("passes_halved", 4, "plain")]
    detector.rehearse(crops[:4])
    assert len(detector._recordings) == 0


@pytest.mark.parametrize(("crops", "room", "tried"), [(8, 2, [8, 4]), (1, 0, [1])])
def test_memory_that_halving_does_not_free_is_an_error(tmp_path: Path, crops: int, room: int, tried: list[int]):
    """Halved once, or with a single frame, it gives up in one line."""
    detector = small_detector(tmp_path)
    device = Full(detector, room, NO_ROOM)
    with pytest.raises(OutOfMemory, match=r"allocate 2.00 GiB\.$"):
        detector.score(some_crops(crops))
    assert device.tried == tried


def test_failure_of_the_device_is_an_error(tmp_path: Path):
    """Any other failure is not tried again: this process has lost the device."""
    detector = small_detector(tmp_path)
    device = Full(detector, 0, torch.AcceleratorError("CUDA error: an illegal memory access was encountered"))
    with pytest.raises(DetectorError, match="illegal memory access"):
        detector.score(some_crops(4))
    assert len(device.tried) == 1


@pytest.mark.parametrize("image_size", [[24, 64], [40, 24]])
def test_grid_need_not_be_square(tmp_path: Path, image_size: list[int]):
    """Maps have the grid's own sides, windows fit the shorter one, and a region computes what all windows give."""
    tower = open_tower(*write_model(tmp_path, image_size=image_size))
    text = torch.randn(2, tower.shape.embedding, generator=torch.Generator().manual_seed(4))
    detector = Detector(tower, text, WinclipConfig(), facts=FACTS)
    rows, columns = image_size[0] // 8, image_size[1] // 8
    region = np.zeros((rows, columns), bool)
    region[0, :2] = True
    (whole,), (part,) = detector.score(some_crops(1)), detector.score(some_crops(1), regions=[region])
    assert detector.window_counts == [(rows - k + 1) * (columns - k + 1) for k in (2, 3)]
    assert whole.map.shape == part.map.shape == (rows, columns)
    assert part.map[:2, :3] == pytest.approx(whole.map[:2, :3], abs=1e-6)


def test_scores_differ_between_crops(tmp_path: Path):
    """Scores and maps follow the pixels."""
    scored = small_detector(tmp_path).score(some_crops(4))
    assert len({one.score for one in scored}) == 4
    assert all(one.map.shape == (5, 5) and one.map.std() > 1e-4 for one in scored)


@EVERY_DEVICE
@pytest.mark.parametrize("shots", [0, 2])
def test_region_gives_the_same_map_inside(tmp_path: Path, device: str, shots: int):
    """Where a region and its ring lie, the map is that of all windows; elsewhere it is 0. So in a recorded pass."""
    detector, crops = small_detector(tmp_path, device=device), some_crops(2)
    near = 1e-6 if device == "cpu" else 1e-5  # a GPU's products are other ones for other counts of rows
    detector.enroll(some_crops(shots, seed=9))
    whole = detector.score(crops)
    region = corner(slice(0, 2), slice(3, 5))
    detector.rehearse(crops, regions=[region, None])
    masked = detector.score(crops, regions=[region, None])
    ring = corner(slice(0, 3), slice(2, 5))
    assert masked[0].map[ring] == pytest.approx(whole[0].map[ring], abs=near)
    assert (masked[0].map[~ring] == 0).all()
    assert masked[1].map == pytest.approx(whole[1].map, abs=near)
    assert masked[1].score == pytest.approx(whole[1].score, abs=near)


def test_region_computes_fewer_windows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Windows that no needed patch lies in are never given to the tower."""
    detector, given = small_detector(tmp_path, scales=(2,)), []
    encode = detector.tower.encode
    monkeypatch.setattr(
        detector.tower, "encode", lambda tokens, groups, beat: given.append(groups) or encode(tokens, groups, beat)
    )
    detector.score(some_crops(1), regions=[corner(slice(0, 1), slice(0, 1))])
    detector.score(some_crops(1))
    assert [len(groups[1].rows) for groups in given] == [4, 16]


def test_few_shot_score_takes_its_maximum_inside_the_region(tmp_path: Path):
    """The image score is half s0 and half the largest few-shot value inside the region."""
    detector, crops = small_detector(tmp_path), some_crops(1)
    zero_shot = detector.score(crops)[0]
    detector.enroll(some_crops(2, seed=9))
    few_shot = 2 * detector.score(crops)[0].map - zero_shot.map
    region = np.zeros((5, 5), dtype=bool)
    region.flat[int(few_shot.argmin())] = True
    for mask in (region, ~region):
        score = detector.score(crops, regions=[mask])[0].score
        assert score == pytest.approx((zero_shot.score + few_shot[mask].max()) / 2, abs=1e-5)


def test_reference_itself_is_found_good(tmp_path: Path):
    """A crop that is among the references has no few-shot anomaly."""
    detector, crops = small_detector(tmp_path), some_crops(3)
    zero_shot = detector.score(crops)
    detector.enroll(crops[:2])
    few_shot = detector.score(crops)
    assert few_shot[0].score == pytest.approx(zero_shot[0].score / 2, abs=1e-5)
    assert few_shot[2].score > zero_shot[2].score / 2 + 1e-3


@pytest.mark.parametrize("mode", [Mode.LOCALISE_ON_FAIL, Mode.IMAGE_ONLY])
def test_modes_give_the_scores_of_full(tmp_path: Path, mode: Mode):
    """The cheaper modes give the same scores, and maps only where they promise them."""
    crops = some_crops(5)
    full = small_detector(tmp_path).score(crops)
    threshold = sorted(one.score for one in full)[2]
    found = small_detector(tmp_path, mode=mode).score(crops, localise_from=threshold)
    assert [one.score for one in found] == pytest.approx([one.score for one in full], abs=1e-6)
    for one, reference in zip(found, full, strict=True):
        if mode is Mode.LOCALISE_ON_FAIL and one.score >= threshold:
            assert one.map == pytest.approx(reference.map, abs=1e-6)
        else:
            assert one.map is None


def test_clip_ac_sees_the_image_alone(tmp_path: Path):
    """Without scales the score is that of the whole image, there is no map, and references are refused."""
    detector, crops = small_detector(tmp_path, scales=()), some_crops(2)
    expected = small_detector(tmp_path).score(crops)
    found = detector.score(crops)
    assert [one.score for one in found] == pytest.approx([one.score for one in expected], abs=1e-6)
    assert [one.map for one in found] == [None, None]
    with pytest.raises(DetectorError, match="references need"):
        detector.enroll(crops)


@pytest.mark.parametrize("poison", [np.nan, np.inf])
@pytest.mark.parametrize("precision", [Precision.FP32, Precision.BF16, pytest.param(Precision.INT8, marks=NEEDS_INT8)])
@pytest.mark.parametrize("shots", [0, 1])
def test_scores_that_are_not_finite_are_passed_on(tmp_path: Path, poison: float, precision: Precision, shots: int):
    """A model that breaks gives NaN, never a normal-looking score; 8 bits, which hold no NaN, are no exception."""
    detector = small_detector(tmp_path, precision)
    detector.enroll(some_crops(shots, seed=9))
    detector.tower._position[3] = poison
    scored = detector.score(some_crops(1))[0]
    assert np.isnan(scored.score)
    assert np.isnan(scored.map).any()


@pytest.mark.parametrize("feature", list(PatchFeature))
@pytest.mark.parametrize("kind", list(FewShotMap))
def test_variants_differ(tmp_path: Path, feature: PatchFeature, kind: FewShotMap):
    """Every variant of the few-shot part gives a map of its own."""
    maps = []
    for settings in ({}, {"patch_feature": feature, "few_shot_map": kind}):
        detector = small_detector(tmp_path, **settings)
        detector.enroll(some_crops(2, seed=9))
        maps.append(detector.score(some_crops(1))[0].map)
    same = feature is PatchFeature.LN_POST and kind is FewShotMap.MEAN
    assert np.allclose(*maps, atol=1e-5) is same


@pytest.mark.parametrize("region", [np.zeros((5, 5), bool), np.ones((4, 5), bool), np.ones((5, 5), np.uint8)])
def test_unfit_region_is_refused(tmp_path: Path, region: np.ndarray):
    """A region must be a bool mask of the grid with at least one patch."""
    with pytest.raises(DetectorError, match="a region is"):
        small_detector(tmp_path).score(some_crops(1), regions=[region])


def test_regions_must_be_as_many_as_crops(tmp_path: Path):
    """A region too few is never taken for another crop's."""
    with pytest.raises(DetectorError, match="2 crops came with 1 regions"):
        small_detector(tmp_path).score(some_crops(2), regions=[None])


def test_identity_changes_with_the_references(tmp_path: Path):
    """Thresholds are bound to the references: other pixels, another identity; none, the first one again."""
    detector = small_detector(tmp_path)
    seen = [detector.identity.sha256]
    for crops in (some_crops(2), some_crops(3), some_crops(2, seed=4)):
        detector.enroll(crops)
        seen.append(detector.identity.sha256)
    assert len(set(seen)) == 4
    detector.enroll([])
    assert detector.identity.sha256 == seen[0]


@pytest.mark.parametrize("precision", [Precision.BF16, pytest.param(Precision.INT8, marks=NEEDS_INT8)])
def test_lower_precision_stays_near_fp32(tmp_path: Path, precision: Precision):
    """The same crops score within 0.05 of fp32 on these weights, which are far rougher than real ones."""
    exact = small_detector(tmp_path).score(some_crops(3))
    near = small_detector(tmp_path, precision).score(some_crops(3))
    assert [one.score for one in near] == pytest.approx([one.score for one in exact], abs=0.05)
    assert any(one.score != other.score for one, other in zip(near, exact, strict=True))


def test_detector_keeps_no_graph(tmp_path: Path):
    """Scoring leaves autograd alone."""
    detector: Detector = small_detector(tmp_path)
    detector.enroll(some_crops(1))
    assert torch.is_grad_enabled()
