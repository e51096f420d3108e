"""Regions against masks drawn by hand."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from scipy import ndimage

from inspectd.errors import DetectorError
from inspectd.recipe import Filters
from inspectd.regions import MOST_REGIONS, Regions, disk, find_regions


def drawn(*rows: str) -> np.ndarray:
    """A map from a drawing: `.` is 0, a digit is so many tenths."""
    return np.array([[0 if c == "." else int(c) / 10 for c in row] for row in rows], dtype=np.float32)


def find(anomaly_map: np.ndarray, roi=None, *, threshold=0.5, origin=(0, 0), **filters: int) -> Regions:
    return find_regions(anomaly_map, roi, threshold, Filters(**filters), origin)


def test_two_regions_are_measured_to_the_pixel():
    """Boxes, areas, centroids, scores and labels are those of the drawing, the larger region first."""
    found = find(
        drawn(
            "........",
            ".9......",
            ".....56.",
            ".....67.",
        ),
        origin=(100, 50),
    )
    large, small = found.regions
    assert (large.id, large.bbox_xywh_px, large.area_px) == (1, (105, 52, 2, 2), 4)
    assert large.centroid_xy_px == (105.5, 52.5)
    assert large.score_max == pytest.approx(0.7)
    assert large.score_mean == pytest.approx(0.6)
    assert (small.id, small.bbox_xywh_px, small.area_px) == (2, (101, 51, 1, 1), 1)
    assert found.mask.origin_xy_px == (101, 51)
    assert found.mask.labels.tolist() == [[2, 0, 0, 0, 0, 0], [0, 0, 0, 0, 1, 1], [0, 0, 0, 0, 1, 1]]
    assert not found.truncated


def test_a_value_equal_to_the_threshold_belongs_to_a_region():
    """The threshold is reached, not passed."""
    value = np.float32(0.3)
    assert find(np.full((4, 4), value), threshold=float(value)).regions[0].area_px == 16
    assert not find(np.full((4, 4), np.nextafter(value, np.float32(0))), threshold=float(value)).regions


def test_nothing_hot_is_no_region_and_no_mask():
    """An empty result says so: no region, no mask."""
    found = find(np.zeros((6, 9), np.float32))
    assert (found.regions, found.mask, found.truncated) == ((), None, False)


def test_the_whole_map_is_one_region():
    """A region may touch all four borders."""
    found = find(np.ones((7, 5), np.float32), open_px=3, close_px=4)
    assert found.regions[0].bbox_xywh_px == (0, 0, 5, 7)
    assert found.mask.labels.shape == (7, 5)


def test_diagonal_neighbours_are_one_region():
    """Components are 8-connected."""
    assert [region.area_px for region in find(drawn("9..", ".9.", "..9")).regions] == [3]


def test_equal_areas_are_ordered_top_left_first():
    """Order never depends on chance."""
    found = find(drawn("...9", "....", "9..9"))
    assert [region.bbox_xywh_px[:2] for region in found.regions] == [(3, 0), (0, 2), (3, 2)]


def test_small_regions_are_left_out_of_list_and_mask():
    """The area filter counts pixels, and the mask covers what is left alone."""
    found = find(drawn("9.....", "......", "..99..", "..9..."), min_area_px=3)
    assert [region.area_px for region in found.regions] == [3]
    assert found.mask.labels.tolist() == [[1, 1], [1, 0]]
    assert not find(drawn("9.9"), min_area_px=2).regions


def test_pixels_outside_the_polygon_never_count():
    """Neither a hot pixel outside nor one that closing would add there."""
    roi = np.ones((3, 7), dtype=bool)
    roi[:, 3] = False
    found = find(drawn(".......", ".99999.", "......."), roi, close_px=3)
    assert sorted(region.area_px for region in found.regions) == [2, 2]
    assert found.mask.labels[:, 2].max() == 0


def test_more_than_255_regions_are_cut_off_smallest_last():
    """255 labels fit a mask; the largest keep theirs, and the rest is admitted."""
    anomaly_map = np.zeros((64, 64), np.float32)
    anomaly_map[::3, ::3] = 1  # 484 specks
    anomaly_map[62:64, 62:64] = 1
    found = find(anomaly_map)
    assert found.truncated
    assert [region.area_px for region in found.regions] == [4] + [1] * (MOST_REGIONS - 1)
    assert sorted(set(found.mask.labels.ravel())) == list(range(256))


def test_just_255_regions_are_not_truncated():
    """The limit itself fits."""
    anomaly_map = np.zeros((45, 51), np.float32)
    anomaly_map[::3, ::3] = 1
    found = find(anomaly_map)
    assert (len(found.regions), found.truncated) == (255, False)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_value_that_is_not_finite_is_an_error(value: float):
    """One bad pixel, even outside the polygon, and the map vouches for nothing."""
    anomaly_map = np.zeros((8, 8), np.float32)
    anomaly_map[7, 0] = value
    with pytest.raises(DetectorError, match="not finite"):
        find(anomaly_map, np.eye(8, dtype=bool))


@pytest.mark.parametrize(("diameter", "kind"), list(itertools.product([2, 3, 4, 5, 8, 9], ["open", "close"])))
def test_morphology_is_that_of_the_definition(diameter: int, kind: str):
    """Opening and closing by a disk agree with scipy's, pixel by pixel, for odd and even diameters."""
    rng = np.random.default_rng(diameter)
    noise = ndimage.gaussian_filter(rng.normal(size=(60, 80)), diameter / 2)
    hot = np.pad(noise > 0, 12)
    wanted = {"open": ndimage.binary_opening, "close": ndimage.binary_closing}[kind](hot, disk(diameter))
    found = find(hot.astype(np.float32), **{f"{kind}_px": diameter})
    assert sum(region.area_px for region in found.regions) == wanted.sum()
    x, y = found.mask.origin_xy_px
    h, w = found.mask.labels.shape
    assert np.array_equal(found.mask.labels > 0, wanted[y : y + h, x : x + w])


@pytest.mark.parametrize("seed", range(8))
def test_regions_of_random_maps_are_those_of_scipy(seed: int):
    """Areas, boxes, centroids and scores agree with an independent labelling, region by region."""
    rng = np.random.default_rng(seed)
    anomaly_map = ndimage.gaussian_filter(rng.random((70, 90)), 2).astype(np.float32)
    threshold = float(np.quantile(anomaly_map, 0.8))
    roi = np.fromfunction(lambda y, x: (x - 45) ** 2 + (y - 35) ** 2 < 34**2, anomaly_map.shape)
    found = find(anomaly_map, roi, threshold=threshold, origin=(7, 9), min_area_px=5)
    labels, count = ndimage.label((anomaly_map >= threshold) & roi, np.ones((3, 3)))
    large = [label for label in range(1, count + 1) if (labels == label).sum() >= 5]
    assert len(found.regions) == len(large) > 3
    by_corner = {(np.nonzero(labels == label)[0][0], np.nonzero(labels == label)[1][0]): label for label in large}
    placed = np.zeros(anomaly_map.shape, np.uint8)
    x0, y0 = found.mask.origin_xy_px[0] - 7, found.mask.origin_xy_px[1] - 9
    placed[y0 : y0 + found.mask.labels.shape[0], x0 : x0 + found.mask.labels.shape[1]] = found.mask.labels
    for region in found.regions:
        ys, xs = np.nonzero(placed == region.id)
        own = labels == by_corner[(ys[0], xs[0])]
        assert np.array_equal(own, placed == region.id)
        assert region.bbox_xywh_px == (7 + xs.min(), 9 + ys.min(), np.ptp(xs) + 1, np.ptp(ys) + 1)
        assert region.centroid_xy_px == pytest.approx((7 + xs.mean(), 9 + ys.mean()))
        assert region.score_max == anomaly_map[own].max()
        assert region.score_mean == pytest.approx(anomaly_map[own].mean(), rel=1e-6)


@pytest.mark.parametrize("diameter", [2, 3, 6, 7])
def test_opening_at_the_border_of_the_map_keeps_what_may_go_on_beyond(diameter: int):
    """The frame's border is not the part's: half a blob at the border is not eroded from outside."""
    anomaly_map = np.zeros((40, 40), np.float32)
    anomaly_map[10:30, :20] = 1
    found = find(anomaly_map, open_px=diameter, close_px=diameter)
    assert found.regions[0].bbox_xywh_px == (0, 10, 20, 20)


def test_closing_joins_neighbours_but_does_not_reach_for_the_border():
    """A gap between two blobs is filled; the two pixels to the border are not."""
    anomaly_map = np.zeros((30, 30), np.float32)
    anomaly_map[2:12, 2:12] = anomaly_map[2:12, 14:28] = 1
    found = find(anomaly_map, close_px=5)
    assert [region.bbox_xywh_px for region in found.regions] == [(2, 2, 26, 10)]


@pytest.mark.parametrize("side", [400, 600])
def test_a_region_is_found_among_more_specks_than_16_bits_can_label(side: int):
    """40000 and 90000 specks are told apart, and the one large region is found among them."""
    anomaly_map = np.zeros((side, side), np.float32)
    anomaly_map[::2, ::2] = 1
    anomaly_map[300:303, 300:303] = 1
    found = find(anomaly_map)
    assert found.truncated
    assert (found.regions[0].bbox_xywh_px, found.regions[0].area_px) == ((300, 300, 3, 3), 9)
    assert {region.area_px for region in found.regions[1:]} == {1}
