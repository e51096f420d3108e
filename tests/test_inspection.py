"""The one shared path: pixels and a recipe in, inspections out."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from tests_inspection import GOLDEN, BrightDetector, Brightness, bright_recipe, dark_frame

from inspectd.errors import ConfigError, SourceError
from inspectd.inspection import Inspector, Moment, inspection_error
from inspectd.recipe import load_recipe
from inspectd.records import Decision, FailOn, Reason
from inspectd.voting import decide


class Saying(BrightDetector):
    """A detector that says the same of every crop; for what no real picture brings about."""

    def __init__(self, *said: Brightness) -> None:
        super().__init__()
        self.said = list(said)

    def score(self, crops_rgb, **_asked):
        return [self.said[index % len(self.said)] for index in range(len(crops_rgb))]


def golden_detector(recipe):
    """The real WinCLIP with the tiny golden weights."""
    from inspectd.detect.build import build_detector

    return build_detector(recipe, weights_dir=recipe.path.parent, device="cpu", precision="fp32")


def golden_recipe(folder: Path, text: str = "", *, name: str = "golden"):
    """A recipe for the tiny golden model; skips where it is not."""
    weights = GOLDEN / "tiny-winclip-240.safetensors"
    if not weights.exists():
        pytest.skip(f"{weights} is absent")
    model = f'[model]\nbackbone = "tiny"\nweights = "{weights}"\nconfig = "{weights.with_suffix(".json")}"\n'
    path = folder / f"{name}.toml"
    path.write_text(f'object = "part"\n{model}{text}\n[decision]\nthreshold = 0.4\npixel_threshold = 0.4\n')
    return load_recipe(path)


def noise_frames(count: int, width: int = 160, height: int = 120) -> list[np.ndarray]:
    """Frames with structure at several scales, all different."""
    rng = np.random.default_rng(7)
    small = rng.integers(0, 255, (count, 12, 16, 3), dtype=np.uint8)
    return [cv2.resize(frame, (width, height), interpolation=cv2.INTER_CUBIC) for frame in small]


@pytest.mark.parametrize(
    ("score", "regions", "fail_on", "decision"),
    [
        (0.49, 3, FailOn.SCORE, Decision.PASS),
        (0.50, 0, FailOn.SCORE, Decision.FAIL),
        (0.99, 0, FailOn.REGIONS, Decision.PASS),
        (0.01, 1, FailOn.REGIONS, Decision.FAIL),
        (0.49, 0, FailOn.EITHER, Decision.PASS),
        (0.50, 0, FailOn.EITHER, Decision.FAIL),
        (0.01, 1, FailOn.EITHER, Decision.FAIL),
    ],
)
def test_fail_on_says_what_makes_a_part_bad(score, regions, fail_on, decision):
    """Score, regions or either; the threshold itself fails."""
    assert decide(score, 0.5, regions, fail_on)[0] is decision


@pytest.mark.parametrize("fail_on", FailOn)
@pytest.mark.parametrize("score", [np.nan, np.inf, -np.inf])
def test_a_score_that_is_not_finite_is_an_error_whatever_fails_a_part(score, fail_on):
    """Also where the score does not decide, and also where it is minus infinity."""
    assert decide(score, 0.5, 0, fail_on) == (Decision.ERROR, Reason.NOT_FINITE)
    assert decide(0.1, score, 0, fail_on) == (Decision.ERROR, Reason.NOT_FINITE)


@pytest.mark.parametrize("score", [np.nan, np.inf, -np.inf])
def test_one_tile_that_is_not_finite_spoils_the_frame(tmp_path: Path, score: float):
    """The largest of the tiles' scores would hide a NaN or a minus infinity; the frame is an error all the same."""
    recipe = bright_recipe(tmp_path, "[tiling]\ntile_px = 40")
    fine, broken = Brightness(0.1, np.zeros((15, 15), np.float32)), Brightness(score, np.zeros((15, 15), np.float32))
    (found,) = Inspector(recipe, Saying(fine, broken)).inspect([dark_frame(160, 40)])
    assert (found.decision, found.reason, found.score, found.regions) == (Decision.ERROR, Reason.NOT_FINITE, None, ())


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_one_map_pixel_that_is_not_finite_is_an_error(tmp_path: Path, value: float):
    """A finite score below the threshold does not pass with a broken map."""
    grid = np.zeros((15, 15), np.float32)
    grid[3, 14] = value
    (found,) = Inspector(bright_recipe(tmp_path), Saying(Brightness(0.1, grid))).inspect([dark_frame()])
    assert (found.decision, found.reason, found.mask) == (Decision.ERROR, Reason.NOT_FINITE, None)


@pytest.mark.parametrize("fail_on", ["regions", "either"])
def test_no_map_is_an_error_where_regions_decide(tmp_path: Path, fail_on: str):
    """Without a map "no region" would be a silent pass."""
    decision = f'[decision]\nthreshold = 0.5\npixel_threshold = 0.5\nfail_on = "{fail_on}"'
    (found,) = Inspector(bright_recipe(tmp_path, decision), BrightDetector(maps=False)).inspect([dark_frame()])
    assert found.decision is Decision.ERROR


def test_a_bright_rectangle_is_found_where_it_is(tmp_path: Path):
    """With a grid as fine as the box, box, mask and area are the rectangle's own, in full-frame pixels."""
    recipe = bright_recipe(tmp_path, "[region]\npolygon_px = [[20, 10], [60, 10], [60, 40], [20, 40]]")
    frame = dark_frame(80, 60)
    frame[15:22, 30:39] = 200
    frame[0:5, 0:5] = 255  # outside of the region: nobody's business
    (found,) = Inspector(recipe, BrightDetector((30, 40))).inspect([frame])
    (region,) = found.regions
    assert (found.decision, region.bbox_xywh_px, region.area_px) == (Decision.FAIL, (30, 15, 9, 7), 63)
    assert region.centroid_xy_px == (34.0, 18.0)
    assert region.score_mean == pytest.approx(200 / 255)
    assert (found.mask.origin_xy_px, found.mask.labels.shape, found.mask.labels.min()) == ((30, 15), (7, 9), 1)


def test_a_polygon_cuts_a_region_along_its_edge(tmp_path: Path):
    """Half of a bright square lies outside of a triangle: only the pixels inside are counted."""
    recipe = bright_recipe(tmp_path, "[region]\npolygon_px = [[0, 0], [40, 0], [0, 40]]")
    frame = dark_frame(64, 48)
    frame[10:30, 10:30] = 255
    (found,) = Inspector(recipe, BrightDetector((40, 40))).inspect([frame])
    centres = np.arange(10, 30) + 0.5
    assert found.regions[0].area_px == (centres[:, None] + centres < 40).sum()


def test_what_lies_outside_of_the_polygon_is_kept_or_filled(tmp_path: Path):
    """Filled, it is one grey whatever happens there; the polygon's own pixels stay."""
    frame = noise_frames(1)[0]
    polygon = "[region]\npolygon_px = [[0, 0], [40, 0], [0, 40]]"
    kept, filled = (
        Inspector(bright_recipe(tmp_path, polygon + more), BrightDetector((40, 40))).crop(frame.copy())
        for more in ("", '\noutside = "filled"')
    )
    inside = kept.view.roi
    assert np.array_equal(kept.images_rgb[0], frame[:40, :40, ::-1])
    assert np.array_equal(filled.images_rgb[0][inside], kept.images_rgb[0][inside])
    assert (filled.images_rgb[0][~inside] == (123, 117, 104)).all()


def test_a_region_across_tiles_is_one_region(tmp_path: Path):
    """A bar over three tiles comes out whole: stitched maps are cut nowhere, to the pixel."""
    recipe = bright_recipe(
        tmp_path,
        "[region]\npolygon_px = [[10, 4], [130, 4], [130, 44], [10, 44]]\n[tiling]\ntile_px = 40\noverlap = 0.25",
    )
    frame = dark_frame(140, 60)
    frame[20:25, 25:115] = 220
    (found,) = Inspector(recipe, BrightDetector((40, 40))).inspect([frame])
    assert [region.bbox_xywh_px for region in found.regions] == [(25, 20, 90, 5)]
    assert found.regions[0].area_px == 450
    assert found.score == pytest.approx(220 / 255, abs=1e-6)


def test_resizing_keeps_a_region_within_a_patch(tmp_path: Path):
    """A coarse grid blurs a region by less than one patch at each side."""
    frame = dark_frame(600, 300)
    frame[100:200, 200:400] = 255
    (found,) = Inspector(bright_recipe(tmp_path), BrightDetector()).inspect([frame])
    x, y, w, h = found.regions[0].bbox_xywh_px
    assert np.abs(np.array([x, y, x + w, y + h]) - (200, 100, 400, 200)).max() <= 40


def test_the_detector_sees_red_first_and_only_the_box(tmp_path: Path):
    """Cameras give blue first, models want red first; the crop is a copy, so the slot can be reused."""
    detector = BrightDetector()
    inspector = Inspector(
        bright_recipe(tmp_path, "[region]\npolygon_px = [[8, 4], [40, 4], [40, 44], [8, 44]]"), detector
    )
    frame = dark_frame()
    frame[4, 8] = (1, 2, 3)
    crops = inspector.crop(frame)
    frame[:] = 255
    inspector.inspect_crops([crops])
    assert detector.crops[0].shape == (40, 32, 3)
    assert detector.crops[0][0, 0].tolist() == [3, 2, 1]
    assert detector.crops[0].max() == 3


def test_results_come_in_the_order_of_the_frames(tmp_path: Path):
    """Mixed sizes, tiles and all: each frame gets its own score."""
    inspector = Inspector(bright_recipe(tmp_path, "[tiling]\ntile_px = 40"), BrightDetector())
    frames = [np.full((40 + 20 * index, 100, 3), 20 * index, np.uint8) for index in range(6)]
    assert [found.score for found in inspector.inspect(frames)] == pytest.approx([20 * i / 255 for i in range(6)])
    assert inspector.inspect([]) == []


def test_maps_are_kept_when_asked_for_and_change_nothing_else(tmp_path: Path):
    """The map covers the box at its place, also for a frame without a region."""
    recipe = bright_recipe(tmp_path, "[region]\npolygon_px = [[8, 4], [40, 4], [40, 44], [8, 44]]")
    (plain,) = Inspector(recipe, BrightDetector()).inspect([dark_frame()])
    (kept,) = Inspector(recipe, BrightDetector(), keep_maps=True).inspect([dark_frame()])
    assert plain.anomaly_map is None
    assert (kept.anomaly_map.shape, kept.map_origin_xy_px) == ((40, 32), (8, 4))
    assert (plain.decision, plain.score) == (kept.decision, kept.score)


def test_times_are_measured(tmp_path: Path):
    """Each step has its own time, none of them negative."""
    (found,) = Inspector(bright_recipe(tmp_path), BrightDetector()).inspect([np.full((480, 640, 3), 255, np.uint8)])
    assert min(found.crop_ms, found.infer_ms, found.post_ms) > 0


def test_a_frame_that_does_not_fit_is_refused(tmp_path: Path):
    """A frame smaller than the region or of another kind of array is named, never looked at."""
    inspector = Inspector(
        bright_recipe(tmp_path, "[region]\npolygon_px = [[8, 4], [40, 4], [40, 44], [8, 44]]"), BrightDetector()
    )
    assert inspector.frame_size_error((64, 48)) is None
    assert "but a frame is 32x32" in inspector.frame_size_error((32, 32))
    with pytest.raises(SourceError, match=r"region\.polygon_px reaches x = 40, y = 44"):
        inspector.inspect([dark_frame(32, 32)])
    with pytest.raises(SourceError, match="expected"):
        inspector.crop(np.zeros((48, 64), np.uint8))


def test_references_are_cropped_as_frames_are(tmp_path: Path):
    """WinCLIP+ compares like with like: the same box, the same tiles."""
    (tmp_path / "good").mkdir()
    cv2.imwrite(str(tmp_path / "good" / "a.png"), dark_frame(100, 60))
    detector = BrightDetector()
    text = '[references]\nfolder = "good"\n[region]\npolygon_px = [[10, 10], [90, 10], [90, 50], [10, 50]]\n'
    Inspector(bright_recipe(tmp_path, text + "[tiling]\ntile_px = 40"), detector)
    assert [crop.shape for crop in detector.references] == [(40, 40, 3)] * 3


@pytest.mark.parametrize("content", [b"", b"no image", None])
def test_a_reference_that_cannot_be_used_is_a_configuration_error(tmp_path: Path, content: bytes | None):
    """Empty, no image, or too small for the region: one line names the file."""
    (tmp_path / "good").mkdir()
    path = tmp_path / "good" / "a.png"
    path.write_bytes(content if content is not None else cv2.imencode(".png", dark_frame(20, 20))[1].tobytes())
    text = '[references]\nfolder = "good"\n[region]\npolygon_px = [[10, 10], [90, 10], [90, 50], [10, 50]]'
    with pytest.raises(ConfigError, match=r"a\.png"):
        Inspector(bright_recipe(tmp_path, text), BrightDetector())


@pytest.mark.parametrize(("combine", "score"), [("stitched", 0.8), ("averaged", 0.5)])
def test_tiles_are_scored_by_the_worst_or_alike(tmp_path: Path, combine: str, score: float):
    """Stitched tiles answer with the worst one's score, averaged ones with their mean."""
    recipe = bright_recipe(tmp_path, f'[tiling]\ntile_px = "short_side"\noverlap = 0\ncombine = "{combine}"')
    frame = np.full((40, 80, 3), 51, np.uint8)
    frame[:, 40:] = 204
    (measured,) = Inspector(recipe, BrightDetector()).measure_frames([frame])
    assert measured.score == pytest.approx(score)


class NamingDetector(BrightDetector):
    """Finds the left half of every crop nearest to the first kind, the right half to the second."""

    def _one(self, crop, region):
        kinds = np.zeros((2, *self.grid_hw), np.float32)
        kinds[0, :, : self.grid_hw[1] // 2] = kinds[1, :, self.grid_hw[1] // 2 :] = 1.0
        return replace(super()._one(crop, region), defects=kinds)


def test_regions_say_which_kind_of_defect_they_are_nearest_to(tmp_path: Path):
    """The name is the recipe's, largest region first; decision and score are those of a recipe without kinds."""
    text = '[prompts.defects]\nscratch = ["scratched {}"]\ndent = ["dented {}"]'
    frame = dark_frame(64, 48)
    frame[10:20, 4:12] = frame[10:40, 50:60] = 255
    (named,) = Inspector(bright_recipe(tmp_path, text), NamingDetector((48, 64))).inspect([frame])
    (plain,) = Inspector(bright_recipe(tmp_path), NamingDetector((48, 64))).inspect([frame])
    assert [region.defect for region in named.regions] == ["dent", "scratch"]
    assert [region.defect for region in plain.regions] == [None, None]
    assert [replace(region, defect=None) for region in named.regions] == list(plain.regions)
    assert (named.decision, named.score) == (plain.decision, plain.score)


class MemoryDetector(BrightDetector):
    """Gives numbered memories and notes which ones come back with the frames."""

    def __init__(self):
        super().__init__()
        self.given, self.handed = 0, []

    def memory(self):
        self.given += 1
        return self.given

    def score(self, crops_rgb, *, memories=None, **more):
        self.handed += list(memories or [])
        return super().score(crops_rgb, **more)


def test_what_is_kept_of_a_camera_is_dropped_after_a_gap(tmp_path: Path):
    """A new memory after a gap, a new capture or another size; the same for the next frame and for more of one part."""
    detector = MemoryDetector()
    inspector = Inspector(bright_recipe(tmp_path, "[detector]\nreuse = true"), detector)
    frames = [("a", 1, 1), ("b", 1, 1), ("a", 1, 2), ("a", 1, 2), ("a", 1, 4), ("a", 2, 5), ("a", 2, 4), ("b", 1, 2)]
    moments = [Moment(camera=camera, generation=generation, seq=seq) for camera, generation, seq in frames]
    inspector.inspect_crops([inspector.crop(dark_frame(), moment) for moment in moments])
    assert detector.handed == [1, 2, 1, 1, 3, 4, 5, 2]
    inspector.inspect_crops([inspector.crop(dark_frame(80, 60), Moment(camera="b", generation=1, seq=3))])
    inspector.inspect([dark_frame()])
    assert detector.handed[8:] == [6, None]


def test_nothing_is_kept_unless_the_recipe_says_so(tmp_path: Path):
    """Without `reuse` no frame comes with a memory."""
    detector = MemoryDetector()
    inspector = Inspector(bright_recipe(tmp_path), detector)
    inspector.inspect_crops([inspector.crop(dark_frame(), Moment(camera="a", generation=1, seq=1))])
    assert (detector.given, detector.handed) == (0, [None])


def test_scores_need_no_threshold_but_verdicts_do(tmp_path: Path):
    """Calibration measures with a recipe that has none yet; inspecting with it is a configuration error."""
    inspector = Inspector(bright_recipe(tmp_path, threshold=None), BrightDetector())
    (measured,) = inspector.measure_frames([np.full((48, 64, 3), 51, np.uint8)])
    assert measured.score == pytest.approx(0.2)
    with pytest.raises(ConfigError, match="threshold: missing"):
        inspector.inspect([dark_frame()])


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[region]\npolygon_px = [[8, 4], [150, 20], [120, 110], [20, 90]]\n[tiling]\ntile_px = 120",
    ],
)
def test_any_batch_size_gives_the_same_inspections(tmp_path: Path, text: str):
    """WinCLIP at batch 1, 3 and 8: the same decisions, scores within 1e-5, regions within a pixel's rounding."""
    recipe = golden_recipe(tmp_path, text)
    inspector, frames = Inspector(recipe, golden_detector(recipe)), noise_frames(8)
    runs = [
        [found for start in range(0, 8, size) for found in inspector.inspect(frames[start : start + size])]
        for size in (1, 3, 8)
    ]
    for others in zip(*runs, strict=True):
        assert len({found.decision for found in others}) == 1
        assert np.ptp([found.score for found in others]) < 1e-5
        assert np.ptp([sum(region.area_px for region in found.regions) for found in others]) <= 20


def test_windows_left_out_beside_the_polygon_change_nothing_inside(tmp_path: Path):
    """The map inside the polygon is the one of a detector that computes every window."""
    triangle = golden_recipe(tmp_path, "[region]\npolygon_px = [[0, 0], [160, 0], [160, 120]]", name="triangle")
    whole = golden_recipe(tmp_path, name="whole")
    frames = noise_frames(2)
    some = Inspector(triangle, golden_detector(triangle)).measure_frames(frames)
    all_of_them = Inspector(whole, golden_detector(whole)).measure_frames(frames)
    for part, full in zip(some, all_of_them, strict=True):
        inside, left_out = part.roi, part.anomaly_map() == 0
        assert part.score == pytest.approx(full.score, abs=1e-5)
        assert np.allclose(part.anomaly_map()[inside], full.anomaly_map()[inside], atol=2e-5)
        assert left_out.mean() > 0.2
        assert full.anomaly_map().min() > 0


@pytest.mark.parametrize("text", ["", "[tiling]\ntile_px = 120"])
def test_localising_on_fail_changes_no_decision_and_no_score(tmp_path: Path, text: str):
    """Only frames that fail get regions; score and decision of every frame are those of the full model."""
    full, frames = golden_recipe(tmp_path, text, name="full"), noise_frames(4)
    scores = [found.score for found in Inspector(full, golden_detector(full)).inspect(frames)]
    middle = float(np.median(scores))
    rule = full.decision.model_copy(update={"threshold": middle, "pixel_threshold": 0.2})
    lazy = full.detector.model_copy(update={"mode": "localise_on_fail"})
    full = full.model_copy(update={"decision": rule})
    quick = full.model_copy(update={"detector": lazy})
    wanted = Inspector(full, golden_detector(full)).inspect(frames)
    found = Inspector(quick, golden_detector(quick)).inspect(frames)
    assert [one.decision for one in found] == [one.decision for one in wanted]
    assert [one.score for one in found] == pytest.approx([one.score for one in wanted], abs=1e-5)
    assert {bool(one.regions) for one in found if one.decision is Decision.PASS} == {False}
    assert {bool(one.regions) for one in found if one.decision is Decision.FAIL} == {True}


def test_the_identity_changes_with_whatever_the_model_is_shown(tmp_path: Path):
    """Region, tiling and references are part of what thresholds are bound to; filters are not."""
    (tmp_path / "good").mkdir()
    cv2.imwrite(str(tmp_path / "good" / "a.png"), noise_frames(1)[0])
    texts = {
        "plain": "",
        "region": "[region]\npolygon_px = [[8, 4], [150, 20], [120, 110], [20, 90]]",
        "tiled": "[tiling]\ntile_px = 64",
        "few": '[references]\nfolder = "good"',
        "filtered": "[filters]\nmin_area_px = 50",
    }
    hashes = {}
    for name, text in texts.items():
        recipe = golden_recipe(tmp_path, text, name=name)
        hashes[name] = Inspector(recipe, golden_detector(recipe)).identity.sha256
    assert hashes.pop("filtered") == hashes["plain"]
    assert len(set(hashes.values())) == len(hashes)


RIM_PX = "[0, 0], [64, 0], [64, 64], [0, 64], [0, 6], [6, 6], [6, 58], [58, 58], [58, 6], [0, 6]"
RIM = f"[region]\npolygon_px = [{RIM_PX}]\n"
SLANT = "[region]\npolygon_px = [[0, 0], [6, 0], [64, 58], [64, 64], [58, 64], [0, 6]]\n"
HALF = "[region]\npolygon_px = [[0, 0], [48, 0], [48, 32], [0, 32]]\n"


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("[filters]\nmin_area_px = 4097", "filters.min_area_px: 4097, but a region has 4096 px at most"),
        (f"{HALF}[filters]\nmin_area_px = 1537", "filters.min_area_px: 1537, but a region has 1536 px at most"),
        (f"{RIM}[filters]\nopen_px = 31", "filters.open_px: 31 leaves no region"),
        (f"{SLANT}[filters]\nopen_px = 11\nmin_area_px = 100", "filters.min_area_px: 100, but a region has"),
        (f"{HALF}[filters]\nmin_area_px = 1536\nopen_px = 32\nclose_px = 32", None),
        (f"{RIM}[filters]\nopen_px = 5", None),
    ],
)
def test_filters_that_no_region_can_come_through_are_refused(tmp_path: Path, text: str, part: str | None):
    """With `fail_on = "regions"` every part would pass: what is anomalous all over must leave a region."""
    recipe = bright_recipe(tmp_path, text)
    error = inspection_error(recipe, (64, 64))
    assert (error is None) if part is None else (part in error)
    inspector = Inspector(recipe, BrightDetector())
    assert inspector.frame_size_error((64, 64)) == error
    if error is not None:
        with pytest.raises(SourceError, match="filters"):
            inspector.crop(dark_frame(64, 64))


def test_pattern_that_repeats_by_the_step_is_seen_alike_everywhere(tmp_path: Path):
    """From the picture to its map: tiles of a pattern with their own period leave no seam and see no difference."""
    recipe = golden_recipe(tmp_path, "[tiling]\ntile_px = 120\noverlap = 0.25")
    (cell,) = noise_frames(1, 90, 90)
    frame = np.tile(cell, (3, 5, 1))[:210, :390]  # two by four tiles
    found = Inspector(recipe, golden_detector(recipe), keep_maps=True).inspect([frame])[0].anomaly_map
    inner = found[30:-30, 30:-30]  # what lies in the outer ones' edges has one tile, not two
    assert np.allclose(inner[:, :-90], inner[:, 90:], atol=1e-6)
    assert np.allclose(inner[:-90], inner[90:], atol=1e-6)
    assert np.ptp(inner) > 0.01
