"""A picture that nobody could judge is told by its light and its sharpness, and by nothing else."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from tests_inspection import BrightDetector, bright_recipe

from inspectd.calibration import calibrate, write_calibration
from inspectd.errors import CalibrationError, ConfigError
from inspectd.inspection import Inspector
from inspectd.quality import Look, fault, learn, look
from inspectd.recipe import QualityLimits, load_recipe
from inspectd.records import Decision, PixelsU8, Reason

REGION = "[region]\npolygon_px = [[20, 10], [140, 10], [140, 90], [20, 90]]\n"
WINDOW = np.s_[10:90, 20:140]


def textured(level: int = 110, seed: int = 0, size_hw_px: tuple[int, int] = (100, 160)) -> PixelsU8:
    """A sharp picture of that mean level."""
    return np.random.default_rng(seed).integers(level - 30, level + 31, (*size_hw_px, 3), dtype=np.uint8)


POOR = [
    (np.zeros((96, 160, 3), np.uint8), QualityLimits(min_brightness=10), "too dark"),
    (np.full((96, 160, 3), 250, np.uint8), QualityLimits(max_brightness=240), "too bright"),
    (np.full((96, 160, 3), 255, np.uint8), QualityLimits(max_clipped_share=0.2), "overexposed"),
    (cv2.GaussianBlur(textured(), (0, 0), 3), QualityLimits(min_sharpness=50), "blurred"),
]


@pytest.mark.parametrize(("pixels", "limits", "word"), POOR, ids=[word for _, _, word in POOR])
def test_poor_picture_is_told_for_what_it_is(pixels: PixelsU8, limits: QualityLimits, word: str) -> None:
    """Each limit refuses its own fault and lets a usable picture by."""
    detail = fault(look(pixels), limits)
    assert detail is not None
    assert detail.startswith(word)
    assert fault(look(textured()), limits) is None


def test_no_limits_refuse_nothing() -> None:
    """Limits are off unless somebody sets them."""
    assert fault(look(np.zeros((8, 8, 3), np.uint8)), QualityLimits()) is None


@pytest.mark.parametrize("size_hw_px", [(4, 40), (16, 16), (129, 200), (1080, 1920)])
def test_look_is_that_of_the_whole_picture(size_hw_px: tuple[int, int]) -> None:
    """Bands of rows say the same as all pixels, in pictures of any size."""
    pixels = textured(size_hw_px=size_hw_px)
    grey = cv2.cvtColor(pixels, cv2.COLOR_BGR2GRAY)
    seen = look(pixels)
    assert seen.brightness == pytest.approx(grey.mean(), rel=0.02)
    assert seen.sharpness == pytest.approx(cv2.Laplacian(grey, cv2.CV_16S).var(), rel=0.25)


def test_only_the_region_is_looked_at() -> None:
    """What lies outside of the polygon, as bright and sharp as it may be, does not count."""
    pixels = textured(200)
    roi = np.zeros((100, 160), np.bool_)
    roi[WINDOW] = True
    pixels[WINDOW] = 40
    seen = look(pixels, roi)
    assert (seen.brightness, seen.clipped_share) == (40.0, 0.0)
    assert seen.sharpness < look(pixels).sharpness / 2


def test_learnt_limits_keep_every_picture_they_were_learnt_from() -> None:
    """With room to spare: light of two thirds passes, of a fifth does not; so for blur."""
    pictures = [textured(level, seed) for seed, level in enumerate(range(90, 130, 5))]
    limits = learn([look(each) for each in pictures])
    assert all(fault(look(each), limits) is None for each in pictures)
    assert fault(look((pictures[0] * 0.8).astype(np.uint8)), limits) is None
    for poor in (pictures[0] // 5, pictures[0] // 2 + 127, cv2.GaussianBlur(pictures[0], (0, 0), 1.5)):
        assert fault(look(poor), limits) is not None


def test_limits_that_could_never_be_reached_are_not_learnt() -> None:
    """Bright pictures leave no room above them."""
    limits = learn([Look(brightness=200, clipped_share=0.95, sharpness=10)])
    assert set(limits.stated) == {"min_brightness", "min_sharpness"}


def test_poor_picture_is_never_scored(tmp_path: Path) -> None:
    """In a batch with sound ones it alone is `error/frame_quality`, with its reason in words, and no model sees it."""
    detector = BrightDetector()
    inspector = Inspector(bright_recipe(tmp_path, "[quality]\nmin_brightness = 20\n"), detector)
    found = inspector.inspect([textured(60), np.zeros((100, 160, 3), np.uint8), textured(61)])
    assert [each.reason for each in found] == [Reason.OK, Reason.FRAME_QUALITY, Reason.OK]
    assert (found[1].decision, found[1].score) == (Decision.ERROR, None)
    assert found[1].detail == "too dark: mean 0.0, at least 20"
    assert len(detector.crops) == 2


def test_limits_are_learnt_with_the_thresholds(tmp_path: Path) -> None:
    """From good parts to a file beside the recipe, and from that file to `error/frame_quality`; stated limits stay."""
    recipe = bright_recipe(tmp_path, REGION + "[quality]\nlearn = true\nmin_sharpness = 1\n", threshold=None)
    good = [textured(100, seed) for seed in range(20)]
    calibration, _ = calibrate(Inspector(recipe, BrightDetector()), [(each,) for each in good], [], 0.05)
    write_calibration(recipe, calibration)
    inspector = Inspector(load_recipe(recipe.path), BrightDetector())
    assert inspector.recipe.quality_limits.min_sharpness == 1
    assert {each.decision for each in inspector.inspect(good)} == {Decision.PASS}
    assert [each.reason for each in inspector.inspect([good[0] // 5])] == [Reason.FRAME_QUALITY]


def test_limits_that_nobody_measured_are_a_configuration_error(tmp_path: Path) -> None:
    """A recipe that wants learnt limits is not run without them."""
    with pytest.raises(ConfigError, match=r"quality\.learn: nothing is measured where decision\.threshold is stated"):
        bright_recipe(tmp_path, "[quality]\nlearn = true")
    recipe = bright_recipe(tmp_path, threshold=None)
    calibration, _ = calibrate(Inspector(recipe, BrightDetector()), [(textured(60),)] * 20, [], 0.05)
    write_calibration(recipe, calibration)
    recipe.path.write_text(recipe.path.read_text() + "[quality]\nlearn = true\n")
    with pytest.raises(ConfigError, match=r"quality\.learn: part\.calibration\.json holds no limits"):
        load_recipe(recipe.path)


def test_nothing_is_measured_from_a_poor_picture(tmp_path: Path) -> None:
    """A good part beyond the stated limits would never be scored live; it is named."""
    recipe = bright_recipe(tmp_path, "[quality]\nmin_brightness = 20\n", threshold=None)
    parts = [(textured(60),), (np.zeros((100, 160, 3), np.uint8),)]
    with pytest.raises(CalibrationError, match="good sample 2: too dark"):
        calibrate(Inspector(recipe, BrightDetector()), parts * 20, [], 0.05)


@pytest.mark.parametrize("text", ["min_brightness = 300", "max_clipped_share = 2", "min_sharpness = -1", "blur = 1"])
def test_limit_out_of_range_is_named(tmp_path: Path, text: str) -> None:
    """One line with file and key."""
    with pytest.raises(ConfigError, match=rf"part\.toml: quality\.{text.split(maxsplit=1)[0]}: "):
        bright_recipe(tmp_path, f"[quality]\n{text}")
