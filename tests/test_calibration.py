"""Thresholds from scores: what is promised, what is refused, what is written."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from tests_inspection import BrightDetector, bright_recipe

from inspectd.calibration import Sample, auroc, calibrate, needed, threshold_for, thresholds, write_calibration
from inspectd.errors import CalibrationError, ConfigError
from inspectd.inspection import Inspector
from inspectd.recipe import load_recipe
from inspectd.records import Decision, FailOn


def samples(scores, peaks=None) -> list[Sample]:
    peaks = scores if peaks is None else peaks
    return [
        Sample(score=score, region_peak=peak, pixels=np.full(10, peak, np.float32))
        for score, peak in zip(scores, peaks, strict=True)
    ]


def grey_parts(*levels: int) -> list[tuple[np.ndarray]]:
    """One frame a part."""
    return [(frame,) for frame in grey_frames(*levels)]


def grey_frames(*levels: int) -> list[np.ndarray]:
    return [np.full((48, 64, 3), level, np.uint8) for level in levels]


@pytest.mark.parametrize("rate", [0.02, 0.05, 0.2])
@pytest.mark.parametrize("count", [60, 99])
def test_a_new_good_part_fails_no_more_often_than_promised(rate: float, count: int):
    """Over many draws of a calibration set the mean false reject rate of fresh parts keeps below the target."""
    rng = np.random.default_rng(3)
    rejected = []
    for _ in range(400):
        threshold = threshold_for(rng.beta(2, 5, count).tolist(), [], rate)
        rejected.append((rng.beta(2, 5, 2000) >= threshold).mean())
    assert np.mean(rejected) <= rate + 0.003
    assert np.mean(rejected) >= rate / 2 - 1 / (count + 1)


@pytest.mark.parametrize(("rate", "least"), [(0.5, 1), (0.1, 9), (0.05, 19), (0.01, 99), (0.001, 999)])
def test_too_few_good_parts_are_refused_with_the_number_needed(rate: float, least: int):
    """The number named is the number that works, and one less does not."""
    assert needed(rate) == least
    threshold_for([0.1] * least, [], rate)
    with pytest.raises(CalibrationError, match=f"at least {least} are needed"):
        threshold_for([0.1] * (least - 1), [], rate)


def test_every_good_score_below_the_threshold_passes_and_none_on_the_edge():
    """The k-th smallest itself passes, with a margin; what lies above may fail."""
    good = [index / 100 for index in range(40)]
    threshold = threshold_for(good, [], 0.05)
    assert good[38] < threshold < good[39]  # k = 41 - 2 = 39


def test_bad_parts_that_are_clear_of_the_good_put_the_threshold_between():
    """The gap is shared; both sides keep their distance."""
    threshold = threshold_for([0.1] * 18 + [0.2], [0.6, 0.9], 0.05)
    assert threshold == pytest.approx(0.4, abs=1e-3)


def test_overlapping_bad_parts_leave_the_promise_and_are_reported():
    """The false reject rate is kept; what escapes is told, with its uncertainty."""
    found = thresholds(samples([0.1] * 15 + [0.3] * 5), samples([0.2, 0.5, 0.6, 0.7]), 0.05, FailOn.SCORE)
    assert found.threshold == pytest.approx(0.3, abs=1e-3)
    assert (found.false_reject_rate, found.escape_rate) == (0.0, 0.25)
    assert 0.25 < found.escape_bound < 0.8
    assert found.auroc == pytest.approx((15 + 0 + 3 * 20) / 80)


def test_bad_parts_that_all_escape_are_contradictory():
    """A detector that cannot tell them apart gets no threshold."""
    with pytest.raises(CalibrationError, match="cannot tell them apart"):
        thresholds(samples([0.5] * 20), samples([0.4, 0.3]), 0.05, FailOn.SCORE)


def test_either_shares_the_rate_between_score_and_regions():
    """Together they reject no more than the target: each side needs the samples of half the rate."""
    with pytest.raises(CalibrationError, match="at least 39 are needed"):
        thresholds(samples([0.1] * 30), [], 0.05, FailOn.EITHER)
    found = thresholds(samples([0.1] * 39, [0.2] * 39), [], 0.05, FailOn.EITHER)
    assert (found.threshold, found.pixel_threshold) == (pytest.approx(0.1, abs=1e-3), pytest.approx(0.2, abs=1e-3))


def test_regions_decide_by_the_pixel_threshold():
    """With `fail_on = "regions"` the promise is about regions, and escapes are counted by them."""
    good, bad = samples([0.9] * 20, [0.2] * 20), samples([0.1, 0.1], [0.8, 0.1])
    found = thresholds(good, bad, 0.05, FailOn.REGIONS)
    assert found.pixel_threshold == pytest.approx(0.2, abs=1e-3)
    assert (found.false_reject_rate, found.escape_rate) == (0.0, 0.5)


@pytest.mark.parametrize("rate", [0, -0.1, 0.6, float("nan")])
def test_a_rate_that_means_nothing_is_refused(rate: float):
    """Zero cannot be promised, more than half is a mistake."""
    with pytest.raises(CalibrationError, match=r"expected above 0, at most 0\.5"):
        thresholds(samples([0.1] * 50), [], rate, FailOn.SCORE)


def test_bad_parts_beyond_the_scale_leave_the_threshold_on_it():
    """With few_shot_map = "sum" scores have no end at 1: the middle of the gap may lie where no threshold can."""
    assert threshold_for([0.1] * 20, [2.4], 0.05) == 1.0
    with pytest.raises(CalibrationError, match=r"score up to 1\.2000"):
        threshold_for([1.2] * 20, [2.4], 0.05)


def test_good_parts_at_the_top_of_the_scale_are_refused():
    """No threshold up to 1 lies above a score of 1."""
    with pytest.raises(CalibrationError, match=r"score up to 1\.0000"):
        threshold_for([1.0] * 20, [], 0.05)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_scores_that_are_not_finite_are_refused(tmp_path: Path, value: float):
    """The sample is named; nothing is measured from it."""

    class Broken(BrightDetector):
        def _one(self, crop, region):
            fine = super()._one(crop, region)
            return type(fine)(value if crop.max() > 100 else fine.score, fine.map)

    inspector = Inspector(bright_recipe(tmp_path, threshold=None), Broken())
    with pytest.raises(CalibrationError, match="bad sample 2"):
        calibrate(inspector, grey_parts(*range(30)), grey_parts(90, 200), 0.05)
    with pytest.raises(CalibrationError, match="not finite"):
        threshold_for([0.1] * 30, [value], 0.1)


def test_auroc_is_the_share_of_pairs_in_the_right_order():
    """Counted pair by pair, ties by half."""
    rng = np.random.default_rng(5)
    good, bad = rng.integers(0, 12, 50) / 12, rng.integers(4, 16, 30) / 12
    pairs = [(b > g) + (b == g) / 2 for g in good for b in bad]
    assert auroc(good.tolist(), bad.tolist()) == pytest.approx(np.mean(pairs))


@pytest.mark.parametrize("fail_on", FailOn)
def test_calibrated_thresholds_pass_the_good_and_fail_the_bad(tmp_path: Path, fail_on: FailOn):
    """From frames to a file beside the recipe, and from that file to verdicts."""
    text = f'[decision]\nfail_on = "{fail_on}"\n[filters]\nmin_area_px = 9'
    path = tmp_path / "part.toml"
    path.write_text(f'object = "part"\n{text}\n')
    recipe = load_recipe(path, require_thresholds=False)
    counted: list[int] = []
    good, bad = grey_parts(*range(20, 62)), grey_parts(120, 160, 200)
    calibration, found = calibrate(Inspector(recipe, BrightDetector()), good, bad, 0.05, progress=counted.append)
    assert (found.good, found.bad, found.false_reject_rate, found.escape_rate, counted[-1]) == (42, 3, 0.0, 0.0, 45)
    write_calibration(recipe, calibration)
    inspector = Inspector(load_recipe(path), BrightDetector())
    inspector.recipe.require_model(inspector.identity.sha256)
    assert {found.decision for found in inspector.inspect([frame for (frame,) in good])} == {Decision.PASS}
    assert {found.decision for found in inspector.inspect([frame for (frame,) in bad])} == {Decision.FAIL}


def test_the_pixel_threshold_leaves_good_parts_nearly_without_regions(tmp_path: Path):
    """Where the score decides, half a percent of good pixels may reach it."""
    rng = np.random.default_rng(4)
    frames = [rng.integers(0, 100, (48, 64, 3), dtype=np.uint8) for _ in range(30)]
    inspector = Inspector(bright_recipe(tmp_path, threshold=None), BrightDetector((48, 64)))
    calibration, _ = calibrate(inspector, [(frame,) for frame in frames], [], 0.05)
    share = np.mean(
        [measured.anomaly_map() >= calibration.pixel_threshold for measured in inspector.measure_frames(frames)]
    )
    assert 0.003 < share < 0.006


def test_a_detector_without_maps_calibrates_its_score_alone(tmp_path: Path):
    """No pixel ever reaches a pixel threshold of 1; regions cannot be promised at all."""
    inspector = Inspector(bright_recipe(tmp_path, threshold=None), BrightDetector(maps=False))
    calibration, _ = calibrate(inspector, grey_parts(*range(20)), [], 0.05)
    assert calibration.pixel_threshold == 1.0
    blind = [Sample(score=0.1, region_peak=None, pixels=np.empty(0, np.float32))] * 20
    with pytest.raises(CalibrationError, match="needs anomaly maps"):
        thresholds(blind, [], 0.05, FailOn.REGIONS)


def test_the_file_is_written_whole_with_the_model_it_belongs_to(tmp_path: Path):
    """Beside the recipe, no draft left, and read back by `load_recipe`."""
    recipe = bright_recipe(tmp_path, threshold=None)
    calibration, found = calibrate(Inspector(recipe, BrightDetector()), grey_parts(*range(20)), [], 0.05)
    path = write_calibration(recipe, calibration)
    assert sorted(each.name for each in tmp_path.iterdir()) == ["part.calibration.json", "part.toml"]
    assert json.loads(path.read_text())["model_sha256"] == BrightDetector.identity.sha256
    assert load_recipe(recipe.path).threshold == found.threshold


def test_a_recipe_with_a_threshold_of_its_own_is_not_overruled(tmp_path: Path):
    """The file would make the recipe unreadable; the key to delete is named."""
    recipe = bright_recipe(tmp_path, threshold=0.5)
    calibration, _ = calibrate(Inspector(recipe, BrightDetector()), grey_parts(*range(20)), [], 0.05)
    with pytest.raises(ConfigError, match=r"decision\.threshold: stands here"):
        write_calibration(recipe, calibration)


def test_a_folder_that_is_gone_is_one_line(tmp_path: Path):
    """The file that could not be written is named."""
    recipe = bright_recipe(tmp_path, threshold=None)
    calibration, _ = calibrate(Inspector(recipe, BrightDetector()), grey_parts(*range(20)), [], 0.05)
    gone = recipe.model_copy(update={"path": tmp_path / "gone" / "part.toml"})
    with pytest.raises(ConfigError, match=r"part\.calibration\.json: No such file"):
        write_calibration(gone, calibration)
